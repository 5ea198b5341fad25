"""Learning-rate schedules: those of transformers, `transformers.get_scheduler`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import cast

import torch
from torch.optim.lr_scheduler import LambdaLR

from ...datums.errors import ConfigError
from ..settings.choices import Schedule

#: Schedules that end at 0.
ENDING = ("linear", "cosine")


def learning_rate_factor(schedule: Schedule, warmup_steps: int, step: int, total: int) -> float:
    """What the learning rate is multiplied by at one of `total` steps, counted from 1.

    With s = step and w = warmup_steps, it is s/w while s < w and 1 at s = w. linear is then (total - s)/(total - w), which is
    0 at the last step. Raises ConfigError where a schedule that ends at 0 has no step to fall in.
    """
    if schedule in ENDING and total <= max(warmup_steps, 1):
        raise ConfigError(
            f"schedule {schedule} falls to 0 at the last of {total} steps, and after warmup_steps={warmup_steps} no step is left "
            f"to fall in. Train for more steps, choose fewer warmup_steps, or schedule constant"
        )
    return _factors(schedule, warmup_steps, total)(step)


@lru_cache(maxsize=16)
def _factors(schedule: Schedule, warmup_steps: int, total: int) -> Callable[[int], float]:
    from transformers import get_scheduler

    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # the scheduler wants one; it is not used
    made = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total)
    return cast(LambdaLR, made).lr_lambdas[0]
