"""Settings of supervised fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from ...datums.choices import Truncation
from .base import DataConfig
from .groups import given, setting


class SFTConfig(DataConfig):
    """Settings of the recipe; each field is a flag."""

    out: Path = setting("Output", Path("runs/sft"), "the run's folder: settings, metrics, checkpoints, adapter")
    truncation: Truncation = setting("Data", "error", "what to do with rows longer than max_length")
    train_on: Literal["all_assistant", "last_assistant", "all"] = setting("Data", "all_assistant", "the turns to learn")

    @model_validator(mode="after")
    def _turns_are_of_messages(self) -> SFTConfig:
        if self.task is not None and given(self, "train_on"):
            raise ValueError("train_on is for --data only: a question of a task has one answer")
        return self
