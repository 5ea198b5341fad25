"""What a call's loss and its result are on the way: names and settings instead of code, arrays instead of objects."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...datums.errors import LossbookError, WorkerError
from ...losses.loss.loss import Loss, LossLike, Mixture
from ...losses.registry import get_loss, spec_of
from ...losses.spec.spec import LossSpec
from ...losses.stats import Stat
from ..responses import ForwardBackwardOutput
from .flat import FlatTensors

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class SentPart:
    """A loss with its factor. name: an id or "module:function". module: where its function is; it is imported first."""

    factor: float
    name: str
    module: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class SentLoss:
    """A loss, or the parts of a mixture."""

    parts: tuple[SentPart, ...]
    is_mixture: bool

    def received(self) -> LossLike:
        """The loss, made here. Raises WorkerError where the module of its function cannot be imported here."""
        for part in self.parts:
            try:
                importlib.import_module(part.module)
            except ImportError as error:
                raise WorkerError(
                    f"the loss {part.name} is in {part.module}, which a worker cannot import: {error}. Install it there, or "
                    "put it on a path that all machines share"
                ) from error
        parts = [(part.factor, get_loss(part.name, **part.settings).parts[0][1]) for part in self.parts]
        return Mixture(parts) if self.is_mixture else parts[0][1]


def sent_loss(loss: LossLike) -> SentLoss | None:
    """A loss as its name and settings; None if workers cannot import it, and it is evaluated in this process.

    That is a function of `__main__` or inside another function, one that holds parameters, and one that reads whole datums.
    """
    parts = [_sent_part(factor, part) for factor, part in loss.parts]
    known = [part for part in parts if part is not None]
    return SentLoss(tuple(known), isinstance(loss, Mixture)) if len(known) == len(parts) else None


def _sent_part(factor: float, loss: Loss) -> SentPart | None:
    settings = {name: getattr(loss.config, name) for name in loss.config.model_fields_set}
    function = _written(loss)
    if function is None or "<locals>" in getattr(function, "__qualname__", "<locals>"):
        return None
    if loss.spec.is_batch_style or holds_parameters(function) or not all(map(_is_plain, settings.values())):
        return None
    module = function.__module__
    for name in (loss.name, f"{module}:{function.__qualname__}"):
        try:
            again = get_loss(name, **settings)
        except LossbookError:
            continue
        if isinstance(again, Loss) and _is_same(again, loss):
            return None if module == "__main__" else SentPart(factor, name, module, settings)
    return None


def _written(loss: Loss) -> Any:
    """The function that somebody wrote: of a loss that weighs another, the other's; None where no id has it."""
    if not hasattr(loss.spec.function, "made_by"):
        return inspect.unwrap(loss.spec.function)
    try:
        return inspect.unwrap(spec_of(loss.name.partition("+")[0]).function)
    except LossbookError:
        return None


def _is_same(one: Loss, other: Loss) -> bool:
    """Whether two losses are the same function with the same settings. One that weighs another is made anew each time."""
    if repr(one) != repr(other):
        return False
    if one.spec.function is other.spec.function:
        return True
    return (facts := _facts(one.spec)) is not None and facts == _facts(other.spec)


def _facts(spec: LossSpec) -> LossSpec | None:
    """What a loss that weighs another says of itself, without the functions that are made anew each time."""
    if not hasattr(spec.function, "made_by"):
        return None
    return replace(spec, function=_facts, make_config=_facts, conflict=None, groups=None)


def holds_parameters(function: Any) -> bool:
    """Whether a loss's function is a module, or it or a function that it calls refers to tensors that are trained.

    Those are in this process alone. A function that cannot be looked into counts as one that does.
    """
    if not inspect.isfunction(function) or hasattr(function, "module"):
        return True
    waiting, seen = [function], {function}
    while waiting:
        try:
            names = inspect.getclosurevars(waiting.pop())
        except ValueError:  # a cell that is still empty
            return True
        for one in (*names.nonlocals.values(), *names.globals.values()):
            if isinstance(one, torch.nn.Module) or getattr(one, "requires_grad", False) is True:
                return True
            if inspect.isfunction(one) and one not in seen and one.__module__ == function.__module__:
                seen.add(one)
                waiting.append(one)
    return False


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


@dataclass(frozen=True, eq=False)
class SentOutput:
    """One rank's share of a `ForwardBackwardOutput`: what it says of its own datums; the first rank's has all else."""

    outputs: FlatTensors
    metrics: dict[str, float]
    kind: str
    stats: dict[str, tuple[Any, np.ndarray, np.ndarray, bool]]

    @classmethod
    def of(cls, output: ForwardBackwardOutput) -> SentOutput:
        """Everything in it is copied into plain numbers and arrays."""
        stats = {
            name: (stat.kind, stat.total.cpu().numpy(), stat.count.cpu().numpy(), stat.is_known)
            for name, stat in output.stats.items()
        }
        return cls(FlatTensors.of(output.loss_fn_outputs), output.metrics, output.loss_fn_output_type, stats)


def merged(shares: Sequence[SentOutput]) -> ForwardBackwardOutput:
    """All ranks' shares as one output: each datum's own, and the metrics of the first rank."""
    first, dicts = shares[0], [own_copy(share.outputs).dicts() for share in shares]
    outputs = [next((one for one in of_datum if one), {}) for of_datum in zip(*dicts, strict=True)]
    return ForwardBackwardOutput(outputs, first.metrics, first.kind, _stats(first.stats))


def own_copy(flat: FlatTensors) -> FlatTensors:
    """A copy in this process's own memory: data sent by another process is in shared memory."""
    return replace(flat, ints=flat.ints.copy(), floats=flat.floats.copy())


def _stats(sent: Mapping[str, tuple[Any, np.ndarray, np.ndarray, bool]]) -> dict[str, Stat]:
    return {
        name: Stat(kind, torch.from_numpy(np.array(total)), torch.from_numpy(np.array(count)), is_known=is_known)
        for name, (kind, total, count, is_known) in sent.items()
    }


@dataclass(frozen=True, eq=False)
class SentWeight:
    """A tensor of any dtype. content: its bytes; NumPy has no bfloat16."""

    content: np.ndarray
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, weight: torch.Tensor) -> SentWeight:
        """A copy in the host's memory."""
        own = weight.detach().to("cpu", copy=True).contiguous()
        return cls(own.reshape(-1).view(torch.uint8).numpy(), own.dtype, tuple(own.shape))

    def tensor(self) -> torch.Tensor:
        """The tensor again."""
        return torch.from_numpy(np.array(self.content)).view(self.dtype).reshape(self.shape)
