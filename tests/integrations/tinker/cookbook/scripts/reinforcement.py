"""tinker_cookbook.rl.train: in step with evaluation, in streamed minibatches, off policy, and with a penalty on the KL
from a reference.

The environment and its grader are the cookbook's own for GSM8K.
"""

from __future__ import annotations

import asyncio
from typing import Any

from seeds import seed_all
from tinker_cookbook.distillation.datasets import PromptOnlyDatasetBuilder
from tinker_cookbook.recipes.math_rl.math_env import Gsm8kDatasetBuilder
from tinker_cookbook.rl.train import AsyncConfig, Config, KLReferenceConfig, StreamMinibatchConfig, main

seed_all()
MODEL, RENDERER = "Qwen/Qwen3-8B-Base", "role_colon"


def config(log_path: str, **settings: Any) -> Config:
    data = Gsm8kDatasetBuilder(
        batch_size=4, group_size=8, model_name_for_tokenizer=MODEL, renderer_name=RENDERER, convo_prefix=None
    )
    common = {"dataset_builder": data, "eval_every": 0, "save_every": 0, "learning_rate": 2e-3, "max_steps": 8}
    return Config(
        log_path=log_path,
        model_name=MODEL,
        recipe_name="test",
        renderer_name=RENDERER,
        max_tokens=10,
        lora_rank=4,
        num_groups_to_log=0,
        **(common | settings),
    )


asyncio.run(main(config("runs/sync", eval_every=3, save_every=3, compute_post_kl=True)))
stream = StreamMinibatchConfig(groups_per_batch=4, num_minibatches=2)
asyncio.run(main(config("runs/stream", stream_minibatch_config=stream, loss_fn="stable_reinforce")))
late = AsyncConfig(max_steps_off_policy=1, groups_per_batch=4, loss_fn="ppo")
asyncio.run(main(config("runs/async", async_config=late, eval_every=3, max_steps=12)))
penalty = {"kl_penalty_coef": 1.0, "kl_reference_config": KLReferenceConfig(base_model="Qwen/Qwen3-8B")}
prompts = PromptOnlyDatasetBuilder(
    dataset_name="deepmath", groups_per_batch=8, group_size=4, model_name_for_tokenizer=MODEL, renderer_name=RENDERER
)  # nothing but the penalty rewards here
asyncio.run(main(config("runs/kl", dataset_builder=prompts, max_steps=6, learning_rate=1.5e-3, **penalty)))
