"""Early stopping: a run ends once its held-out metric has not been better for some evaluations. best.json names the best."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...datums import disk
from ...datums.errors import ConfigError
from ..run.names import BEST
from ..run.runs import Run, read_metrics, writing_run
from ..settings.records import FOLLOWED

if TYPE_CHECKING:
    from ..settings.base import RecipeConfig


class EarlyStopping:
    """Follows the evaluations of a run after its first step, if the settings say so.

    Everything follows from metrics.jsonl, so that a resumed run stops where it would have stopped without the interruption.
    """

    def __init__(self, config: RecipeConfig, run: Run) -> None:
        self._patience = config.early_stopping_patience
        self._asked = config.early_stopping_metric
        self._run = run
        self._metric = ""
        self._best: float | None = None
        self._since = 0
        self.best_step: int | None = None

    def continue_from(self, start: int) -> None:
        """Read the evaluations until the step that the run continues from, 0 at its start."""
        if self._patience is not None and start:
            for row in read_metrics(self._run.metrics):
                if any(name in row for name in FOLLOWED):
                    self.evaluated(int(row["step"]), row)
        self.record()

    @property
    def is_over(self) -> bool:
        """Whether training ends here."""
        return self._patience is not None and self._since >= self._patience

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of an evaluation. Raises ConfigError where it has not the metric that was asked for."""
        if self._patience is None:
            return
        self._metric = self._metric or self._chosen(metrics)
        value = metrics.get(self._metric, math.nan)
        if step == 0:  # the weights at the start are no result
            return
        self._since += 1
        sign = 1 if FOLLOWED[self._metric] else -1
        if not math.isnan(value) and (self._best is None or sign * value > sign * self._best):
            self._best, self.best_step, self._since = value, step, 0

    def record(self) -> None:
        """Write best.json: the metric, its best value and that step, once there is a checkpoint of it; else there is none."""
        if self.best_step is not None and self._run.checkpoint(self.best_step).is_dir():
            best = {"metric": self._metric, "value": self._best, "step": self.best_step}
            self._run.write(BEST, json.dumps(best))
        else:
            with writing_run(self._run.path):
                disk.remove(self._run.path / BEST, must=True)

    def verdict(self, step: int) -> str:
        """Why training ended, in words."""
        best = "was never a number" if self._best is None else f"was best at step {self.best_step} ({self._best:.4g})"
        return f"stopped early after step {step}: {self._metric} {best}, {self._since} evaluations ago"

    def _chosen(self, metrics: Mapping[str, float]) -> str:
        metric = self._asked or next((name for name in FOLLOWED if name in metrics), None)
        if metric is None or metric not in metrics:
            asked = "a metric that early stopping can follow" if metric is None else metric
            raise ConfigError(
                f"the evaluations have no {asked}; they have {', '.join(name for name in metrics if name != 'step') or 'none'}. "
                "Choose another --early-stopping-metric, or leave --early-stopping-patience out"
            )
        return metric
