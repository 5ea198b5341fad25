"""The same outputs from logits that are there already, [positions, vocabulary]: no float32 copy of them is made or kept.

A few rows at a time are turned into float32; the backward reads the logits again and writes their gradient, which autograd
wants in their own shape and dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...datums.errors import ModelError
from .autograd import Plan, empty_outputs, with_best, write
from .logprobs import TILE_BYTES, HeadOutputs, named, size_of
from .tiles import RunningSoftmax, Softmax, Transform, Upstream, logits_of, slices, tile_gradient


def logprobs_of_logits(
    logits: Tensor,
    rows: Tensor | None,
    targets: Tensor,
    *,
    entropy: bool = False,
    mean_logprobs: bool = False,
    topk: int = 0,
    temperature: float = 1.0,
) -> HeadOutputs:
    """log softmax(logits / temperature)[target] at some positions; on request the softmax's entropy, mean and top k.

    logits    [P, V]  any floating dtype; statistics are float32 (float64 of float64)
    rows      [M] int64, which positions; None for all
    targets   [M] or [M, K] int64, ids in [0, V), not checked

    Raises ModelError for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ModelError(f"a temperature must be positive, not {temperature}")
    tile_rows = max(1, TILE_BYTES[size_of(logits.device)] // (4 * max(1, logits.shape[1])))
    transform = Transform(None, 1.0 / temperature)
    plan = Plan("recompute", transform, tile_rows, logits.shape[1], entropy, mean_logprobs, topk, None)
    table = targets if targets.ndim == 2 else targets[:, None]
    with torch.autocast(logits.device.type, enabled=False):
        return named(GivenLogits.apply(logits, rows, table, plan), targets, plan)


class GivenLogits(torch.autograd.Function):
    """logits [P, V], rows [M] or None, targets [M, K] -> `Outputs` at these rows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor | None, targets: Tensor, plan: Plan):
        ctx.set_materialize_grads(False)
        outputs = empty_outputs(logits.dtype, targets, plan)
        for part in slices(len(targets), plan.tile_rows):
            running = RunningSoftmax(
                targets[part], outputs.logprobs.dtype, entropy=plan.entropy, mean=plan.mean, topk=plan.topk
            )
            values = _values(logits, rows, part, plan.transform)
            running.add(values, slice(0, logits.shape[1]), values)
            write(outputs, part, running, plan, logits.shape[1])
        ctx.plan = plan
        ctx.save_for_backward(logits, rows, targets, outputs.logsumexp, outputs.entropy, outputs.topk_tokens)
        optional = ((outputs.entropy, plan.entropy), (outputs.mean, plan.mean), (outputs.topk_logprobs, plan.topk))
        ctx.mark_non_differentiable(outputs.topk_tokens, *(output for output, is_asked in optional if not is_asked))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None):  # type: ignore[override]
        logits, rows, targets, logsumexp, entropy, topk_tokens = ctx.saved_tensors
        plan: Plan = ctx.plan
        own, others = gradients[0], gradients[1:4]
        if plan.topk and gradients[4] is not None:
            targets, own = with_best(targets, own, topk_tokens, gradients[4])
        upstream = Upstream(own, others[0], others[1] if plan.entropy else None, others[2] if plan.mean else None)
        if all(one is None for one in upstream):
            return None, None, None, None
        gradient = torch.empty_like(logits) if rows is None else torch.zeros_like(logits)
        for part in slices(len(targets), plan.tile_rows):
            values = _values(logits, rows, part, plan.transform)
            softmax = Softmax(logsumexp[part], entropy[part] if plan.entropy else entropy, targets[part])
            some = Upstream(*(None if one is None else one[part] for one in upstream))
            whole = slice(0, logits.shape[1])
            gradient[part if rows is None else rows[part]] = tile_gradient(
                values, softmax, some, whole, plan.transform, logits.shape[1], values
            ).to(logits.dtype)
        return gradient, None, None, None


def _values(logits: Tensor, rows: Tensor | None, part: slice, transform: Transform) -> Tensor:
    """Some rows' logits in float32 at least, which may be overwritten."""
    given = logits[part] if rows is None else logits[rows[part]]
    values = logits_of(given, None, transform)
    return values.clone() if values is given and rows is None else values
