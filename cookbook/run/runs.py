"""A run's folder.

config.json        all settings; `--config` reads this file
loss.json          the cards of the loss's parts, with the settings they were trained with
data_report.json   rows kept, truncated and dropped, label tokens lost
data_digest.json   a digest of each data file, which a resumed run compares (`data_digest.py`)
provenance.json    for each part of the run: date, command, versions, device, commit, time (`provenance.py`)
metrics.jsonl      one JSON object per line, flushed at each step; curves and reports are drawn from it
samples.jsonl      the model's answers, at some steps
sequences.jsonl    some of the sequences trained on, token by token, at some steps
curve.png          curves of the metrics
best.json          with early stopping: the metric, its best value and that step
checkpoints/       step-000040/ and so on: all that is needed to continue bit for bit
kept/              one file per checkpoint, under its name: hashes of the rows until then, and a recipe's own state
adapter/           the LoRA adapter, for peft
model/             the model for transformers, where all weights were trained
trackers.json, tensorboard/, wandb/   files of the trackers (`trackers.py`)
run.lock, in_use.json   while a process writes here (`opening.py`)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datums import disk
from ...datums.errors import RunError
from ..redaction import redacted
from .names import (
    ADAPTER,
    BEST,
    BY_STEP,
    CHECKPOINTS,
    CONFIG,
    CURVE,
    DATA_DIGEST,
    KEPT,
    LOCK,
    LOSS,
    METRICS,
    MODEL,
    PROVENANCE,
    REPORT,
    TRACKER_FOLDERS,
    TRACKER_IDS,
)
from .opening import FolderLock, Opening
from .records import best_step, keep, kept, read_metrics, read_rows, read_settings, rows_until

if TYPE_CHECKING:
    from ...datums.types import Datum
    from ...trainer import TrainingClient
    from ...trainer.responses import ForwardBackwardOutput, OptimStepResponse
    from .loggers import StepDisplay
    from .provenance import Provenance
    from .trackers import Trackers

__all__ = ["Run", "find_checkpoint", "open_run", "read_metrics", "read_rows", "read_settings", "writing_run"]

_STEP = re.compile(r"step-(\d+)")


class Run:
    """A run's folder, at `path`; see `open_run`. opening: for `make`, which all that writes calls first."""

    def __init__(self, path: Path, opening: Opening | None = None) -> None:
        self.path = path
        self._opening = opening
        self._is_made = opening is None
        self.lock = FolderLock(path)
        self.resumed = opening is not None and opening.resume
        self._with_settings: dict[str, str] = {}
        self.checkpoints = path / CHECKPOINTS
        self.adapter = path / ADAPTER
        self.curve = path / CURVE
        self.metrics = path / METRICS
        self.trackers: Trackers | None = None
        self.about: Provenance | None = None

    def make(self) -> None:
        """Make the folder, unless that was done: delete an earlier run that is not resumed, and write config.json.

        Takes the folder's lock; raises RunError where another run has it, or came before. `release` ends it.
        """
        if self._opening is None:
            return
        with writing_run(self.path):
            if not self._is_made:
                disk.make_folder(self.path)
            self.lock.take()
            if self._is_made:
                return
            self._opening.check(self.path)
            self._is_made = True
            if (self.path / CONFIG).exists() and not self.resumed:
                _delete_run(self.path)
        self.write(CONFIG, json.dumps(dict(self._opening.settings)))
        for name, text in self._with_settings.items():
            self.write(name, text)

    def release(self) -> None:
        """End the folder's lock: the run writes no more."""
        self.lock.release()

    def write_when_made(self, name: str, text: str) -> None:
        """Write a file of the run as `make` does: not before the run is known to start."""
        if self._is_made:
            self.write(name, text)
        else:
            self._with_settings[name] = text

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a step's metrics to metrics.jsonl, flush, and send them to the trackers, if any.

        NaN and infinity become null, since JSON has neither. Raises RunError when the file cannot be written.
        """
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self.append(METRICS, {**finite, "step": step})
        if self.trackers is not None:
            self.trackers.log(step, metrics)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row (JSON values, with a `step`) to one of the `BY_STEP` files, without secrets, and flush it."""
        self.make()
        with writing_run(self.path / name):
            disk.append(self.path / name, json.dumps(redacted(row)) + "\n")

    def log_step(
        self,
        step: int,
        batch: Sequence[Datum],
        output: ForwardBackwardOutput,
        update: OptimStepResponse,
        display: StepDisplay,
        more: Mapping[str, float] | None = None,
        *,
        shown: Sequence[str] = ("loss", "grad_norm"),
    ) -> None:
        """Log and show a step: `loss`, the metrics of the loss and the optimizer, `more`, and tokens per second."""
        of_update = {**update.metrics, "learning_rate": update.learning_rate}
        metrics = {"loss": output.metrics["loss:sum"], **output.metrics, **of_update, **(more or {})}
        del metrics["loss:sum"]
        chosen = {name: metrics[name] for name in shown if name in metrics}
        display.step(step, sum(datum.model_input.length for datum in batch), chosen)
        self.log(step, {**metrics, "tokens_per_second": display.tokens_per_second})

    def last_numbers(self) -> dict[str, float]:
        """The last value of every metric, and of `step`."""
        return {key: value for row in read_metrics(self.metrics) for key, value in row.items()}

    def write(self, name: str, text: str) -> Path:
        """Write a file of the run, completely or not at all; JSON without secrets."""
        self.make()
        if name.endswith(".json"):
            text = json.dumps(redacted(json.loads(text)), indent=2)
        path = self.path / name
        with writing_run(path):
            disk.write_file(path, text + "\n")
        return path

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after `step` steps is."""
        return self.checkpoints / self.checkpoint_name(step)

    def checkpoint_name(self, step: int) -> str:
        """The name of the checkpoint after `step` steps; names sort by step."""
        return f"step-{step:06d}"

    def continue_from(self, training: TrainingClient, total: int) -> int:
        """Load the last checkpoint into the client, drop the rows of later steps, and return its step; 0 without one.

        Raises RunError when the run has made more than `total` steps.
        """
        self.make()
        step, path = self.last_checkpoint()
        if step > total:
            raise RunError(f"{self.path} has already made {step} steps, more than the {total} asked for: raise --steps")
        if path is not None:
            training.load_state(str(path)).result()
        self.forget_after(step)
        return step

    def last_checkpoint(self) -> tuple[int, Path | None]:
        """The step and the path of the newest intact checkpoint; (0, None) without one.

        Damaged ones are skipped, each with a warning.
        """
        from ...trainer.checkpoint.folder import latest_checkpoint

        path = latest_checkpoint(self.checkpoints, prefix="step-")
        match = None if path is None else _STEP.fullmatch(path.name)
        return (0, None) if match is None else (int(match[1]), path)

    def forget_after(self, step: int) -> None:
        """Drop the rows of later steps, which will be repeated; with step 0, all rows.

        Raises RunError where what was written before is damaged.
        """
        record = kept(self.path, self.checkpoint_name(step)) if step else None
        for path in (self.path / name for name in BY_STEP):
            size = None if record is None else record["rows"].get(path.name, {"bytes": 0})["bytes"]
            rows = rows_until(path, step, size) if step and path.exists() else ""
            with writing_run(path):
                disk.write_file(path, rows) if rows else disk.remove(path, must=True)

    def keep(self, step: int, value: Any) -> None:
        """Keep a JSON value, and what the run has recorded, for the checkpoint of a step, which is saved next."""
        self.make()
        with writing_run(self.path / KEPT):
            keep(self.path, self.checkpoint_name(step), value)

    def kept(self, step: int) -> Any:
        """The value kept for the checkpoint of a step; None without one. Raises RunError as `forget_after` does."""
        record = kept(self.path, self.checkpoint_name(step))
        return None if record is None else record["state"]


def open_run(
    path: str | Path,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    may_change: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    later: bool = False,
) -> Run:
    """Begin a run in a folder, or continue the one that is there; two runs are never mixed.

    settings    JSON values; written to config.json
    resume      continue the folder's run, whose settings must be equal, except those in `may_change`
    defaults    values of settings that the folder's run lacks, because they were added since
    overwrite   delete what an earlier run wrote first; other files stay
    later       only check; the folder is made, and an earlier run deleted, when something is first written

    Raises RunError when the folder is not empty and neither is chosen, when it does not hold such a run, and when another
    process writes in it: a folder that is there is locked until `release`, or until the run is forgotten.
    """
    if resume and overwrite:
        raise RunError("choose one of resume, to continue the run, and overwrite, to delete it and start again")
    opening = Opening(settings, resume, overwrite, may_change, defaults or {})
    run = Run(Path(path), opening)
    if not (run.path / LOCK).exists():
        opening.check(run.path)
    if run.path.exists():
        with writing_run(run.path):
            run.lock.take()
        opening.check(run.path)  # under the lock nothing changes any more
    if not later:
        run.make()
    return run


def find_checkpoint(path: str | Path) -> Path:
    """A run's checkpoint: the best where it followed a held-out metric, else the newest intact one. A checkpoint is itself.

    Raises RunError, and DataFileError where the record of the best is damaged.
    """
    run = Run(Path(path))
    if not run.path.is_dir():
        raise RunError(f"{run.path} is neither a run nor a checkpoint: there is no such folder")
    if not (run.path / CONFIG).exists():
        return run.path
    best = best_step(run.path)
    checkpoint = run.last_checkpoint()[1] if best is None else run.checkpoint(best)
    if checkpoint is None:
        raise RunError(f"the run in {run.path} has no checkpoint; did it end before its first? See --save-every")
    return checkpoint


@contextmanager
def writing_run(path: Path) -> Iterator[None]:
    """Turn an OSError on writing `path` into a RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}. Free some space or correct the permissions; what was "
            "written before is still there"
        ) from error


def _delete_run(path: Path) -> None:
    for name in (CHECKPOINTS, KEPT, ADAPTER, MODEL, *TRACKER_FOLDERS):
        disk.remove(path / name, must=True)
    for name in (*BY_STEP, REPORT, DATA_DIGEST, PROVENANCE, BEST, LOSS, CURVE, TRACKER_IDS, CONFIG):
        disk.remove(path / name, must=True)
