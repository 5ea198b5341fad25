"""Calling a loss's function on packed data: the arguments it is given, and the shape of what it must return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...datums.errors import LossContractError, ShapeError
from .. import stats
from ..batch.outputs import Outputs, check_finite_output
from ..batch.packed import Packed
from ..batch.positions import active_targets, harmless, has_columns, standard_metrics
from ..batch.vocabulary import is_whole
from ..spec.layers import DATUM_OUTPUTS
from ..spec.spec import LossSpec
from ..spec.top import TOP_K, TOP_OUTPUTS, TOP_TOKENS
from ..spec.vocabulary import STUDENT, TEACHER, WIDE_OUTPUTS
from ..stats import Stat
from .whole import InTiles


def evaluate(
    spec: LossSpec, settings: Mapping[str, Any], packed: Packed, outputs: Outputs
) -> tuple[Tensor, dict[str, Stat]]:
    """What the function returns, in the shape it must have, and its metrics beside the standard ones."""
    arguments = _arguments(spec, packed, outputs)
    if is_whole(arguments.get(STUDENT)):
        loss = _in_tiles(spec, settings, packed, arguments, "sum")
        return loss.values(), loss.metrics
    return _called(spec, settings, packed, arguments)


def evaluated_total(
    spec: LossSpec, settings: Mapping[str, Any], packed: Packed, outputs: Outputs, reduction: str
) -> tuple[Tensor, dict[str, Stat]]:
    """The undivided total of what `evaluate` gives, with its graph, and the metrics."""
    arguments = _arguments(spec, packed, outputs)
    if is_whole(arguments.get(STUDENT)):
        loss = _in_tiles(spec, settings, packed, arguments, reduction)
        return loss.evaluated(), loss.metrics
    values, metrics = _called(spec, settings, packed, arguments)
    return packed.total(values, reduction), metrics


def _in_tiles(
    spec: LossSpec, settings: Mapping[str, Any], packed: Packed, arguments: Mapping[str, Any], reduction: str
) -> InTiles:
    def called(given: Mapping[str, Any]) -> tuple[Tensor, dict[str, Stat]]:
        ordered = {name: given[name] for name in spec.parameters}
        return _called(spec, settings, packed, ordered, rows=len(given[STUDENT]))

    return InTiles(spec, arguments, called, lambda values: packed.total(values, reduction))


def _called(
    spec: LossSpec, settings: Mapping[str, Any], packed: Packed, arguments: Mapping[str, Any], rows: int | None = None
) -> tuple[Tensor, dict[str, Stat]]:
    """Call the function. rows: of how many positions the arguments are, where not of all in `packed`."""
    _check_vocabularies(spec, arguments)
    versions = {name: _version(value) for name, value in arguments.items()}
    with stats.counting(packed.targets):  # metrics leave out the slots that only fill a row up
        values, metrics = _values_and_stats(spec.function(*arguments.values(), **settings), spec.name)
        metrics = {**standard_metrics(spec, arguments.get("logprobs")), **metrics}
    if changed := [name for name, value in arguments.items() if _version(value) != versions[name]]:
        raise LossContractError(
            f"{spec.name} changes its {changed[0]} in place, which other losses and micro-batches read too: make a new tensor, "
            "as in x = x * 2"
        )
    _check_shape(spec, values, (rows,) if rows is not None else _shape(spec, arguments, packed))
    # Weights in the type of integers would be cut to integers; half precision is the loss's own choice.
    return values if values.is_floating_point() else values.to(arguments[_first(spec)].dtype), metrics


def check_outputs(spec: LossSpec, packed: Packed, outputs: Outputs) -> None:
    """Raise as `evaluate` does where an output that the function reads is not finite, or a log-probability above 0."""
    for name in spec.outputs:
        check_finite_output(name, _output(spec, packed, outputs, name), packed, outputs, spec.name)


def _arguments(spec: LossSpec, packed: Packed, outputs: Outputs) -> dict[str, Any]:
    """The positional arguments by name, in the model outputs' precision (float32 at least) and on their device."""
    own = {name: _output(spec, packed, outputs, name) for name in spec.outputs}
    if not outputs.is_unchecked:
        for name, value in own.items():
            if isinstance(value, Tensor):
                check_finite_output(name, value, packed, outputs, spec.name)
    like = _like(own[_first(spec)])
    arguments: dict[str, Any] = {}
    for name in spec.parameters:
        if name in own:
            arguments[name] = own[name]
        elif name == "seqs":
            arguments[name] = packed.seqs.to(like)
        elif name == "weights":
            arguments[name] = packed.weights.to(like)
        else:
            value = packed.inputs[name]
            is_float = value is not None and value.is_floating_point()
            arguments[name] = value if value is None else value.to(like if is_float else like.device)
    return arguments


def _output(spec: LossSpec, packed: Packed, outputs: Outputs, name: str) -> Any:
    """Output `name` as the function reads it; whole distributions as they are, to be read in tiles."""
    value = outputs.rows(name, packed)
    if not isinstance(value, Tensor):
        return value
    if name in TOP_OUTPUTS:
        value = _own_top(spec, value, packed, name)
    value = _full_precision(value.detach() if name == TEACHER else value) if name != TOP_TOKENS else value
    value = _neutralised(spec, value, packed) if name == "logprobs" else _over_targets(spec, value, packed)
    return harmless(value, packed.weights) if spec.wants_weights and name not in DATUM_OUTPUTS else value


def _own_top(spec: LossSpec, value: Tensor, packed: Packed, name: str) -> Tensor:
    """The first of the likeliest tokens, as many as the loss reads: another part of a mixture may read more."""
    count = getattr(packed.config, TOP_K)
    if value.shape[1] < count and len(value):
        raise ShapeError(
            f"{spec.name} with {TOP_K}={count} reads as many {name} per position, but there are {value.shape[1]}"
        )
    return value[:, :count] if len(value) else value.new_zeros(0, count) + value.sum()


def _neutralised(spec: LossSpec, logprobs: Tensor, packed: Packed) -> Tensor:
    """[T, K] logprobs with 0 where the target does not count, or the candidate is absent, so that nothing there reaches
    value or gradient. Of no datums, a loss over candidates still sees two dimensions."""
    if logprobs.ndim == 1 and spec.candidates:
        logprobs = logprobs.unsqueeze(1)
    if logprobs.ndim == 1 or spec.wants_weights:
        return logprobs
    masked = (~active_targets(packed.weights, spec) if packed.absent is None else packed.absent).to(logprobs.device)
    return torch.where(masked, torch.zeros((), dtype=logprobs.dtype, device=logprobs.device), logprobs)


def _over_targets(spec: LossSpec, values: Tensor, packed: Packed) -> Tensor:
    """Beside [T, K] logprobs, an output of one number per position is repeated for each target, as inputs are."""
    is_narrow = has_columns(packed.weights, spec) and values.ndim == 1
    return values.unsqueeze(1).expand(packed.weights.shape) if is_narrow else values


def _shape(spec: LossSpec, arguments: Mapping[str, Any], packed: Packed) -> tuple[int, ...]:
    """The shape of what the function must return."""
    if spec.per == "batch":
        return ()
    if spec.per != "token":
        return (packed.value_count,)
    given = [arguments[name] for name in spec.outputs if name not in (*DATUM_OUTPUTS, *TOP_OUTPUTS, *WIDE_OUTPUTS)]
    is_like = given and not spec.candidates and not spec.reads_vocabulary
    return tuple(given[0].shape) if is_like else (len(packed.weights),)


def _check_shape(spec: LossSpec, values: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(values.shape) != expected:
        raise LossContractError(
            f"{spec.name} is per {spec.per}, so it must return losses of shape {list(expected)}, not "
            f"{list(values.shape)}. Return them unreduced: the registry reduces them"
        )


def _check_vocabularies(spec: LossSpec, arguments: Mapping[str, Any]) -> None:
    if TEACHER not in arguments or spec.vocabularies != "same":
        return
    own, other = arguments[STUDENT].shape[-1], arguments[TEACHER].shape[-1]
    if own != other:
        raise ShapeError(
            f"{spec.name} compares student and teacher token by token, but the student has {own} tokens and the teacher {other}"
        )


def _values_and_stats(returned: Any, name: str) -> tuple[Tensor, dict[str, Stat]]:
    values, metrics = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, {})
    if not isinstance(values, Tensor):
        raise LossContractError(
            f"{name} must return a tensor of losses, or (losses, metrics), not {type(returned).__name__}"
        )
    if not isinstance(metrics, Mapping):
        raise LossContractError(f"{name} must return its metrics as a dict, not {type(metrics).__name__}")
    for key, stat in metrics.items():
        if not isinstance(stat, Stat):
            raise LossContractError(
                f"{name}: metric {key!r} is a {type(stat).__name__}, which cannot be merged over micro-batches. "
                "Return stats.mean(tensor), stats.sum, stats.min or stats.max of unreduced values"
            )
    return values, dict(metrics)


def _version(value: Any) -> int:
    """How often a tensor was changed in place; tensors made in inference mode do not count."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _first(spec: LossSpec) -> str:
    """The first output that is no ids."""
    return next(name for name in spec.outputs if name != TOP_TOKENS)


def _like(output: Any) -> Tensor:
    """A tensor of the dtype and on the device of an output as functions read it."""
    return output if isinstance(output, Tensor) else _full_precision(output.tensors[0][:0])


def _full_precision(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
