"""Settings of the optimizer, AdamW, and of the schedule of its learning rate."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, model_validator

from .choices import Schedule
from .groups import MOST, setting


class OptimizerSettings(BaseModel):
    """What each optimizer step is made with."""

    learning_rate: float = setting("Optimizer", 5e-4, "the optimizer's learning rate after warmup", gt=0)
    weight_decay: float = setting(
        "Optimizer", 0.0, "decoupled weight decay: a step shrinks weights by learning rate times this", ge=0
    )
    beta1: float = setting("Optimizer", 0.9, "decay of AdamW's mean of gradients", ge=0, lt=1)
    beta2: float = setting("Optimizer", 0.95, "decay of AdamW's mean of squared gradients", ge=0, lt=1)
    eps: float = setting("Optimizer", 1e-12, "added to the root of that mean, which AdamW divides by", gt=0)
    grad_clip_norm: float = setting("Optimizer", 1.0, "largest gradient norm; 0: no clipping", ge=0)
    schedule: Schedule = setting(
        "Schedule",
        "constant",
        "after warmup: constant; linear, cosine: to 0 at the last step; cosine_with_min_lr: to min_learning_rate; "
        "inverse_sqrt; warmup_stable_decay: constant, then down over decay_steps",
    )
    warmup_steps: int = setting(
        "Schedule", 0, "steps over which the learning rate rises; it is reached at this step", ge=0, le=MOST
    )
    warmup_ratio: float = setting("Schedule", 0.0, "the same as a fraction of all steps", ge=0, lt=1)
    min_learning_rate: float | None = setting(
        "Schedule", None, "the learning rate at the last step of cosine_with_min_lr and warmup_stable_decay", gt=0
    )
    decay_steps: int | None = setting(
        "Schedule", None, "last steps, over which warmup_stable_decay falls; None: a tenth of all", ge=1, le=MOST
    )

    @model_validator(mode="after")
    def _schedule_is_one(self) -> Self:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("choose one of warmup_steps and warmup_ratio")
        if self.decay_steps is not None and self.schedule != "warmup_stable_decay":
            raise ValueError(f"decay_steps is for schedule warmup_stable_decay, not for {self.schedule}")
        if self.min_learning_rate is None:
            if self.schedule == "cosine_with_min_lr":
                raise ValueError(
                    "schedule cosine_with_min_lr falls to min_learning_rate: give that too, or take cosine"
                )
            return self
        if self.schedule not in ("cosine_with_min_lr", "warmup_stable_decay"):
            raise ValueError(
                f"min_learning_rate is for schedules cosine_with_min_lr and warmup_stable_decay, not for {self.schedule}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate is the smallest: it must not be above learning_rate")
        return self
