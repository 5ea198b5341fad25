"""From hidden states to logprobs of given tokens, without a [tokens, vocabulary] matrix.

A language model's last layer multiplies hidden states with a matrix of V rows (V about 150,000), and a loss reads one
entry per token of the result. `linear_logprobs` computes that product in tiles that fit the cache and keeps one number per
token (the logarithm of the softmax's denominator). Its backward computes each tile's logits again, or reads them where
they were kept because they fit into `head_memory`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ...datums.errors import DtypeError, ModelError, ShapeError, TokenRangeError
from ..device import path_of
from .autograd import ChosenStrategy, LinearLogprobs, Plan
from .backends import Backend, ChosenBackend, choose_backend, cut_cross_entropy_logprobs, liger_logprobs
from .tiles import Transform, logits_of, product_dtype

Strategy = Literal["auto", "keep", "recompute", "known-gradient"]

#: Bytes of float32 logits in one tile. On a CPU a tile should stay in the cache between the product and the softmax;
#: elsewhere it must keep the device busy.
TILE_BYTES = {"cpu": 4 * 2**20, "other": 128 * 2**20}
#: Positions in one tile at most; the weight is read once for each such tile.
TILE_ROWS = {"cpu": 1024, "other": 8192}
#: Bytes of the product that may be held from forward to backward, by default.
HEAD_MEMORY = {"cpu": 2**30, "other": 2**31}
#: With fewer positions at a time, precomputing a known gradient takes longer than computing the logits twice.
LEAST_KNOWN_ROWS = 128


def size_of(device: torch.device) -> str:
    """Which of the sizes above a device takes."""
    return "cpu" if path_of(device) == "cpu" else "other"


def default_head_memory(device: torch.device) -> int:
    """Bytes of the product that may be held for the backward on a device, by default."""
    return HEAD_MEMORY[size_of(device)]


@dataclass(frozen=True, eq=False)
class Head:
    """The map from hidden states to logits: `softcap · tanh(z / softcap)` of `z = scale · (h Wᵀ + bias)`.

    weight   [V, d]
    bias     [V] or None
    softcap  None for none (Gemma's `final_logit_softcapping`)
    scale    1 for none (Cohere's `logit_scale`; the inverse of Granite's `logits_scaling`)
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def at_temperature(self, temperature: float) -> Head:
        """The head with its logits divided by a temperature, soft cap included.

        Raises ModelError for a temperature that is not positive.
        """
        if not temperature > 0:
            raise ModelError(f"a temperature must be positive, not {temperature}")
        softcap = None if self.softcap is None else self.softcap / temperature
        return replace(self, softcap=softcap, scale=self.scale / temperature)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., d] in float32 (float64 for float64); no graph is kept.

        For a few rows at a time, as in sampling: all of [..., V] is allocated.
        """
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.reshape(-1, hidden.shape[-1])
            weight = self.weight.to(product_dtype(rows, self.weight))
            product = rows.to(weight.dtype) @ weight.t()
            flat = logits_of(product, self.bias, Transform(self.softcap, self.scale))
            return flat.view(*hidden.shape[:-1], weight.shape[0])


def in_autocast_precision(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Hidden states and head in autocast's dtype where autocast is on, for the head's products; logprobs stay float32."""
    if not torch.is_autocast_enabled(hidden.device.type):
        return hidden, head
    dtype = torch.get_autocast_dtype(hidden.device.type)
    return hidden.to(dtype), replace(head, weight=head.weight.to(dtype))


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """Outputs at M positions over the whole vocabulary; None for those not asked for.

    logprobs         nats, shaped like the targets
    logsumexp        [M] of the logits
    entropy          [M] nats
    mean_logprobs    [M] nats, the plain mean of log softmax
    topk_logprobs    [M, k] nats of the likeliest tokens, likeliest first
    topk_tokens      [M, k] int64 ids; of equally likely ones any
    strategy         how the gradient is or will be computed
    backend          whose code computes it; libraries always recompute
    """

    logprobs: Tensor
    logsumexp: Tensor
    entropy: Tensor | None
    mean_logprobs: Tensor | None
    topk_logprobs: Tensor | None = None
    topk_tokens: Tensor | None = None
    strategy: ChosenStrategy = "forward-only"
    backend: ChosenBackend = "chunked"


def linear_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    entropy: bool = False,
    mean_logprobs: bool = False,
    topk: int = 0,
    head_strategy: Strategy = "auto",
    head_memory: int | None = None,
    head_backend: Backend = "auto",
    known_gradient: Tensor | None = None,
    kept_dtype: torch.dtype | None = None,
    chunk_tokens: int | None = None,
) -> HeadOutputs:
    """log softmax(logits)[target] and logsumexp(logits) at M positions; on request the softmax's entropy, mean and top k.

    hidden          [M, d]  any floating dtype; products are in the wider of its and the weight's dtype, all else in
                            float32 (float64 where the product is)
    targets         [M] or [M, K] int64, ids in [0, V); K tokens of a position share one pass over the vocabulary
    topk            how many of the likeliest tokens to return; their logprobs have gradients as those of targets do
    head_strategy   see below
    head_memory     bytes of the product that may be held for the backward; by default HEAD_MEMORY
    head_backend    whose code computes it, see `backends`; the outputs name the one chosen
    known_gradient  d loss / d logprobs, shaped like targets, where it is known before the forward because the loss is
                    linear in the logprobs
    kept_dtype      with `keep`, a narrower dtype for the kept product; by default its own, so nothing is rounded
    chunk_tokens    positions in a tile; by default up to TILE_ROWS. A tile's width follows from TILE_BYTES
    returns         logprobs float32, shaped like targets, the others [M] or [M, k] float32; gradients reach hidden,
                    weight and bias

    One product of hidden states and weight is 2·M·d·V floating-point operations. The forward is one. The backward needs
    one for hidden's gradient, one for the weight's (none for a frozen weight, and no buffer), and the logits again:

    `recompute`       computes the logits again: 4 products (3 with a frozen weight). Holds one number per position for the
                      backward. Beyond inputs, outputs and their gradients it needs about three tiles.
    `keep`            keeps the products: 3 products (2 with a frozen weight), and M·V numbers held until the backward.
    `known-gradient`  computes the gradients in the forward, for as many positions at a time as head_memory holds products
                      of: 3 products (2), and no more memory than that, whatever M is. The backward returns them if the
                      logprobs' gradient equals `known_gradient` bit for bit (on a GPU: is that very tensor, since to
                      compare numbers is to wait for them) and no other output has one; else it recomputes, so a wrong `known_gradient` costs time and nothing else.
    `auto`            `known-gradient` if there is one and head_memory holds LEAST_KNOWN_ROWS positions; else `keep` if
                      head_memory holds all of the product; else `recompute`.

    Where no gradient is wanted (`torch.no_grad`, or nothing requires one) there is one product and nothing held. In a
    backward on a CPU, a position whose gradient is zero costs nothing. An autocast context does not apply inside. There are no
    second derivatives.

    Raises ShapeError for shapes that disagree, DtypeError for targets that are not int64, TokenRangeError for ids
    outside [0, V) (checked for targets on the CPU; on a GPU that would cost a synchronisation), ModelError for an
    impossible strategy or a backend that cannot serve the call, MissingExtraError for a backend that is not installed.
    """
    _check(hidden, head, targets, chunk_tokens, topk)
    _check_strategy(head_strategy, targets, known_gradient)
    memory = default_head_memory(hidden.device) if head_memory is None else head_memory
    strategy = _choose(hidden, head, head_strategy, memory, known_gradient is not None, kept_dtype)
    wants = {"entropy": entropy, "mean logprobs": mean_logprobs, "top k": topk > 0, "second target": targets.ndim == 2}
    wants |= {"bias": head.bias is not None, "soft cap": head.softcap is not None}
    asked = [name for name, is_asked in wants.items() if is_asked]
    wants_gradient = strategy != "forward-only"
    backend = choose_backend(head_backend, hidden, head.weight, asked=asked, wants_gradient=wants_gradient)
    with torch.autocast(hidden.device.type, enabled=False):
        if backend != "chunked" and len(hidden):
            if backend == "liger":
                computed = liger_logprobs(hidden, head.weight, targets, head.scale, entropy=entropy)
            else:
                pair = cut_cross_entropy_logprobs(hidden, head.weight, targets, head.softcap, head.scale)
                computed = (*pair, None)
            return HeadOutputs(*computed, None, strategy="recompute" if wants_gradient else strategy, backend=backend)
        rows, columns = _tile(hidden, head, strategy, memory, chunk_tokens)
        kept = kept_dtype if strategy == "keep" else None
        plan = Plan(strategy, Transform(head.softcap, head.scale), rows, columns, entropy, mean_logprobs, topk, kept)
        known = known_gradient if strategy == "known-gradient" else None
        table = targets if targets.ndim == 2 else targets[:, None]
        return named(LinearLogprobs.apply(hidden, head.weight, head.bias, table, known, plan), targets, plan)


def named(outputs: tuple[Tensor, ...], targets: Tensor, plan: Plan) -> HeadOutputs:
    """The outputs of the autograd function by name, None for those not asked for."""
    logprobs, logsumexp, entropy, mean, topk_logprobs, topk_tokens = outputs
    return HeadOutputs(
        logprobs=logprobs.view(targets.shape),
        logsumexp=logsumexp,
        entropy=entropy if plan.entropy else None,
        mean_logprobs=mean if plan.mean else None,
        topk_logprobs=topk_logprobs if plan.topk else None,
        topk_tokens=topk_tokens if plan.topk else None,
        strategy=plan.strategy,
    )


def _check(hidden: Tensor, head: Head, targets: Tensor, chunk_tokens: int | None, topk: int) -> None:
    vocabulary, width = head.weight.shape
    if hidden.ndim != 2 or hidden.shape[1] != width:
        raise ShapeError(f"hidden must be [M, {width}] for a head of {vocabulary} tokens, not {list(hidden.shape)}")
    rows = len(hidden)
    if targets.ndim not in (1, 2) or len(targets) != rows:
        raise ShapeError(
            f"targets must be [{rows}] or [{rows}, K], one row per hidden state, not {list(targets.shape)}"
        )
    if targets.dtype != torch.int64:
        raise DtypeError(f"targets must be int64 token ids, not {targets.dtype}")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ShapeError(f"chunk_tokens must be at least 1, not {chunk_tokens}")
    if path_of(targets.device) == "cpu" and targets.numel():
        outside = (targets < 0) | (targets >= vocabulary)
        if outside.any():
            row, token = int(outside.nonzero()[0, 0]), int(targets[outside][0])
            raise TokenRangeError(f"targets row {row} names token {token}, outside the vocabulary [0, {vocabulary})")
    if not 0 <= topk <= vocabulary:
        raise ShapeError(f"topk must be 0 to {vocabulary}, the size of the vocabulary, not {topk}")


def _check_strategy(head_strategy: str, targets: Tensor, known_gradient: Tensor | None) -> None:
    if head_strategy not in get_args(Strategy):
        raise ModelError(f"head_strategy must be one of {', '.join(get_args(Strategy))}, not {head_strategy!r}")
    if head_strategy == "known-gradient" and known_gradient is None:
        raise ModelError(
            "head_strategy 'known-gradient' needs known_gradient, the gradient of the loss by each logprob"
        )
    if known_gradient is not None and known_gradient.shape != targets.shape:
        shapes = f"{list(targets.shape)}, not {list(known_gradient.shape)}"
        raise ShapeError(f"known_gradient must be shaped like the targets, {shapes}")


def _choose(
    hidden: Tensor, head: Head, head_strategy: Strategy, memory: int, is_known: bool, kept_dtype: torch.dtype | None
) -> ChosenStrategy:
    leaves = (hidden, head.weight, head.bias)
    if not torch.is_grad_enabled() or not any(leaf is not None and leaf.requires_grad for leaf in leaves):
        return "forward-only"
    if head_strategy != "auto":
        return head_strategy
    product = product_dtype(hidden, head.weight)
    if is_known and _rows_held(memory, head, product) >= min(len(hidden), LEAST_KNOWN_ROWS):
        return "known-gradient"
    return "keep" if len(hidden) <= _rows_held(memory, head, kept_dtype or product) else "recompute"


def _tile(
    hidden: Tensor, head: Head, strategy: ChosenStrategy, memory: int, chunk_tokens: int | None
) -> tuple[int, int]:
    """Rows and columns of a tile. Rows are divided evenly, so that no small part is left over."""
    device = size_of(hidden.device)
    most = TILE_ROWS[device]
    if strategy == "known-gradient":
        most = max(1, min(most, _rows_held(memory, head, product_dtype(hidden, head.weight))))
    parts = max(1, -(-len(hidden) // most))
    rows = chunk_tokens or max(1, -(-len(hidden) // parts))
    return rows, max(1, min(len(head.weight), TILE_BYTES[device] // (4 * rows)))


def _rows_held(memory: int, head: Head, dtype: torch.dtype) -> int:
    """How many positions' products fit into `memory` bytes."""
    return memory // (len(head.weight) * dtype.itemsize)
