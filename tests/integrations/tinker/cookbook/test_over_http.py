"""The same programs with the SDK and a server log the numbers that they log with the door in their own process."""

from __future__ import annotations

from typing import Any

import pytest

from .loops import Loops


def numbers(loops: Loops, run: str) -> list[dict[str, Any]]:
    """What each step logged, but for times. On the wire the name of a metric ends in how it merges: `nll:mean`."""
    return [
        {name.partition(":")[0]: value for name, value in row.items() if not (isinstance(value, str) or "time" in name)}
        for row in loops.rows(run)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "run", "metric"),
    [
        pytest.param("sl_loop", "sl_loop", "train_mean_nll", id="recipes/sl_loop.py"),
        pytest.param("supervised", "rolling", "train_mean_nll", id="supervised/train.py"),
        pytest.param("supervised", "whole", "test/nll", id="supervised/train.py with evaluation by a sampler"),
        pytest.param("preference", "dpo", "dpo_loss", id="preference/train_dpo.py, whose loss is a function here"),
        pytest.param(
            "distillation", "off_policy", "train/loss", id="train_off_policy.py, on a teacher's likeliest tokens"
        ),
    ],
)
def test_a_server_gives_the_numbers_of_the_door_in_one_process(
    in_process: Loops, over_http: Loops, script: str, run: str, metric: str
) -> None:
    for loops in (in_process, over_http):
        loops.sl_loop("sl_loop") if script == "sl_loop" else loops.script(script)
    expected, given = numbers(in_process, run), numbers(over_http, run)
    assert any(metric in row for row in expected)
    for step, (row, there) in enumerate(zip(expected, given, strict=True)):
        both = {name: there.get(name) for name in row}
        assert both == pytest.approx(row, rel=1e-6), step
