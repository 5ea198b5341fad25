"""A loss as a graph of one datum, and each datum's share of a call: what makes the sum of graphs the loss of the whole call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..datums.errors import TraceError
from ..datums.types import Datum
from ..losses.loss.loss import Loss
from ..losses.spec.settings import WEIGHTS_KEY
from ..losses.spec.spec import GROUP_KEY
from ..losses.trace.trace import TracedLoss


def config_of(loss: Loss) -> dict[str, Any]:
    """The settings that are not the defaults."""
    fields = type(loss.config).model_fields
    values = {key: getattr(loss.config, key) for key in fields}
    return {key: value for key, value in values.items() if value != fields[key].get_default(call_default_factory=True)}


def under(loss: Loss, reduction: str) -> Loss:
    """The loss with another reduction."""
    config = {key: value for key, value in config_of(loss).items() if key not in ("norm_length", "reduction")}
    return Loss(loss.spec, {**config, "reduction": reduction})


def tensors_of(loss: Loss, datum: Datum) -> dict[str, Tensor]:
    """What the loss reads of a datum by the names of its function, and its weights: 1 where it carries none."""
    carried = datum.loss_fn_inputs
    tensors = {one.name: carried[key].to_torch() for one in loss.spec.inputs for key in one.keys if key in carried}
    targets, key = carried["target_tokens"], loss.weights or WEIGHTS_KEY
    shape = list(targets.shape[:1] if loss.spec.candidates else targets.shape)
    tensors[key] = carried[key].to_torch() if key in carried else torch.ones(shape)
    return tensors


def traced(loss: Loss, datums: Sequence[Datum]) -> TracedLoss:
    """The graph of the loss's sum, which reads what all datums carry. Raises TraceError."""
    summed = under(loss, "sum")
    every = [tensors_of(summed, datum) for datum in datums]
    ranks = [{name: value.ndim for name, value in tensors.items()} for tensors in every]
    wide = [len(datum.loss_fn_inputs["target_tokens"].shape) for datum in datums]
    if any(one != ranks[0] for one in ranks) or len(set(wide)) > 1:
        raise TraceError(
            f"{loss.name} cannot be traced: the datums carry different inputs, or tensors of different ranks"
        )
    optional = [one.name for one in summed.spec.inputs if not one.required and one.name in ranks[0]]
    return summed.trace(optional, {**ranks[0], "logprobs": wide[0]})


def scales(loss: Loss, datums: Sequence[Datum]) -> list[float]:
    """What each datum's sum is multiplied by, so that the sum over all datums is the loss of the whole call."""
    (count,) = loss.count(datums).values
    whole = 1.0 if count is None else 1.0 / count
    if loss.reduction not in ("seq-mean-token-mean", "prompt-mean"):
        return [whole] * len(datums)
    tokens = [float(under(loss, "token-mean").count([datum])) for datum in datums]
    if loss.reduction == "prompt-mean":
        groups = [int(datum.loss_fn_inputs[GROUP_KEY].to_torch()) for datum in datums]
        tokens = [sum(n for n, its in zip(tokens, groups, strict=True) if its == group) for group in groups]
    return [whole / n if n else 0.0 for n in tokens]
