"""Every setting of every recipe is read by a run of it: none is a flag that nothing heeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook import distill, dpo, embed, rerank, reward, rl, sft
from lossbook.cookbook.settings.base import RecipeConfig
from lossbook.cookbook.settings.distill import DistillConfig
from lossbook.cookbook.settings.embed import EmbedConfig, RerankConfig
from lossbook.cookbook.settings.preferences import DPOConfig, RewardConfig
from lossbook.cookbook.settings.rl import RLConfig
from lossbook.cookbook.settings.sft import SFTConfig

CHATS = [
    {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": c}]}
    for p, c in ("ab", "cd", "ef", "gh")
]
ROWS = [{"prompt": p, "completion": c} for p, c in ("ab", "cd", "ef", "gh")]
PAIRS = [{"prompt": "a", "chosen": c, "rejected": r} for c, r in ("bc", "de", "fg", "hi")]
TEXTS = [{"query": q, "positive": p, "negative": "z"} for q, p in ("ab", "cd", "ef", "gh")]
TASK = {"task": "letter_counting", "task_config": {"min_words": 1, "max_words": 1}, "task_size": 4, "held_out": 2}
TRACKED = {"log_to": ("tensorboard",), "run_name": "a"}
SHORT = {
    **TRACKED,
    "steps": 2,
    "eval_every": 1,
    "early_stopping_patience": 9,
    "sample_prompts": ("a",),
    "sample_tokens": 2,
}
WORDS = {**TASK, "task": "word_sequence_reversal", "task_config": {"min_words": 3, "max_words": 3}}
#: Settings that no recipe reads when a run is made as here, with what does read them.
ELSEWHERE = {
    "sampler_model": "runs on a server", "sampler_adapters": "runs on a server", "sampler_bound": "runs on a server",
    "sampler_connections": "runs on a server", "sampler_timeout": "runs on a server",
}  # fmt: skip
RECIPES: dict[str, tuple[Callable[[Any], Any], type[RecipeConfig], list[dict[str, Any]]]] = {
    "sft": (
        sft.main, SFTConfig,
        [{"data": "rows.jsonl", "eval_data": "rows.jsonl", "max_length": 64, **SHORT},
         {**TASK, "all_weights": True, "epochs": 1, "batch_size": 2}],
    ),
    "dpo": (
        dpo.main, DPOConfig,
        [{"data": "pairs.jsonl", "eval_data": "pairs.jsonl", **SHORT},
         {**WORDS, "all_weights": True, "epochs": 1, "batch_size": 2}],
    ),
    "reward": (
        reward.main, RewardConfig,
        [{"data": "pairs.jsonl", "eval_data": "pairs.jsonl", **{**SHORT, "sample_prompts": (), "sample_tokens": 64}},
         {**WORDS, "epochs": 1, "batch_size": 2}],
    ),
    "rl": (
        rl.main, RLConfig,
        [{**TASK, **SHORT, "problems_per_step": 2, "group_size": 2, "max_tokens": 2, "overlong": "soft", "entropy_target": 9},
         {"environment": "guess_number", "task_size": 4, "held_out": 0, "steps": 1, "problems_per_step": 2, "max_tokens": 2, "advantages": "gigpo"},
         {"data": "problems.jsonl", "held_out": 1, "steps": 2, "problems_per_step": 2, "max_tokens": 2}],
    ),
    "distill": (
        distill.main, DistillConfig,
        [{**TASK, **SHORT, "mode": "on_policy", "loss": "ppo", "advantage_cap": 5, "teacher_system": "{answer}", "max_tokens": 2},
         {"data": "chats.jsonl", "eval_data": "chats.jsonl", "teacher_system": "{answer}", "epochs": 1, "batch_size": 2}],
    ),
    "embed": (
        embed.main, EmbedConfig,
        [{"data": "texts.jsonl", "model": "tiny-encoder", "held_out": 2, "steps": 1, "batch_size": 2, **TRACKED},
         {"data": "texts.jsonl", "eval_data": "texts.jsonl", "model": "tiny-encoder", "all_weights": False, "batch_size": 2}],
    ),
    "rerank": (
        rerank.main, RerankConfig,
        [{"data": "texts.jsonl", "model": "tiny-encoder", "held_out": 2, "steps": 1, "batch_size": 2, "random_negatives": 1, **TRACKED},
         {"data": "texts.jsonl", "eval_data": "texts.jsonl", "model": "tiny", "all_weights": False, "batch_size": 2}],
    ),
}  # fmt: skip


def watched(kind: type[RecipeConfig], values: dict[str, Any], seen: set[str]) -> Any:
    """A configuration that notes in `seen` which of its fields are read from now on; writing it to a file reads none."""

    class Watched(kind):
        def __getattribute__(self, name: str) -> Any:
            if name in kind.model_fields and recording:
                seen.add(name)
            return super().__getattribute__(name)

    recording: list[bool] = []
    config = Watched(**values)
    recording.append(True)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_of_every_recipe_is_read(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problems = [{"prompt": "1+1?", "answer": "2"}, {"prompt": "2+1?", "answer": "3"}, {"prompt": "2+2?", "answer": "4"}]
    for name, rows in (("rows", ROWS), ("chats", CHATS), ("pairs", PAIRS), ("texts", TEXTS), ("problems", problems)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main, kind, modes = RECIPES[recipe]
    seen: set[str] = set()
    for number, values in enumerate(modes):
        small = {"out": Path(f"run{number}"), "restarts": 0}
        main(watched(kind, {**small, **values}, seen))
    unread = set(kind.model_fields) - seen - set(ELSEWHERE)
    assert unread == set(), f"nothing reads {', '.join(sorted(unread))}"
