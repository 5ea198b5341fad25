"""Final numbers of a run, and which of two is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..diagnose.history import History

#: Training metrics are noisy: their final number is the mean over the last 1 / SHARE of the steps.
SHARE = 5
#: Prefix of numbers that are measured on the same data each time; their final number is the last one.
HELD_OUT = "held_out_"
#: Metrics by their names without `held_out_` and without a part of a mixture; what stands nowhere has no direction.
HIGHER = (
    *("score", "reward", "accuracy", "reward_accuracy", "margin"),
    *("recall_at_1", "recall_at_10", "mrr", "in_batch_recall_at_1", "spearman"),
)
LOWER = ("nll", "loss", "reverse_kl", "forward_kl", "teacher_kl")
#: Metrics of training that are shown where little was held out.
OF_TRAINING = ("reward", "accuracy", "in_batch_recall_at_1", "teacher_kl", "nll", "loss")


def final_numbers(history: History) -> dict[str, float]:
    """The final number of every metric that has finite values."""
    numbers: dict[str, float] = {}
    for key in history.keys:
        values = history.series(key).values
        if len(values):
            last = 1 if key.startswith(HELD_OUT) else max(len(values) // SHARE, 1)
            numbers[key] = float(values[-last:].mean())
    return numbers


def direction(key: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither is known."""
    name = key.rpartition("/")[2].removeprefix(HELD_OUT)
    return 1 if name in HIGHER else -1 if name in LOWER else 0


def main_keys(numbers: Sequence[Mapping[str, float]], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics to compare unless others are asked for: what was held out; with little of it, training's main ones.

    `loss` is among them only where all runs have the same loss: values of different losses say nothing about each other.
    """
    recorded = list(dict.fromkeys(key for each in numbers for key in each))
    held_out = [key for key in recorded if key.startswith(HELD_OUT)]
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
