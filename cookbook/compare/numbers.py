"""Final numbers of a run: all of them, those to compare, and the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..diagnose.history import SHARE, History
from ..diagnose.numbers import direction, is_measured

#: Metrics of training that are shown where little was held out.
OF_TRAINING = ("reward", "accuracy", "in_batch_recall_at_1", "teacher_kl", "nll", "loss")


def final_numbers(history: History) -> dict[str, float]:
    """The final number of every metric that has finite values: the last of what is measured on the same data each time, else
    the mean over the last 1 / SHARE of the steps."""
    numbers: dict[str, float] = {}
    for key in history.keys:
        values = history.series(key).values
        if len(values):
            last = 1 if is_measured(key) else max(len(values) // SHARE, 1)
            numbers[key] = float(values[-last:].mean())
    return numbers


def main_keys(numbers: Sequence[Mapping[str, float]], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics to compare unless others are asked for: what was held out; with little of it, training's main ones.

    `loss` is among them only where all runs have the same loss: values of different losses say nothing about each other.
    """
    recorded = list(dict.fromkeys(key for each in numbers for key in each))
    held_out = [key for key in recorded if is_measured(key)]
    losses = {str((each.get("loss"), each.get("loss_config"))) for each in settings}
    of_training = [key for key in OF_TRAINING if key in recorded and (key != "loss" or len(losses) == 1)]
    keys = sorted(held_out, key=lambda key: direction(key) == 0)
    return keys if len(keys) > 1 else [*keys, *of_training[:2]]


def best_of(key: str, values: Iterable[tuple[str, float]]) -> list[str]:
    """The names of the best values of a metric, several where they are equal; none where no direction is known."""
    named, sign = list(values), direction(key)
    if not sign or len(named) < 2:
        return []
    best = max(sign * value for _, value in named)
    return [name for name, value in named if sign * value == best]
