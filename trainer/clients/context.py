"""`ClientContext`: what the clients of a service share, and what several of their methods do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...datums.errors import LossConfigError, ModelError
from ...losses.ids import LossId, MixtureId, PresetId
from ...losses.loss.loss import LossLike
from ...losses.registry import get_loss
from ..engine.settings import EngineSettings
from ..responses import SaveStateResponse
from ..training.protocol import Models
from .futures import Calls, Worker

T = TypeVar("T")
#: A call's loss: an id, which editors complete, "module:function", a `Loss` or mixture, or a function.
LossFunction = LossId | PresetId | MixtureId | str | LossLike | Callable[..., Any]


@dataclass(frozen=True)
class ClientContext:
    """What the clients of a service share.

    worker          runs all their calls, one after the other
    models          where their models live
    settings        how their models run
    checkpoint_dir  where `save_state` writes
    sampling        runs the calls of samplers of a model in training, where these have workers of their own
    """

    worker: Worker
    models: Models
    settings: EngineSettings
    checkpoint_dir: Path
    sampling: Worker | None = None

    @classmethod
    def of(cls, models: Models, settings: EngineSettings, folder: Path, *, samples_apart: bool) -> ClientContext:
        """A context with threads of its own; samples_apart: models in training have workers of their own to sample from."""
        joins = (
            not settings.deterministic
        )  # what runs together depends on when calls come, and rounding on what runs together
        sampling = Worker("lossbook-sampling", joins=joins) if samples_apart else None
        return cls(Worker(deterministic=settings.deterministic, joins=joins), models, settings, folder, sampling)

    def load(self, make: Callable[[Models], T]) -> T:
        """A model that is made when the turn of all calls so far is over, on their thread, and what it raises.

        Not beside them: libraries that make models change settings of the process meanwhile, such as torch's default dtype.
        """
        return self.in_turn("load a model", lambda: make(self.models))

    def in_turn(self, label: str, call: Callable[[], T]) -> T:
        """What `call` returns, run on the thread of all calls when the turn of those so far is over, and what it raises."""
        return Calls("service", self.worker).submit(label, call).result()


def loss_and_top_k(
    loss_fn: LossFunction, config: Mapping[str, Any] | None, top_k: int | None
) -> tuple[LossLike, int | None]:
    """The loss of a forward, and how many of the likeliest tokens it returns; Fireworks' API has that number among the settings.

    Raises LossConfigError where it is given twice.
    """
    settings = settings_of(config)
    if "top_k" in settings and not _has_setting(loss_fn, "top_k"):
        if top_k is not None:
            raise LossConfigError(f"top_k is given twice: {top_k!r}, and {settings['top_k']!r} in loss_fn_config")
        top_k = settings.pop("top_k")
    return get_loss(loss_fn, **settings).copied(), top_k


def settings_of(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of `loss_fn_config`. Raises LossConfigError for what is no mapping."""
    if config is not None and not isinstance(config, Mapping):
        raise LossConfigError(f"loss_fn_config is settings by name, such as {{'clip_high': 1.28}}, not {config!r:.60}")
    return dict(config or {})


def _has_setting(loss_fn: LossFunction, name: str) -> bool:
    return any(name in part.spec.config.model_fields for _, part in get_loss(loss_fn).parts)


def saved(path: Path) -> SaveStateResponse:
    """The response of a call that saved something."""
    return SaveStateResponse(str(path))


def at_place(path: str | Path, call: Callable[[Path], None]) -> Callable[[], SaveStateResponse]:
    """A call with a place on disk, wherever the process goes before the call's turn comes."""
    place = Path(path).absolute()

    def run() -> SaveStateResponse:
        call(place)
        return SaveStateResponse(str(place))

    return run


def check_checkpoint_type(kind: str | None) -> None:
    """Raise ModelError for a kind of checkpoint that Fireworks knows and lossbook does not write."""
    if kind not in (None, "base"):
        raise ModelError(f"checkpoint_type={kind!r}: weights are saved whole ('base'); export_model writes merged ones")
