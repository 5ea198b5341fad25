"""Settings of the recipes over preference data."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import model_validator

from ...datums.choices import Truncation
from .base import DataConfig
from .choices import WrongAnswer
from .groups import given, setting


class PreferenceConfig(DataConfig):
    """Settings of every recipe over preference data."""

    truncation: Truncation = setting("Data", "error", "what to do with rows longer than max_length")
    wrong_answer: WrongAnswer = setting(
        "Data",
        "another",
        "a task's rejected answers: the right one with its words scrambled, or that to another question",
    )

    @model_validator(mode="after")
    def _wrong_answers_are_of_tasks(self) -> Self:
        if self.task is None and given(self, "wrong_answer"):
            raise ValueError("wrong_answer is for --task only")
        return self


class DPOConfig(PreferenceConfig):
    """Settings of the recipe; each field is a flag."""

    out: Path = setting("Output", Path("runs/dpo"), "the run's folder: settings, metrics, checkpoints, adapter")
    loss: str = setting("Loss", "dpo", "a loss's id (see `lossbook losses list`) or module:function")
    references: Path | None = setting(
        "Loss", None, "folder for reference logprobs, where any are needed, which runs may share; None: in `out`"
    )


class RewardConfig(PreferenceConfig):
    """Settings of the recipe; each field is a flag."""

    out: Path = setting("Output", Path("runs/reward"), "the run's folder: settings, metrics, checkpoints, scorer")
    loss: str = setting("Loss", "reward_bt", "a loss that compares scores, by id or module:function")

    @model_validator(mode="after")
    def _head_is_not_read(self) -> RewardConfig:
        if self.train_unembed:
            raise ValueError("train_unembed adapts the output head, which a reward model does not read")
        return self
