"""A run's folder.

config.json        all settings; `--config` reads this file
loss.json          the cards of the loss's parts, with the settings they were trained with
data_report.json   rows kept, truncated and dropped, label tokens lost
data_digest.json   a digest of each data file, which a resumed run compares (`data_digest.py`)
metrics.jsonl      one JSON object per line, flushed at each step; curves and reports are drawn from it
samples.jsonl      the model's answers, at some steps
sequences.jsonl    some of the sequences trained on, token by token, at some steps
curve.png          curves of the metrics
checkpoints/       step-000040/ and so on: all that is needed to continue bit for bit
kept/              a recipe's own state, one file per checkpoint, under the checkpoint's name
adapter/           the LoRA adapter, for peft
model/             the model for transformers, where all weights were trained
trackers.json, tensorboard/, wandb/   files of the trackers (`trackers.py`)
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
from .names import (
    ADAPTER,
    BY_STEP,
    CHECKPOINTS,
    CONFIG,
    CURVE,
    DATA_DIGEST,
    KEPT,
    LOSS,
    METRICS,
    MODEL,
    REPORT,
    TRACKER_FOLDERS,
    TRACKER_IDS,
)
from .records import read_metrics, read_rows

if TYPE_CHECKING:
    from ...datums.types import Datum
    from ...trainer import TrainingClient
    from ...trainer.responses import ForwardBackwardOutput, OptimStepResponse
    from .loggers import StepDisplay
    from .trackers import Trackers

_STEP = re.compile(r"step-(\d+)")


class Run:
    """A run's folder, at `path`; see `open_run`. settings: for `make`, which all that writes calls first."""

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None, *, resumed: bool = False) -> None:
        self.path = path
        self._settings = settings
        self.resumed = resumed
        self._with_settings: dict[str, str] = {}
        self.checkpoints = path / CHECKPOINTS
        self.adapter = path / ADAPTER
        self.curve = path / CURVE
        self.metrics = path / METRICS
        self.trackers: Trackers | None = None

    def make(self) -> None:
        """Make the folder, unless that was done: delete an earlier run that is not resumed, and write config.json."""
        if self._settings is None:
            return
        settings, self._settings = self._settings, None
        with writing_run(self.path):
            disk.make_folder(self.path)
        if (self.path / CONFIG).exists() and not self.resumed:
            with writing_run(self.path):
                _delete_run(self.path)
        self.write(CONFIG, json.dumps(dict(settings), indent=2))
        for name, text in self._with_settings.items():
            self.write(name, text)

    def write_when_made(self, name: str, text: str) -> None:
        """Write a file of the run as `make` does: not before the run is known to start."""
        if self._settings is None:
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
        """Append a row (JSON values, with a `step`) to one of the `BY_STEP` files, and flush it."""
        self.make()
        with writing_run(self.path / name):
            disk.append(self.path / name, json.dumps(row) + "\n")

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
        metrics = {"loss": output.metrics["loss:sum"], **output.metrics, **update.metrics, **(more or {})}
        del metrics["loss:sum"], metrics["step"]
        chosen = {name: metrics[name] for name in shown if name in metrics}
        display.step(step, sum(datum.model_input.length for datum in batch), chosen)
        self.log(step, {**metrics, "tokens_per_second": display.tokens_per_second})

    def last_numbers(self) -> dict[str, float]:
        """The last value of every metric, and of `step`."""
        return {key: value for row in read_metrics(self.metrics) for key, value in row.items()}

    def write(self, name: str, text: str) -> Path:
        """Write a file of the run, completely or not at all."""
        self.make()
        path = self.path / name
        with writing_run(path):
            disk.write_file(path, text + "\n")
        return path

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
        """Drop the rows of later steps, which will be repeated; with step 0, all rows."""
        for name in BY_STEP:
            kept = [row for row in read_rows(self.path / name) if row["step"] <= step and step > 0]
            if kept:
                self.write(name, "\n".join(map(json.dumps, kept)))
                continue
            with writing_run(self.path / name):
                disk.remove(self.path / name, must=True)

    def keep(self, step: int, value: Any) -> None:
        """Keep a JSON value for the checkpoint of a step, which is saved next."""
        self.make()
        with writing_run(self.path / KEPT):
            disk.make_folder(self.path / KEPT)
        self.write(f"{KEPT}/{self.checkpoint_name(step)}.json", json.dumps(value))

    def kept(self, step: int) -> Any:
        """The value kept for the checkpoint of a step; None without one."""
        path = self.path / KEPT / f"{self.checkpoint_name(step)}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def open_run(
    path: str | Path,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    may_change: Collection[str] = (),
    later: bool = False,
) -> Run:
    """Begin a run in a folder, or continue the one that is there; two runs are never mixed.

    settings    JSON values; written to config.json
    resume      continue the folder's run, whose settings must be equal, except those in `may_change`
    overwrite   delete what an earlier run wrote first; other files stay
    later       only check; the folder is made, and an earlier run deleted, when something is first written

    Raises RunError when the folder is not empty and neither is chosen, and when it does not hold such a run.
    """
    run = Run(Path(path), settings, resumed=resume)
    if resume and overwrite:
        raise RunError("choose one of resume, to continue the run, and overwrite, to delete it and start again")
    if run.path.exists() and not run.path.is_dir():
        raise RunError(f"{run.path} is a file; a run needs a folder")
    if resume:
        _check_same(run.path, settings, may_change)
    elif run.path.exists() and _has_content(run.path):
        if not overwrite:
            raise RunError(
                f"{run.path} is not empty. Choose --resume to continue the run in it, --overwrite to replace it, or "
                "another folder with --out"
            )
        read_settings(run.path)  # raises for a folder without a run, which must not be emptied
    if not later:
        run.make()
    return run


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the run in a folder. Raises RunError where there is none."""
    try:
        settings = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} holds no run: there is no {CONFIG} in it. Is --out the folder of the run?") from None
    except ValueError as error:
        raise RunError(f"{path / CONFIG} is damaged: {error}") from None
    if not isinstance(settings, dict):
        raise RunError(f"{path / CONFIG} is damaged: it holds no settings")
    return settings


def find_checkpoint(path: str | Path) -> Path:
    """The newest intact checkpoint of a run's folder; `path` itself where it is a checkpoint. Raises RunError."""
    run = Run(Path(path))
    if not run.path.is_dir():
        raise RunError(f"{run.path} is neither a run nor a checkpoint: there is no such folder")
    if not (run.path / CONFIG).exists():
        return run.path
    checkpoint = run.last_checkpoint()[1]
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


def _has_content(path: Path) -> bool:
    """Whether a folder holds more than a run that ended before its first metrics."""
    return any(entry.name not in (CONFIG, REPORT, DATA_DIGEST) for entry in path.iterdir())


def _check_same(path: Path, settings: Mapping[str, Any], may_change: Collection[str]) -> None:
    before = read_settings(path)
    now = json.loads(json.dumps(dict(settings)))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    refused = [key for key in changed if key not in may_change]
    if refused:
        shown = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in refused)
        raise RunError(
            f"{path} holds a run with other settings, so it cannot be continued: {shown}. Take its settings with "
            f"--config {path / CONFIG}"
        )


def _delete_run(path: Path) -> None:
    for name in (CHECKPOINTS, KEPT, ADAPTER, MODEL, *TRACKER_FOLDERS):
        disk.remove(path / name, must=True)
    for name in (*BY_STEP, REPORT, DATA_DIGEST, LOSS, CURVE, TRACKER_IDS, CONFIG):
        disk.remove(path / name, must=True)
