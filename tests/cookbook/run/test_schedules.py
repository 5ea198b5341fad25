"""Learning-rate schedules are transformers'."""

from __future__ import annotations

import math
from typing import Any, cast, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import TrainingArguments, get_scheduler

from lossbook.cookbook.run.configs import adam_params
from lossbook.cookbook.settings.base import RecipeConfig
from lossbook.cookbook.settings.choices import Schedule
from lossbook.datums.errors import ConfigError
from lossbook.datums.types import AdamParams


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


@settings(deadline=None, max_examples=80)
@given(st.data(), st.integers(0, 20), st.integers(1, 30), st.floats(1e-9, 1.0))
def test_every_schedule_is_what_transformers_gives_after_as_many_steps(
    data: st.DataObject, warmup: int, falling: int, lowest: float
) -> None:
    total = warmup + falling + 1
    schedule = data.draw(st.sampled_from(get_args(Schedule)))
    own: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if schedule == "cosine_with_min_lr":
        own, theirs = {"min_learning_rate": 1e-3 * lowest}, {"min_lr": 1e-3 * lowest}
    elif schedule == "warmup_stable_decay":
        decay = data.draw(st.none() | st.integers(1, total - warmup))
        given_decay = -(-total // 10) if decay is None else decay
        if warmup + given_decay > total:
            return  # refused, below
        own = {"min_learning_rate": 1e-3 * lowest, "decay_steps": decay}
        theirs = {"num_decay_steps": given_decay, "min_lr_ratio": lowest}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    made = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=total, scheduler_specific_kwargs=theirs
    )
    scheduler, expected = cast("Any", made), []
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        expected.append(scheduler.get_last_lr()[0])
    assert rates(total, schedule=schedule, warmup_steps=warmup, **own) == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_warmup_stable_decay_rises_stays_and_falls_to_its_minimum_at_the_last_step() -> None:
    shown = rates(12, schedule="warmup_stable_decay", warmup_steps=2, decay_steps=4, min_learning_rate=2e-4)
    falls = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * x)) for x in (0.25, 0.5, 0.75, 1)]
    assert shown == pytest.approx([1e-3 * x for x in (0.2 + 0.8 * 0.5, *7 * [1.0], *falls)], abs=1e-18)
    assert rates(25, schedule="warmup_stable_decay")[-4:-2] == [1e-3, pytest.approx(0.75e-3)]  # 3 steps, a tenth of 25


@given(st.integers(1, 60), st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=40)
def test_a_warmup_ratio_is_as_many_steps_rounded_up_as_transformers_takes(total: int, ratio: float) -> None:
    arguments = TrainingArguments(warmup_steps=ratio, report_to=[], use_cpu=True)
    assert rates(total, warmup_ratio=ratio) == rates(total, warmup_steps=arguments.get_warmup_steps(total))


def test_the_optimizer_gets_every_flag_and_by_default_what_adam_params_has() -> None:
    own = {"weight_decay": 0.1, "beta1": 0.8, "beta2": 0.99, "eps": 1e-8, "grad_clip_norm": 2.0}
    assert adam_params(RecipeConfig(learning_rate=1e-3, **own), 1, 1) == AdamParams(learning_rate=1e-3, **own)
    assert adam_params(RecipeConfig(grad_clip_norm=0.0), 1, 1) == AdamParams(learning_rate=5e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"warmup_steps": 2, "warmup_ratio": 0.1}, "choose one of warmup_steps and warmup_ratio"),
        ({"decay_steps": 2}, "decay_steps is for schedule warmup_stable_decay, not for constant"),
        ({"schedule": "cosine_with_min_lr"}, "give that too, or take cosine"),
        ({"schedule": "linear", "min_learning_rate": 1e-6}, "not for linear"),
        ({"schedule": "cosine_with_min_lr", "min_learning_rate": 1.0}, "must not be above learning_rate"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"beta2": 1.0}, "beta2"),
        ({"eps": 0.0}, "eps"),
        ({"warmup_ratio": 1.0}, "warmup_ratio"),
        ({"warmup_steps": 10**30}, "warmup_steps"),
    ],
)
def test_flags_that_exclude_each_other_or_are_out_of_range_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RecipeConfig(**flags)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (4, 4), (3, 8)])
def test_a_schedule_that_ends_at_0_and_has_no_step_to_fall_in_is_refused(total: int, warmup: int) -> None:
    with pytest.raises(ConfigError, match=f"falls to 0 at the last of {total} steps, and after warmup_steps={warmup}"):
        rates(total, schedule="linear", warmup_steps=warmup)


@pytest.mark.parametrize(
    ("total", "flags", "message"),
    [
        (9, {"warmup_steps": 5, "decay_steps": 5}, "falls over the last 5 of 9 steps, and after warmup_steps=5"),
        (4, {"warmup_ratio": 0.9}, r"falls to 0 at the last of 4 steps, and after warmup_ratio=0\.9"),
        (1, {}, "falls to 0 at the last of 1 steps"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(total: int, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rates(total, schedule="warmup_stable_decay", **flags)
