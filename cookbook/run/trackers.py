"""Trackers: `--log-to` also sends metrics to TensorBoard, Weights & Biases, MLflow or trackio.

The record stays metrics.jsonl. When a tracker fails there is a warning, and training goes on without it. A resumed run
continues the tracker's run, whose id is kept in the run's folder, in trackers.json.
"""

from __future__ import annotations

import importlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from ...datums import disk
from ..extras import require
from ..redaction import redacted
from .names import TRACKER_IDS

#: After this many failures in a row a tracker is given up: each try may wait for a network.
PATIENCE = 3


class Tracker(Protocol):
    """One run in one tracker. Any of its calls may raise anything."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send a step's metrics."""
        ...

    def close(self, succeeded: bool) -> None:
        """Send the rest, and whether the run succeeded."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a run goes in a tracker: the run's folder, and project and name if the settings have them."""

    folder: Path
    project: str | None = None
    name: str | None = None

    @property
    def run_name(self) -> str:
        """The name that was given, else the folder's."""
        return self.name or self.folder.name


class Trackers:
    """The trackers of a run; use it in a `with` block. A failure gives one warning and is never raised.

    place      where the run goes
    settings   JSON values, sent without secrets
    step       the step that a resumed run continues from, 0 for a new one; a tracker's later steps are replaced
    """

    def __init__(
        self, names: Sequence[str], place: Place, settings: Mapping[str, Any] | None = None, step: int = 0
    ) -> None:
        self._names = list(dict.fromkeys(names))
        self._place = place
        self._settings = redacted(dict(settings or {}))
        self._step = step
        self._open: dict[str, Tracker] = {}
        self._failures: dict[str, int] = {}

    def __enter__(self) -> Trackers:
        ids = _read_ids(self._place)
        for name in self._names:
            try:
                self._open[name] = TRACKERS[name](self._place, self._settings, self._step, ids)
                if ids:
                    disk.write_file(self._place.folder / TRACKER_IDS, json.dumps(ids, indent=2) + "\n")
            except Exception as error:  # a server that is down, a disk that is full, a login that has run out
                self._warn(name, error, "it may get nothing of this run")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name, tracker in self._open.items():
            try:
                tracker.close(succeeded=error is None)
            except Exception as failure:
                self._warn(name, failure, "its end may be missing there")
        self._open.clear()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send a step's metrics to all trackers."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(step, metrics)
                self._failures[name] = 0
            except Exception as error:
                self._failures[name] = self._failures.get(name, 0) + 1
                self._warn(name, error, f"from step {step} on it may lack numbers")
                if self._failures[name] == PATIENCE:
                    del self._open[name]

    def _warn(self, name: str, error: Exception, consequence: str) -> None:
        if self._failures.get(name, 0) <= 1:
            reason = redacted(" ".join(str(error).split()))[:300]
            warnings.warn(
                f"{name} failed ({type(error).__name__}: {reason}): {consequence}. Training goes on; metrics.jsonl has all",
                RuntimeWarning,
                stacklevel=3,
            )


#: A module inside each package, so that a folder called wandb/ in the working directory is not taken for the package.
_MODULES = {
    "tensorboard": "tensorboard.version",
    "wandb": "wandb.sdk",
    "mlflow": "mlflow.tracking",
    "trackio": "trackio.run",
}


def check_trackers(names: Sequence[str]) -> None:
    """Raise MissingExtraError with the pip command for the first tracker that is not installed."""
    for name in names:
        _package(name)


def _package(name: str) -> Any:
    require(_MODULES[name], name, f"log_to {name!r}")
    return importlib.import_module(name)


# --- the four trackers -------------------------------------------------------------------------------------------------


class _TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, place: Place, settings: Mapping[str, Any], step: int, ids: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(place.folder / "tensorboard" / (place.name or "")), purge_step=step + 1 if step else 0
        )
        self._writer.add_text("settings", f"```\n{json.dumps(settings, indent=2)}\n```", step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, succeeded: bool) -> None:
        self._writer.close()


class _Wandb:
    """Online where a key is configured (WANDB_API_KEY or `wandb login`), else files for `wandb sync`."""

    def __init__(self, place: Place, settings: Mapping[str, Any], step: int, ids: dict[str, Any]) -> None:
        wandb = _package("wandb")
        identity = ids.setdefault("wandb", uuid.uuid4().hex[:8])
        self._run = wandb.init(
            project=place.project or os.environ.get("WANDB_PROJECT") or "lossbook",
            name=place.run_name,
            id=identity,
            resume="allow",
            config=dict(settings),
            dir=str(place.folder),
            mode=_wandb_mode(),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, x_disable_meta=True),
        )
        # lossbook's step, since wandb's own only rises: a resumed run repeats some steps.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, "step": step})

    def close(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


def _wandb_mode() -> Literal["online", "offline", "disabled", "shared"]:
    """WANDB_MODE; else online where there is a key, since without one wandb would prompt for it and wait."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled"):
        return mode
    from netrc import NetrcParseError, netrc
    from urllib.parse import urlsplit

    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return "online" if netrc().authenticators(host) else "offline"
    except (OSError, NetrcParseError):
        return "offline"


class _MLflow:
    """A run of the experiment $MLFLOW_EXPERIMENT_NAME ("lossbook") at $MLFLOW_TRACKING_URI or MLflow's default."""

    def __init__(self, place: Place, settings: Mapping[str, Any], step: int, ids: dict[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # by default a step would wait for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._mlflow = _package("mlflow")
        self._client = self._mlflow.MlflowClient()
        if "mlflow" in ids:
            self._id = ids["mlflow"]
            self._client.update_run(self._id, status="RUNNING")
            return
        name = place.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lossbook"
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._id = ids["mlflow"] = self._client.create_run(experiment_id, run_name=place.run_name).info.run_id
        for key, value in settings.items():
            self._client.log_param(self._id, key, json.dumps(value)[:6000])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        metric = self._mlflow.entities.Metric
        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[metric(name, value, now, step) for name, value in metrics.items()])

    def close(self, succeeded: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if succeeded else "FAILED")


class _Trackio:
    """A local database under ~/.cache/huggingface/trackio: `trackio show`. A Space only with TRACKIO_SPACE_ID."""

    def __init__(self, place: Place, settings: Mapping[str, Any], step: int, ids: dict[str, Any]) -> None:
        trackio = _package("trackio")
        name = ids.setdefault("trackio", f"{place.run_name}-{uuid.uuid4().hex[:8]}")
        project = place.project or os.environ.get("TRACKIO_PROJECT") or "lossbook"
        self._run = trackio.init(project=project, name=name, config=dict(settings), resume="allow", embed=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, succeeded: bool) -> None:
        self._run.finish()


#: The trackers by name.
TRACKERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow, "trackio": _Trackio}


def _read_ids(place: Place) -> dict[str, Any]:
    """The ids of the run in each tracker; none where it was in another project, or had another name."""
    try:
        ids = json.loads((place.folder / TRACKER_IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        ids = {}
    named = [place.project, place.name]
    if not isinstance(ids, dict) or ids.get("named", [None, None]) != named:
        ids = {}
    return ids if named == [None, None] else {**ids, "named": named}
