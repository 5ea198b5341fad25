"""tinker_cookbook.supervised.train: rolling saves; evaluation and periodic saves; and the same in two halves, the second resumed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import tinker
from seeds import seed_all
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.nll_evaluator import SamplerNLLEvaluator
from tinker_cookbook.supervised.train import Config, main
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

seed_all()
MODEL, RENDERER = "Qwen/Qwen3-8B-Base", "role_colon"


def config(log_path: str, **settings: Any) -> Config:
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=MODEL, renderer_name=RENDERER, max_length=128, batch_size=8
    )
    data = FromConversationFileBuilder(
        common_config=common, file_path="HuggingFaceH4/no_robots/train.jsonl", test_size=16
    )
    return Config(
        log_path=log_path,
        model_name=MODEL,
        recipe_name="test",
        renderer_name=RENDERER,
        dataset_builder=data,
        lora_rank=4,
        lr_schedule="constant",
        **settings,
    )


asyncio.run(main(config("runs/rolling", learning_rate=1e-2, eval_every=0, save_every=0, rolling_save_every=1)))
start = json.loads(Path("runs/rolling/checkpoints.jsonl").read_text().splitlines()[-1])["state_path"]
further = {"load_checkpoint_path": start, "learning_rate": 3e-3, "eval_every": 2, "save_every": 2}
asyncio.run(main(config("runs/whole", num_epochs=2, **further)))
asyncio.run(main(config("runs/halves", num_epochs=1, **further)))
asyncio.run(main(config("runs/halves", num_epochs=2, **further)))

# What is left of the run with rolling saves, and whether its checkpoints load.
service = tinker.ServiceClient()
records = [json.loads(line) for line in Path("runs/rolling/checkpoints.jsonl").read_text().splitlines()]
run = start.removeprefix("tinker://").split("/")[0]
listed = service.create_rest_client().list_checkpoints(run).result().checkpoints
refused = {}
for record in records:
    try:
        service.create_training_client_from_state_with_optimizer(record["state_path"]).result()
    except tinker.TinkerError as error:
        refused[record["state_path"]] = str(error)
_, held_out = config("", learning_rate=0.0).dataset_builder()
assert held_out is not None
sampler = service.create_sampling_client(model_path=records[-1]["sampler_path"])
left = {
    "listed": sorted(checkpoint.tinker_path for checkpoint in listed),
    "refused": refused,
    "sampler": asyncio.run(SamplerNLLEvaluator.from_dataset(held_out)(sampler)),
}
Path("runs/left.json").write_text(json.dumps(left))
