"""A run's folder: its settings, what became of its data, a line of metrics for each step, checkpoints, the adapter.

config.json        the settings, all of them; `--config` takes this file back
loss.json          the cards of the loss's parts, with the settings they were trained with
data_report.json   rows kept, truncated and dropped, label tokens lost
metrics.jsonl      one JSON object a line, flushed as it happens; the record that everything else is drawn from
samples.jsonl      what the model answered, at some steps
sequences.jsonl    some of the sequences it was trained on, token by token, at some steps
curve.png          the metrics, drawn
checkpoints/       step-000040/ and so on: all that is needed to continue bit for bit
kept/              what a recipe keeps beside a checkpoint, under its name
adapter/           the LoRA adapter as peft loads it
model/             where all weights were trained: the model as transformers loads it
trackers.json, tensorboard/, wandb/   what trackers keep here (`trackers.py`)
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datums.errors import DataFileError, RunError
from .names import (
    ADAPTER,
    BY_STEP,
    CHECKPOINTS,
    CONFIG,
    CURVE,
    KEPT,
    LOSS,
    METRICS,
    MODEL,
    REPORT,
    TRACKER_FOLDERS,
    TRACKER_IDS,
)

if TYPE_CHECKING:
    from ...datums.types import Datum
    from ...trainer import TrainingClient
    from ...trainer.responses import ForwardBackwardOutput, OptimStepResponse
    from .loggers import StepDisplay
    from .trackers import Trackers

_STEP = re.compile(r"step-(\d+)")


class Run:
    """One run's folder. Make one with `open_run`; `path` is the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.adapter = path / ADAPTER
        self.curve = path / CURVE
        self.metrics = path / METRICS
        self.trackers: Trackers | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line of the metrics and the step, and flush it; send it to the trackers, if there are any.

        NaN and infinity become null, for JSON has none. Raises RunError when the file cannot be written.
        """
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self.append(METRICS, {**finite, "step": step})
        if self.trackers is not None:
            self.trackers.log(step, metrics)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row (JSON values, `step` among them) to one of the files `BY_STEP`, and flush it."""
        with _writing(self.path / name), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

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
        """Log and show a step's numbers: `loss`, all that the loss and the optimizer report, `more`, and the speed."""
        metrics = {"loss": output.metrics["loss:sum"], **output.metrics, **update.metrics, **(more or {})}
        del metrics["loss:sum"], metrics["step"]
        chosen = {name: metrics[name] for name in shown if name in metrics}
        display.step(step, sum(datum.model_input.length for datum in batch), chosen)
        self.log(step, {**metrics, "tokens_per_second": display.tokens_per_second})

    def last_numbers(self) -> dict[str, float]:
        """The last value of every metric, `step` among them."""
        return {key: value for row in read_metrics(self.metrics) for key, value in row.items()}

    def write(self, name: str, text: str) -> Path:
        """Write a file of the run, whole or not at all."""
        path = self.path / name
        scratch = path.with_name(f".{path.name}.tmp")
        with _writing(path):
            scratch.write_text(text + "\n", encoding="utf-8")
            os.replace(scratch, path)
        return path

    def checkpoint_name(self, step: int) -> str:
        """What the checkpoint after `step` steps is called; such names sort by step."""
        return f"step-{step:06d}"

    def continue_from(self, training: TrainingClient, total: int) -> int:
        """Load the last checkpoint into a client and return its step, having dropped metrics of later steps; else 0.

        Raises RunError when the run has more steps behind it than the `total` that it is to have.
        """
        step, path = self.last_checkpoint()
        if step > total:
            raise RunError(f"{self.path} has {step} steps behind it, more than the {total} that were asked for")
        if path is not None:
            training.load_state(str(path)).result()
        self.forget_after(step)
        return step

    def last_checkpoint(self) -> tuple[int, Path | None]:
        """The step and the place of the newest sound checkpoint; (0, None) when there is none.

        Damaged ones are skipped with a warning that names them.
        """
        from ...trainer.checkpoint.folder import latest_checkpoint

        found = latest_checkpoint(self.checkpoints, prefix="step-")
        match = None if found is None else _STEP.fullmatch(found.name)
        return (0, None) if match is None else (int(match[1]), found)

    def forget_after(self, step: int) -> None:
        """Drop the rows of later steps, which are about to be made again; those of step 0 too when nothing was saved."""
        for name in BY_STEP:
            kept = [row for row in read_rows(self.path / name) if row["step"] <= step and step > 0]
            self.write(name, "\n".join(map(json.dumps, kept))) if kept else (self.path / name).unlink(missing_ok=True)

    def keep(self, step: int, value: Any) -> None:
        """Keep a JSON value beside the checkpoint of a step that is about to be saved."""
        with _writing(self.path / KEPT):
            (self.path / KEPT).mkdir(exist_ok=True)
        self.write(f"{KEPT}/{self.checkpoint_name(step)}.json", json.dumps(value))

    def kept(self, step: int) -> Any:
        """What was kept beside the checkpoint of a step; None when nothing was."""
        path = self.path / KEPT / f"{self.checkpoint_name(step)}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def open_run(
    path: str | Path,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    may_change: Collection[str] = (),
) -> Run:
    """Begin a run in a folder, or go on with the one that is there; two runs are never mixed.

    settings    JSON values; written to config.json
    resume      the folder must hold a run with the same settings, those in `may_change` apart
    overwrite   what an earlier run wrote is deleted first; other files stay

    Raises RunError when the folder holds anything and neither is chosen, or when it is not what was said.
    """
    run = Run(Path(path))
    if resume and overwrite:
        raise RunError("choose one of resume, to continue the run, and overwrite, to delete it and begin anew")
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
        _delete_run(run.path)
    with _writing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    run.write(CONFIG, json.dumps(dict(settings), indent=2))
    return run


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the run in a folder. Raises RunError when it holds none."""
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
    """The newest sound checkpoint of a run's folder, or `path` itself where it is a checkpoint. Raises RunError."""
    run = Run(Path(path))
    if not run.path.is_dir():
        raise RunError(f"{run.path} is no folder, so neither a run nor a checkpoint")
    if not (run.path / CONFIG).exists():
        return run.path
    found = run.last_checkpoint()[1]
    if found is None:
        raise RunError(f"the run in {run.path} has no checkpoint; did it end before its first? See --save-every")
    return found


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, null as NaN; [] when there is no file. Raises as `read_rows` does."""
    return [{key: math.nan if v is None else v for key, v in row.items()} for row in read_rows(path)]


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of one of a run's files `BY_STEP`; [] when there is no file.

    A last line without its end, as a killed process leaves it, is dropped with a warning. Any other line that is no
    row raises DataFileError naming it.
    """
    path = Path(path)
    if not path.exists():
        return []
    *whole, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:
        warnings.warn(f"{path}: dropped an unfinished last line", stacklevel=2)
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
            rows.append({"step": row["step"], **row})
        except (ValueError, AttributeError, KeyError, TypeError):
            raise DataFileError(f"{path.name}, line {number}: not a row of {path.stem}: {line[:80]!r}") from None
    return rows


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the system has to say about a file that is written into a RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}. Free some space or mend the permissions; what was "
            "written before is still there"
        ) from error


def _has_content(path: Path) -> bool:
    """Whether a folder holds more than the beginning of a run that ended before its first number."""
    return any(entry.name not in (CONFIG, REPORT) for entry in path.iterdir())


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
    read_settings(path)  # a folder that holds no run is not ours to empty
    for name in (*BY_STEP, REPORT, LOSS, CURVE, TRACKER_IDS):
        (path / name).unlink(missing_ok=True)
    for name in (CHECKPOINTS, KEPT, ADAPTER, MODEL, *TRACKER_FOLDERS):
        if (path / name).exists():
            shutil.rmtree(path / name)
    (path / CONFIG).unlink()
