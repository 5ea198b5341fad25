"""Settings of distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from .base import DataConfig
from .choices import SELF
from .groups import MOST, given, setting


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
    loss: str = setting(
        "Loss",
        "topk_forward_kl",
        "a loss that reads teacher_logprobs, or on policy advantages, by id or module:function",
    )
    top_k: int | None = setting(
        "Loss",
        None,
        "the teacher's candidates per position; None: 20 where the loss compares candidates",
        ge=1,
        le=MOST,
    )
    cross_entropy: float = setting(
        "Loss", 0.0, "with a loss over whole distributions: how much cross-entropy of the answers is added", ge=0
    )
    advantage_cap: float | None = setting(
        "Loss",
        None,
        "with a policy loss: most nats that one token's advantage, the teacher's logprob less the student's, counts",
        gt=0,
    )
    eval_top_k: int = setting(
        "Evaluation", 512, "candidates of the held-out KL; exact where the vocabulary has no more", ge=1, le=MOST
    )
    truncation: Literal["error", "drop"] = setting("Data", "error", "what to do with rows longer than max_length")
    samples: int = setting("Rollouts", 4, "answers sampled per prompt", ge=1, le=MOST)
    max_tokens: int = setting("Rollouts", 64, "most tokens in a sampled answer", ge=1, le=MOST)

    @model_validator(mode="after")
    def _answers_are_sampled(self) -> DistillConfig:
        if self.mode == "off_policy" and given(self, "samples"):
            raise ValueError("samples is for --mode on_policy only")
        if self.mode == "off_policy" and self.task is None and given(self, "max_tokens"):
            raise ValueError("max_tokens is for answers that are sampled: on policy, or to a task's held-out questions")
        if not self.is_held_out and given(self, "eval_top_k"):
            raise ValueError("eval_top_k is for the held-out KL, and nothing is held out")
        return self
