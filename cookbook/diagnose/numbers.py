"""A run's numbers at its end, and those of several runs side by side, with runs that differ by their seed as one row.

Held-out numbers are always measured on the same data, so the last is the final one. Others are of one batch each: their
final number is the mean over the last fifth of the recorded steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .history import SHARE, History
from .intervals import Mean, mean_of

#: The main metrics, by key: label, and whether more (1) or less (-1) is better, or neither (0).
MAIN = {
    "held_out_score": ("held-out score", 1),
    "reward": ("reward", 1),
    "held_out_accuracy": ("held-out accuracy", 1),
    "held_out_reward_accuracy": ("held-out accuracy of scores", 1),
    "accuracy": ("accuracy", 1),
    "held_out_nll": ("held-out nll", -1),
    "held_out_reverse_kl": ("held-out KL to teacher", -1),
    "held_out_recall_at_1": ("held-out recall at 1", 1),
    "in_batch_recall_at_1": ("recall at 1 in the batch", 1),
    "margin": ("margin", 0),
    "ref_kl": ("KL to the reference", 0),
    "sampler_entropy": ("entropy", 0),
    "nll": ("nll", -1),
    "loss": ("loss", 0),
}
#: Other metrics of which more or less is better, by their names without `held_out_` and without a part of a mixture.
_BETTER = {
    **dict.fromkeys(("score", "reward", "accuracy", "margin", "recall_at_1", "recall_at_10", "mrr", "spearman"), 1),
    **dict.fromkeys(("nll", "reverse_kl", "forward_kl", "teacher_kl"), -1),
}
#: With a reward, the likelihood and the loss of sampled answers mean little.
_NOISE = ("nll", "loss")
#: Settings that do not make two runs two methods: the seed, the place, and what changes no number.
SAME_METHOD = ("seed", "out", "log_to", "tracker_project", "run_name", "device", "save_every", "keep_checkpoints")


@dataclass(frozen=True)
class FinalNumber:
    """A metric at the end of a run and at its start.

    value, steps               the number, and the first and the last of the steps that it is the mean of
    first, first_steps         the same at the start
    """

    key: str
    label: str
    value: float
    steps: tuple[int, int]
    first: float
    first_steps: tuple[int, int]

    @property
    def where(self) -> str:
        """ "step 50" or "mean of steps 41-50"."""
        return _where(self.steps)

    @property
    def first_where(self) -> str:
        """The same of the start."""
        return _where(self.first_steps)


def final_number(history: History, key: str) -> FinalNumber | None:
    """The final number of a metric; None where it was not recorded."""
    series = history.find(key)
    if series is None:
        return None
    label = MAIN[key][0] if key in MAIN else key.replace("_", " ").replace("held out", "held-out")
    count = 1 if is_measured(key) else max(len(series) // SHARE, 1)
    first, last = slice(None, count), slice(-count, None)
    (a, b), (c, d) = ((int(series.steps[part][0]), int(series.steps[part][-1])) for part in (first, last))
    return FinalNumber(
        key, label, float(series.values[last].mean()), (c, d), float(series.values[first].mean()), (a, b)
    )


def final_numbers(history: History) -> list[FinalNumber]:
    """The final numbers of the main metrics and of all held-out ones, the most telling first."""
    own = [key for key in history.keys if is_measured(key) and key not in MAIN]
    has_reward = history.find("reward") is not None
    is_nll = history.find("nll") is not None and history.settings.get("loss") == "cross_entropy"
    left_out = {*(_NOISE if has_reward else ()), *(("loss",) if is_nll else ())}
    numbers = (final_number(history, key) for key in (*MAIN, *own) if key not in left_out)
    return [number for number in numbers if number is not None]


def direction(key: str) -> int:
    """1 where more of a metric is better, -1 where less is, 0 where neither is known, as of a loss beside another loss."""
    return MAIN[key][1] if key in MAIN else _BETTER.get(key.rpartition("/")[2].removeprefix("held_out_"), 0)


def is_measured(key: str) -> bool:
    """Whether a metric is always measured on the same data."""
    return key.startswith("held_out")


@dataclass(frozen=True)
class Row:
    """Runs of one method, which differ by their seed only. numbers: by metric, over those of the runs that recorded it."""

    name: str
    runs: tuple[str, ...]
    numbers: Mapping[str, Mean]


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side. labels: of the metrics, by key; best: the rows with the best mean, by key."""

    labels: Mapping[str, str]
    rows: tuple[Row, ...]
    best: Mapping[str, int]


def compare(histories: Mapping[str, History], keys: Sequence[str] | None = None) -> Comparison:
    """The final numbers of runs, by label. keys: the metrics; by default the main ones that were recorded."""
    by_run = {label: {number.key: number for number in _numbers(own, keys)} for label, own in histories.items()}
    labels = {key: number.label for numbers in by_run.values() for key, number in numbers.items()}
    if keys is None and len({str(history.settings.get("loss")) for history in histories.values()}) > 1:
        labels.pop("loss", None)  # values of different losses do not compare
    order = [*MAIN, *labels]
    labels = dict(sorted(labels.items(), key=lambda one: order.index(one[0])))
    rows = tuple(_row(name, runs, by_run, labels) for name, runs in same_method(histories).items())
    return Comparison(labels, rows, {key: best for key in labels if (best := _best(key, rows)) is not None})


def _numbers(history: History, keys: Sequence[str] | None) -> list[FinalNumber]:
    if keys is None:
        return final_numbers(history)
    return [number for key in keys if (number := final_number(history, key)) is not None]


def same_method(histories: Mapping[str, History]) -> dict[str, tuple[str, ...]]:
    """The labels of runs that differ by `SAME_METHOD` only, by a name: the run's, or the settings in which methods differ."""
    settings = {
        label: {key: value for key, value in history.settings.items() if key not in SAME_METHOD}
        for label, history in histories.items()
    }
    groups: dict[str, list[str]] = {}
    for label in histories:  # runs without settings are methods of their own
        groups.setdefault(repr(sorted(settings[label].items())) if settings[label] else label, []).append(label)
    every = [settings[runs[0]] for runs in groups.values()]
    differing = [
        key
        for key in dict.fromkeys(key for one in every for key in one)
        if len({repr(one.get(key)) for one in every}) > 1
    ]
    return {_name(runs, settings[runs[0]], differing): tuple(runs) for runs in groups.values()}


def _name(runs: Sequence[str], settings: Mapping[str, Any], differing: Sequence[str]) -> str:
    if len(runs) == 1:
        return runs[0]
    said = " ".join(f"{key}={settings[key]}" for key in differing if key in settings)
    return f"{said} ({len(runs)} runs)" if said else ", ".join(runs)


def _row(
    name: str, runs: Sequence[str], by_run: Mapping[str, Mapping[str, FinalNumber]], labels: Mapping[str, str]
) -> Row:
    values = {key: [by_run[run][key].value for run in runs if key in by_run[run]] for key in labels}
    return Row(name, tuple(runs), {key: mean_of(own) for key, own in values.items() if own})


def _best(key: str, rows: Sequence[Row]) -> int | None:
    """The row with the best mean; None where neither more nor less is better, or only one row has the metric."""
    sign = direction(key)
    have = [i for i, row in enumerate(rows) if key in row.numbers]
    if not sign or len(have) < 2:
        return None
    return max(have, key=lambda i: sign * rows[i].numbers[key].value)


def _where(steps: tuple[int, int]) -> str:
    return f"step {steps[0]:,}" if steps[0] == steps[1] else f"mean of steps {steps[0]:,}–{steps[1]:,}"
