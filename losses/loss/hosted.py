"""Losses with the hosted APIs' own signature: `fn(data, logprobs_list) -> (scalar, {"name": float})`.

They see every datum and every position and reduce themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...datums.errors import LengthMismatchError, LossContractError, NonDifferentiableLossError
from ...datums.types import Datum
from .. import stats
from ..batch.outputs import Outputs, real
from ..batch.positions import positions_of, width_of
from ..spec.spec import LossSpec
from ..stats import Stat
from .harmless import harmless_outputs


def call_batch_style(
    spec: LossSpec,
    settings: Mapping[str, Any],
    datums: Sequence[Datum],
    outputs: Any,
    numbers: Sequence[int],
) -> tuple[Tensor, dict[str, Stat]]:
    """Call the function and hold it to its contract: a scalar with a graph, float metrics, inputs left as they were.

    numbers: the datums' indices in the call, for messages.
    """
    (kind,) = spec.outputs
    tensors = harmless_outputs(split_outputs(outputs, datums, kind), datums, numbers, kind, spec.name)
    before = [(d.model_input, dict(d.loss_fn_inputs)) for d in datums]
    copies = [t.detach().clone() for t in tensors]
    returned = spec.function(list(datums), tensors, **settings)
    _check_untouched(spec, datums, before, tensors, copies, numbers)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise LossContractError(
            f"{spec.name} must return (loss, metrics), a scalar tensor and a dict, not {type(returned).__name__}: "
            "end it with `return loss, {}`"
        )
    loss, metrics = returned
    if not isinstance(loss, Tensor) or loss.ndim:
        given = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise LossContractError(f"{spec.name} must return a scalar tensor as its loss, not {given}: sum or average it")
    if not loss.requires_grad and any(t.requires_grad for t in tensors):
        raise NonDifferentiableLossError(
            f"{spec.name}: the loss does not depend on its {kind}, so nothing would be learned. Was it built "
            "with .item(), .detach(), torch.tensor(...) or float(...)?"
        )
    if not isinstance(metrics, Mapping):
        raise LossContractError(f"{spec.name} must return its metrics as a dict, not {type(metrics).__name__}")
    return loss, {str(key): _as_stat(spec, key, value) for key, value in metrics.items()}


def split_outputs(outputs: Any, datums: Sequence[Datum], kind: str) -> list[Tensor]:
    """One tensor per datum, in its own shape."""
    if isinstance(outputs, Mapping):
        outputs = outputs[kind]
    if not isinstance(outputs, Outputs):
        if len(outputs) != len(datums):
            raise LengthMismatchError(f"{len(outputs)} tensors of {kind} for {len(datums)} datums")
        return [real(one, kind, i) for i, one in enumerate(outputs)]
    values = getattr(outputs, kind)
    if kind == "embeddings":
        return list(values.unbind(0))
    tensors = list(torch.split(values, [positions_of(d) for d in datums]))
    if kind != "logprobs" or width_of(datums) is None:
        return tensors
    shapes = [tuple(d.loss_fn_inputs["target_tokens"].shape) for d in datums]
    return [t[:, 0] if len(shape) == 1 else t[:, : shape[1]] for t, shape in zip(tensors, shapes, strict=True)]


def _check_untouched(
    spec: LossSpec,
    datums: Sequence[Datum],
    before: Sequence[tuple[Any, dict[str, Any]]],
    tensors: Sequence[Tensor],
    copies: Sequence[Tensor],
    numbers: Sequence[int],
) -> None:
    for i, datum, (model_input, inputs) in zip(numbers, datums, before, strict=True):
        same_keys = datum.loss_fn_inputs.keys() == inputs.keys()
        if not same_keys or any(datum.loss_fn_inputs[key] is not value for key, value in inputs.items()):
            raise LossContractError(f"{spec.name} changed loss_fn_inputs of datum {i}; copy what you want to change")
        if datum.model_input is not model_input:
            raise LossContractError(f"{spec.name} changed model_input of datum {i}")
    for i, tensor, copy in zip(numbers, tensors, copies, strict=True):
        # Not their version counters: a change through .data or .numpy() does not count there.
        if not torch.equal(tensor.detach().nan_to_num(), copy.nan_to_num()):
            raise LossContractError(
                f"{spec.name} changed the {', '.join(spec.outputs)} of datum {i} in place; clone them first"
            )


def _as_stat(spec: LossSpec, key: Any, value: Any) -> Stat:
    if isinstance(value, Stat):
        return value
    try:
        number = None if isinstance(value, str) else float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        number = None
    if number is None:
        raise LossContractError(f"{spec.name}: metric {key!r} must be a number, not {value!r}")
    return stats.mean(torch.tensor([number], dtype=torch.float64))
