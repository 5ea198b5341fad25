"""The head's autograd function: one pass over the vocabulary forward, another backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..device import path_of
from .backward import Gradients, KnownRows, kept_blocks, recomputed_blocks
from .products import times_transposed
from .saved import KeptProduct
from .tiles import RunningSoftmax, Softmax, Transform, Upstream, logits_of, product_dtype, slices, statistics_dtype

#: The strategies that a call can end up with; "forward-only" where no gradient is wanted.
ChosenStrategy = Literal["keep", "recompute", "known-gradient", "forward-only"]


class Plan(NamedTuple):
    """How the passes over the vocabulary run, and which of the costlier outputs are asked for."""

    strategy: ChosenStrategy
    transform: Transform
    tile_rows: int
    tile_columns: int
    entropy: bool
    mean: bool
    topk: int
    kept_dtype: torch.dtype | None


class Outputs(NamedTuple):
    """The function's outputs; [0] or [M, 0] for those not asked for."""

    logprobs: Tensor  # [M, K]
    logsumexp: Tensor  # [M]
    entropy: Tensor  # [M]
    mean: Tensor  # [M]
    topk_logprobs: Tensor  # [M, k]
    topk_tokens: Tensor  # [M, k] int64


class _Saved(NamedTuple):
    """Tensors saved for the backward, besides the kept products."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    known: Tensor | None
    logsumexp: Tensor
    entropy: Tensor
    topk_tokens: Tensor
    hidden_gradient: Tensor | None  # precomputed, like the two below
    weight_gradient: Tensor | None
    bias_gradient: Tensor | None


class LinearLogprobs(torch.autograd.Function):
    """hidden [M, d], weight [V, d], bias [V] or None, targets [M, K], known gradient [M, K] or None -> `Outputs`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, known: Tensor | None, plan: Plan
    ):
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.known_rows = plan, None
        outputs = empty_outputs(product_dtype(hidden, weight), targets, plan)
        known = None if known is None else known.to(outputs.logprobs.dtype).reshape(targets.shape)
        precomputed: tuple[Tensor | None, ...] = (None, None, None)
        kept: list[KeptProduct] = []
        if plan.strategy == "known-gradient" and known is not None:
            precomputed = _precompute(outputs, hidden, weight, bias, targets, known, plan, ctx.needs_input_grad[:3])
        else:
            for part in slices(len(hidden), plan.tile_rows):
                store = _forward(outputs, part, hidden, weight, bias, targets, plan)
                kept += [] if store is None else [store]
        saved = _Saved(hidden, weight, bias, targets, known, *outputs[1:3], outputs.topk_tokens, *precomputed)
        ctx.save_for_backward(*saved, *(tensor for store in kept for tensor in (store.flat, store.offsets)))
        optional = ((outputs.entropy, plan.entropy), (outputs.mean, plan.mean), (outputs.topk_logprobs, plan.topk))
        ctx.mark_non_differentiable(outputs.topk_tokens, *(output for output, is_asked in optional if not is_asked))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None):  # type: ignore[override]
        plan: Plan = ctx.plan
        tensors = ctx.saved_tensors
        saved, kept = _Saved(*tensors[: len(_Saved._fields)]), tensors[len(_Saved._fields) :]
        logprobs, logsumexp, entropy, mean, topk_logprobs, _ = gradients
        others = (logsumexp, entropy if plan.entropy else None, mean if plan.mean else None)
        best = topk_logprobs if plan.topk else None
        is_only = all(gradient is None for gradient in (*others, best))
        if logprobs is None and is_only:
            return None, None, None, None, None, None
        if saved.known is not None and logprobs is not None and is_only and _are_same(logprobs, saved.known):
            return saved.hidden_gradient, saved.weight_gradient, saved.bias_gradient, None, None, None
        targets = saved.targets
        if best is not None:
            targets, logprobs = with_best(targets, logprobs, saved.topk_tokens, best)
        softmax = Softmax(saved.logsumexp, saved.entropy, targets)
        with torch.autocast(saved.hidden.device.type, enabled=False):
            upstream = Upstream(logprobs, *others)
            computed = _backward(saved, kept, softmax, upstream, plan, ctx.needs_input_grad[:3], ctx.known_rows)
        return *computed, None, None, None


def with_best(targets: Tensor, logprobs: Tensor | None, tokens: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """Targets [M, K] and the gradient of their logprobs, with the likeliest tokens [M, k] and theirs as further targets."""
    own = torch.zeros_like(targets, dtype=best.dtype) if logprobs is None else logprobs
    return torch.cat([targets, tokens], dim=1), torch.cat([own, best], dim=1)


def expect_rows(output: Tensor, rows: KnownRows) -> None:
    """Say, before the backward, which positions have a gradient in it; `output` is any of the head's. Another head ignores it."""
    node: Any = output.grad_fn
    while node is not None:
        if isinstance(getattr(node, "plan", None), Plan):
            node.known_rows = rows
            return
        node = node.next_functions[0][0] if node.next_functions else None


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, as far as the host can see: equal numbers on a CPU, one memory elsewhere."""
    if path_of(one.device) == "cpu":
        return torch.equal(one, other)
    own, others = ((x.data_ptr(), x.shape, x.stride(), x.dtype) for x in (one, other))
    return own == others


def empty_outputs(product: torch.dtype, targets: Tensor, plan: Plan) -> Outputs:
    """Outputs to be filled in by `write`, at the positions of targets [M, K]; product: the dtype of the logits."""
    dtype, device, rows = statistics_dtype(product), targets.device, len(targets)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    tokens = torch.empty((rows, plan.topk), dtype=torch.int64, device=device)
    entropy, mean = empty(rows if plan.entropy else 0), empty(rows if plan.mean else 0)
    return Outputs(empty(*targets.shape), empty(rows), entropy, mean, empty(rows, plan.topk), tokens)


def _forward(
    outputs: Outputs, part: slice, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: Plan
) -> KeptProduct | None:
    """Fill in the outputs of some positions, tile by tile over the vocabulary; returns their kept product, if any."""
    dtype = product_dtype(hidden, weight)
    rows = hidden[part].to(dtype)
    keeps = plan.strategy in ("keep", "known-gradient")
    kept = KeptProduct.empty(rows, len(weight), plan.tile_columns, plan.kept_dtype) if keeps else None
    is_in_place = kept is not None and kept.is_exact
    running = RunningSoftmax(
        targets[part], statistics_dtype(dtype), entropy=plan.entropy, mean=plan.mean, topk=plan.topk
    )
    scratch = torch.empty(len(rows) * plan.tile_columns, dtype=dtype, device=hidden.device)
    for tile in slices(len(weight), plan.tile_columns):
        width = tile.stop - tile.start
        buffer = scratch[: len(rows) * width].view(len(rows), width)
        columns = weight[tile].to(dtype)
        place = kept.tile(tile) if kept is not None and is_in_place else buffer
        product = times_transposed(rows, columns, place, in_place=is_in_place)
        if kept is not None and not is_in_place:
            kept.put(product, tile)
        logits = logits_of(product, None if bias is None else bias[tile], plan.transform)
        running.add(logits, tile, buffer if is_in_place and logits is product else logits)
    write(outputs, part, running, plan, len(weight))
    return kept


def write(outputs: Outputs, part: slice, running: RunningSoftmax, plan: Plan, vocabulary: int) -> None:
    """Fill in the outputs of some positions, once all of the vocabulary was added up."""
    outputs.logprobs[part] = running.logprobs(running.picked)
    outputs.logsumexp[part] = running.logsumexp()
    if plan.entropy:
        outputs.entropy[part] = running.entropy()
    if plan.mean:
        outputs.mean[part] = running.mean_logprobs(vocabulary)
    if plan.topk:
        outputs.topk_logprobs[part] = running.logprobs(running.best)
        outputs.topk_tokens[part] = running.best_tokens


def _precompute(
    outputs: Outputs,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    known: Tensor,
    plan: Plan,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Fill in the outputs and return the gradients, part by part: each part's product is held until its gradients are
    computed."""
    gradients = Gradients(hidden, weight, bias, needs, is_one_call=len(hidden) <= plan.tile_rows)
    upstream = Upstream(known, None, None, None)
    for part in slices(len(hidden), plan.tile_rows):
        kept = _forward(outputs, part, hidden, weight, bias, targets, plan)
        assert kept is not None
        softmax = Softmax(outputs.logsumexp, outputs.entropy, targets)
        blocks = kept_blocks(hidden, product_dtype(hidden, weight), softmax, upstream, [(part, kept)])
        gradients.add(blocks, weight, bias, plan.transform, plan.tile_columns)
        del kept, blocks  # before the next part's product takes as much again
    return gradients.finished()


def _backward(
    saved: _Saved,
    kept: Sequence[Tensor],
    softmax: Softmax,
    upstream: Upstream,
    plan: Plan,
    needs: Sequence[bool],
    known: KnownRows | None,
) -> tuple[Tensor | None, ...]:
    hidden, weight = saved.hidden, saved.weight
    dtype = product_dtype(hidden, weight)
    if plan.strategy == "keep":
        stores = [
            KeptProduct(flat, offsets, plan.tile_columns) for flat, offsets in zip(kept[::2], kept[1::2], strict=True)
        ]
        parts = list(zip(slices(len(hidden), plan.tile_rows), stores, strict=True))
        blocks = kept_blocks(hidden, dtype, softmax, upstream, parts, known)
    else:
        blocks = recomputed_blocks(hidden, dtype, softmax, upstream, plan.tile_rows, known)
    gradients = Gradients(hidden, weight, saved.bias, needs, is_one_call=True)
    gradients.add(blocks, weight, saved.bias, plan.transform, plan.tile_columns)
    return gradients.finished()
