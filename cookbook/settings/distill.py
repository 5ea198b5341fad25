"""Settings of distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .base import DataConfig
from .choices import SELF
from .groups import MOST, setting


class DistillConfig(DataConfig):
    """Settings of the recipe; each field is a flag."""

    out: Path = setting("Output", Path("runs/distill"), "the run's folder: settings, metrics, checkpoints, adapter")
    teacher: str = setting("Model", SELF, "a model as in `model`, a run's folder, a checkpoint, or 'self'")
    teacher_system: str | None = setting(
        "Model", None, "a system turn for the teacher only; {answer} in it becomes the right answer"
    )
    mode: Literal["off_policy", "on_policy"] = setting(
        "Model", "off_policy", "off_policy: the answers in the data; on_policy: answers sampled from the student"
    )
    loss: str = setting("Loss", "topk_forward_kl", "a loss that reads teacher_logprobs, by id or module:function")
    top_k: int | None = setting(
        "Loss",
        None,
        "the teacher's candidates per position; None: 20 where the loss compares candidates",
        ge=1,
        le=MOST,
    )
    eval_top_k: int = setting(
        "Evaluation", 512, "candidates of the held-out KL; exact where the vocabulary has no more", ge=1, le=MOST
    )
    truncation: Literal["error", "drop"] = setting("Data", "error", "what to do with rows longer than max_length")
    samples: int = setting("Rollouts", 4, "answers sampled per prompt", ge=1, le=MOST)
    max_tokens: int = setting("Rollouts", 64, "most tokens in a sampled answer", ge=1, le=MOST)
