"""Learning-rate schedules: those of transformers, `transformers.get_scheduler`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR

from ...datums.errors import ConfigError
from ..settings.choices import Schedule

#: Schedules that end at 0, or at a minimum.
ENDING = ("linear", "cosine", "cosine_with_min_lr", "warmup_stable_decay")


@dataclass(frozen=True)
class LearningRates:
    """A schedule of learning rates, each as a factor of the largest.

    warmup_steps   steps over which it rises to 1
    warmup_ratio   the same as a fraction of all steps, rounded up; counts where it is not 0
    decay_steps    over which warmup_stable_decay falls; None: a tenth of all steps, rounded up
    minimum        the factor at the last step of cosine_with_min_lr and warmup_stable_decay
    """

    schedule: Schedule = "constant"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    decay_steps: int | None = None
    minimum: float = 0.0

    def factor(self, step: int, total: int) -> float:
        """What the learning rate is multiplied by at one of `total` steps, counted from 1.

        With s = step and w warmup steps, it is s/w while s < w and 1 at s = w. linear is then (total - s)/(total - w), which is
        0 at the last step. Raises ConfigError where a schedule that falls has no step to fall in.
        """
        warmup = math.ceil(self.warmup_ratio * total) if self.warmup_ratio else self.warmup_steps
        decay = self._decay(total)
        if self.schedule in ENDING and total < max(warmup + decay, 2):
            named = "warmup_ratio" if self.warmup_ratio else "warmup_steps"
            falls = f"falls over the last {decay}" if self.decay_steps else f"falls to {self.minimum:g} at the last"
            raise ConfigError(
                f"schedule {self.schedule} {falls} of {total} steps, and after {named}={getattr(self, named)} no step is left "
                f"to fall in. Train for more steps, choose a shorter warmup, or schedule constant"
            )
        return _factors(self.schedule, warmup, total, decay, self.minimum)(step)

    def _decay(self, total: int) -> int:
        """The steps over which the schedule must fall: one, unless it is warmup_stable_decay."""
        if self.schedule != "warmup_stable_decay":
            return 1
        return self.decay_steps or math.ceil(total / 10)


@lru_cache(maxsize=16)
def _factors(schedule: Schedule, warmup: int, total: int, decay: int, minimum: float) -> Callable[[int], float]:
    from transformers import get_scheduler

    own: dict[str, Any] = {}
    if schedule == "cosine_with_min_lr":
        own = {"min_lr_rate": minimum}
    elif schedule == "warmup_stable_decay":
        own = {"num_decay_steps": decay, "min_lr_ratio": minimum}
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # the scheduler wants one; it is not used
    made = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=total, scheduler_specific_kwargs=own
    )
    return cast(LambdaLR, made).lr_lambdas[0]
