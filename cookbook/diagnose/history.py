"""The metrics of a run as curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...datums.errors import DataFileError, RunError
from ..inspect.recorded import read_loss
from ..run.names import CONFIG, METRICS, REPORT
from ..run.records import read_json
from ..run.runs import read_metrics, read_settings

#: Larger magnitudes count as infinite: drawing would overflow.
LARGEST = 1e100
#: Trends compare the means of the first and the last 1 / SHARE of a curve, because single values are noisy.
SHARE = 5


@dataclass(frozen=True)
class Series:
    """One metric. steps: [N] int; values: [N] float64, all finite."""

    name: str
    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    @property
    def early(self) -> float:
        """The mean of the first fifth."""
        return float(self.values[: max(len(self) // SHARE, 1)].mean())

    @property
    def late(self) -> float:
        """The mean of the last fifth."""
        return float(self.values[-max(len(self) // SHARE, 1) :].mean())

    @property
    def last(self) -> float:
        """The last value."""
        return float(self.values[-1])


@dataclass(frozen=True)
class History:
    """The rows of a metrics.jsonl, NaN for numbers that were not finite, and what else the run's folder says.

    settings   config.json
    data       data_report.json
    loss       loss.json
    """

    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The recorded metrics in order of first appearance, without `step`."""
        return [key for key in dict.fromkeys(key for row in self.rows for key in row) if key != "step"]

    def named(self, name: str) -> list[str]:
        """The keys `name` and, in a mixture, `part/name` (`grpo/clip_fraction`)."""
        return [key for key in self.keys if is_named(key, name)]

    def series(self, key: str) -> Series:
        """The finite values of a metric."""
        points = [(row["step"], row[key]) for row in self.rows if key in row]
        steps, values = (
            (np.array(column) for column in zip(*points, strict=True)) if points else (np.zeros(0), np.zeros(0))
        )
        finite = np.isfinite(values.astype(np.float64))
        return Series(key, steps[finite].astype(np.int64), values[finite].astype(np.float64))

    def find(self, *names: str, at_least: int = 1) -> Series | None:
        """The first of these metrics that has `at_least` finite values; None if none has."""
        candidates = (self.series(key) for name in names for key in self.named(name))
        return next((series for series in candidates if len(series) >= at_least), None)

    def loss_names(self) -> set[str]:
        """The name of the loss, or of the parts of a mixture."""
        return {part["name"] for part in self.loss["parts"]} if self.loss else {str(self.settings.get("loss"))}

    def loss_settings(self) -> dict[str, Any]:
        """The settings that the loss was trained with, its reduction among them; {} for an unknown one."""
        if self.loss:
            own = {
                name: one["default"] for part in reversed(self.loss["parts"]) for name, one in part["settings"].items()
            }
            return {**own, "reduction": self.loss["parts"][0]["reduction"]} if self.loss["parts"] else own
        from ...losses.registry import list_losses, spec_of

        name, given = str(self.settings.get("loss")), self.settings.get("loss_config")
        if name not in list_losses():
            return dict(given) if isinstance(given, Mapping) else {}
        spec = spec_of(name)
        fields = {key: one.get_default() for key, one in spec.config.model_fields.items() if not one.is_required()}
        return {"reduction": spec.reduction, **fields, **(given if isinstance(given, Mapping) else {})}


def read_history(folder: str | Path) -> History:
    """The metrics of the run in a folder. Raises RunError for a folder without metrics, naming runs below it."""
    folder = Path(folder)
    if not (folder / METRICS).is_file():
        raise RunError(f"{folder} holds no {METRICS}, so it is not the folder of a run.{_runs_below(folder)}")
    rows = read_metrics(folder / METRICS)
    if not rows:
        raise RunError(f"{folder / METRICS} is empty: the run ended before its first number")
    settings = read_settings(folder) if (folder / CONFIG).exists() else {}
    data = read_json(folder / REPORT)
    numbers = [_numbers(row, line) for line, row in enumerate(rows, start=1)]
    return History(numbers, settings, data if isinstance(data, dict) else {}, read_loss(folder))


def is_named(key: str, name: str) -> bool:
    """Whether a recorded key is the metric `name`, of the loss itself or of a part of a mixture."""
    return key == name or key.rpartition("/")[2] == name


def is_number(value: Any) -> bool:
    """Whether a recorded value can be drawn; a row may also hold notes of the user."""
    return isinstance(value, int | float)


def _numbers(row: Mapping[str, Any], line: int) -> dict[str, float]:
    """The numbers of a row; other values are ignored. Raises DataFileError if `step` is not an integer."""
    if not isinstance(row["step"], int):
        raise DataFileError(f"{METRICS}, line {line}: step is {row['step']!r}, not an integer")
    numbers = {key: value for key, value in row.items() if is_number(value)}
    finite = {key: float(value) if abs(value) < LARGEST else math.nan for key, value in numbers.items()}
    return {**finite, "step": row["step"]}


def _runs_below(folder: Path) -> str:
    if not folder.is_dir():
        return f" There is no folder of that name{'' if folder.parent.is_dir() else f', nor {folder.parent}'}."
    below = sorted(path.parent for path in folder.glob(f"*/{METRICS}"))
    shown = ", ".join(map(str, below[:5])) + (", ..." if len(below) > 5 else "")
    return f" There are runs below it: {shown}" if below else " Give the --out folder of the run."
