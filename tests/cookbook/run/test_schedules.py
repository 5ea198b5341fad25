"""Learning-rate schedules are transformers'."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_scheduler

from lossbook.cookbook.run.configs import adam_params
from lossbook.cookbook.settings.base import RecipeConfig
from lossbook.datums.errors import ConfigError


def rates(total: int, **changes: Any) -> list[float]:
    """The learning rate at each step."""
    config = RecipeConfig(learning_rate=1e-3, **changes)
    return [adam_params(config, step, total).learning_rate for step in range(1, total + 1)]


def test_linear_with_warmup_peaks_at_the_last_step_of_the_warmup_and_is_0_at_the_last_step() -> None:
    expected = [0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]  # of 1e-3, by hand
    assert rates(10, schedule="linear", warmup_steps=4) == pytest.approx([1e-3 * x for x in expected], abs=1e-18)


def test_linear_without_warmup_is_0_at_the_last_step() -> None:
    assert rates(4, schedule="linear") == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3, 0], abs=1e-18)


def test_constant_rises_over_the_warmup_and_stays() -> None:
    assert rates(5, warmup_steps=2) == pytest.approx([0.5e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    assert rates(3, warmup_steps=6) == pytest.approx([1e-3 / 6, 2e-3 / 6, 3e-3 / 6])


def test_cosine_is_half_at_the_middle_and_0_at_the_last_step() -> None:
    shown = rates(6, schedule="cosine", warmup_steps=2)
    assert shown == pytest.approx(
        [0.5e-3, 1e-3, *(0.5e-3 * (1 + math.cos(math.pi * x)) for x in (0.25, 0.5, 0.75, 1))], abs=1e-18
    )


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt"]), st.integers(0, 20), st.integers(1, 30))
def test_every_schedule_is_what_transformers_gives_after_as_many_steps(
    schedule: str, warmup: int, falling: int
) -> None:
    total = warmup + falling + 1
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = cast("Any", get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total))
    expected = []
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        expected.append(scheduler.get_last_lr()[0])
    assert rates(total, schedule=schedule, warmup_steps=warmup) == pytest.approx(expected, abs=1e-18)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (4, 4), (3, 8)])
def test_a_schedule_that_ends_at_0_and_has_no_step_to_fall_in_is_refused(total: int, warmup: int) -> None:
    with pytest.raises(ConfigError, match=f"falls to 0 at the last of {total} steps, and after warmup_steps={warmup}"):
        rates(total, schedule="linear", warmup_steps=warmup)
