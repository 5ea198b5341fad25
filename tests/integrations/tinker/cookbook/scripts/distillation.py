"""tinker_cookbook.distillation: on the student's samples, on given texts, and from the model itself shown the answer (SDFT)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from seeds import seed_all
from tinker_cookbook import renderers
from tinker_cookbook.distillation import sdft, train_off_policy, train_on_policy
from tinker_cookbook.distillation.datasets import DistillationDatasetConfig, PromptOnlyDatasetBuilder, TeacherConfig
from tinker_cookbook.recipes.sdft.datasets import SDFTDataset
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.nll_evaluator import SamplerNLLEvaluator
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.tokenizer_utils import get_tokenizer

seed_all()
MODEL, RENDERER = "Qwen/Qwen3-8B-Base", "role_colon"
TEACHER = TeacherConfig(base_model="Qwen/Qwen3-8B")
SHARED: dict[str, Any] = {
    "model_name": MODEL,
    "recipe_name": "test",
    "renderer_name": RENDERER,
    "lora_rank": 4,
    "learning_rate": 1.5e-3,
    "eval_every": 2,
    "save_every": 0,
}

prompts = PromptOnlyDatasetBuilder(
    dataset_name="deepmath", groups_per_batch=8, group_size=4, model_name_for_tokenizer=MODEL, renderer_name=RENDERER
)
data = DistillationDatasetConfig(dataset_builder=prompts, teacher_config=TEACHER, groups_per_batch=8)
asyncio.run(
    train_on_policy.main(
        train_on_policy.Config(log_path="runs/on_policy", dataset_configs=[data], max_tokens=10, **SHARED)
    )
)

common = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer=MODEL, renderer_name=RENDERER, max_length=128, batch_size=8
)
texts = FromConversationFileBuilder(common_config=common, file_path="answers.jsonl")
taught = train_off_policy.DatasetWithTeacher(dataset_builder=texts, teacher_config=TEACHER)
asyncio.run(
    train_off_policy.main(
        train_off_policy.Config(
            log_path="runs/off_policy", dataset_configs=[taught], n_teacher_targets=4, batch_size=8, **SHARED
        )
    )
)


def judge() -> SamplerNLLEvaluator:
    """How likely the answers are that the teacher is shown, to the student, who is not."""
    return SamplerNLLEvaluator.from_dataset(texts()[0], name="answers")


renderer = renderers.get_renderer(RENDERER, tokenizer=get_tokenizer(MODEL))
chats = [json.loads(line)["messages"] for line in Path("answers.jsonl").read_text().splitlines()]
asked, answered = ([chat[turn]["content"] for chat in chats] for turn in (0, 1))
for name, settings in (("sdft", {"topk": 4}), ("sdft_reverse", {"topk": 4, "reverse": True})):
    own = SDFTDataset(asked, answered, batch_size=8, group_size=2, renderer=renderer)
    config = sdft.Config(log_path=f"runs/{name}", max_tokens=10, evaluator_builders=[judge], **settings, **SHARED)
    asyncio.run(sdft.main(config, own))
