"""From hidden states to log-probabilities of given tokens, without ever holding [tokens, vocabulary].

The last layer of a language model is a matrix of V rows (V about 150,000) of whose product a loss reads one entry
a token. `linear_logprobs` walks over that product in tiles that fit the cache, keeps one number a token (the
logarithm of the softmax's denominator), and in the backward computes each tile's logits again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..datums.errors import DtypeError, ShapeError, TokenRangeError

#: Bytes of float32 logits in one tile. On a CPU a tile should stay in the cache between the product and the softmax
#: (2 to 16 MiB were equal on the machine this was measured on); elsewhere it must keep the device busy.
TILE_BYTES = {"cpu": 4 * 2**20, "other": 128 * 2**20}
#: Positions in one tile at most; the weight is read once for each.
TILE_ROWS = {"cpu": 1024, "other": 8192}


@dataclass(frozen=True, eq=False)
class Head:
    """What turns hidden states into logits: `softcap · tanh(z / softcap)` of `z = scale · (h Wᵀ + bias)`.

    weight   [V, d]
    bias     [V] or None
    softcap  None for none (Gemma's `final_logit_softcapping`)
    scale    1 for none (Cohere's `logit_scale`; the inverse of Granite's `logits_scaling`)
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., d] in float32 (float64 for float64); no graph is kept.

        For a few rows at a time, as in sampling: all of [..., V] is made.
        """
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.reshape(-1, hidden.shape[-1])
            weight = self.weight.to(_product_dtype(rows, self.weight))
            flat = _logits(rows.to(weight.dtype), weight, self.bias, self.softcap, self.scale)
            return flat.view(*hidden.shape[:-1], weight.shape[0])


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """logprobs: nats, shaped like the targets; entropy: [M] nats over the whole vocabulary, None if not asked for."""

    logprobs: Tensor
    entropy: Tensor | None


def linear_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, *, entropy: bool = False, chunk_tokens: int | None = None
) -> HeadOutputs:
    """log softmax(logits)[target], and if asked the entropy of the softmax, for M positions.

    hidden        [M, d]  any floating dtype; products are in the wider of its and the weight's dtype, all else in
                          float32 (float64 when that product is)
    targets       [M] or [M, K] int64, ids in [0, V); K tokens of a position share one sweep
    chunk_tokens  positions in a tile; by default up to TILE_ROWS. A tile's width follows from TILE_BYTES
    returns       logprobs float32, shaped like targets, and entropy [M] float32; gradients reach hidden, weight, bias

    Costs 2·M·d·V floating-point operations forward, and backward 4·M·d·V (logits again, hidden's gradient), or
    6·M·d·V with a weight that requires a gradient; a position whose gradient is zero costs no backward. Memory beyond
    inputs, outputs and their gradients: about three tiles; for the backward one number a position is kept. A frozen
    weight costs no gradient buffer. An autocast context does not apply inside. The gradient can be taken once (no
    second derivatives).

    Raises ShapeError for shapes that disagree, DtypeError for targets that are not int64, TokenRangeError for ids
    outside [0, V) (checked for targets on the CPU; on a GPU that would cost a synchronisation).
    """
    _check(hidden, head, targets, chunk_tokens)
    place = "cpu" if hidden.device.type == "cpu" else "other"
    rows = chunk_tokens or max(1, min(TILE_ROWS[place], hidden.shape[0]))
    options = _Options(head.softcap, head.scale, rows, max(1, TILE_BYTES[place] // (4 * rows)), entropy)
    with torch.autocast(hidden.device.type, enabled=False):
        columns = targets if targets.ndim == 2 else targets[:, None]
        logprobs, entropies = _LinearLogprobs.apply(hidden, head.weight, head.bias, columns, options)
    return HeadOutputs(logprobs.view(targets.shape), entropies if entropy else None)


class _Options(NamedTuple):
    softcap: float | None
    scale: float
    tile_rows: int
    tile_columns: int
    entropy: bool


class _Saved(NamedTuple):
    """What the forward keeps: its inputs, and one number a position (two with entropy)."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    denominator: Tensor
    entropy: Tensor


#: The gradients of logprobs [M, K] and of entropy [M]; None where nothing asks.
_Upstream = tuple[Tensor | None, Tensor | None]


class _LinearLogprobs(torch.autograd.Function):
    """[M, d], [V, d], [V] or None, [M, K] to logprobs [M, K] and entropy ([M], or [0] when not asked for)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: _Options):
        ctx.set_materialize_grads(False)
        ctx.options = options
        product = _product_dtype(hidden, weight)
        dtype = torch.float64 if product == torch.float64 else torch.float32
        logprobs = torch.empty(targets.shape, dtype=dtype, device=hidden.device)
        denominator = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        entropy = torch.empty(len(hidden) if options.entropy else 0, dtype=dtype, device=hidden.device)
        wide = weight.to(product)
        for part in _slices(len(hidden), options.tile_rows):
            swept = _sweep(hidden[part].to(product), wide, bias, targets[part], options)
            logprobs[part], denominator[part] = swept[:2]
            if options.entropy:
                entropy[part] = swept[2]
        ctx.save_for_backward(*_Saved(hidden, weight, bias, targets, denominator, entropy))
        if not options.entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None):  # type: ignore[override]
        saved = _Saved(*ctx.saved_tensors)
        asked = (upstream[0], upstream[1] if ctx.options.entropy else None)
        if asked[0] is None and asked[1] is None:
            return None, None, None, None, None
        rows = _rows_with_gradient(asked)
        with torch.autocast(saved.hidden.device.type, enabled=False):
            if rows is None:
                return *_backward(saved, ctx.options, asked, ctx.needs_input_grad[:3]), None, None
            g, e = (None if grad is None else grad[rows] for grad in asked)
            found, *others = _backward(_only(saved, rows), ctx.options, (g, e), ctx.needs_input_grad[:3])
            hidden = None if found is None else torch.zeros_like(saved.hidden).index_copy_(0, rows, found)
            return hidden, *others, None, None


def _rows_with_gradient(upstream: _Upstream) -> Tensor | None:
    """Positions through which anything flows back; None when that is all of them.

    A custom loss reads every position and weighs most prompts with zero, and a clipped token has no gradient either.
    """
    flows = [grad != 0 if grad.ndim == 1 else (grad != 0).any(dim=1) for grad in upstream if grad is not None]
    anything = flows[0] if len(flows) == 1 else flows[0] | flows[1]
    return None if bool(anything.all()) else anything.nonzero().squeeze(1)


def _only(saved: _Saved, rows: Tensor) -> _Saved:
    """What was kept for some of the positions."""
    return saved._replace(
        hidden=saved.hidden[rows],
        targets=saved.targets[rows],
        denominator=saved.denominator[rows],
        entropy=saved.entropy[rows] if len(saved.entropy) else saved.entropy,
    )


def _sweep(
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: _Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Logprobs [C, K], log denominator [C] and entropy [C] of C positions, tile by tile over the vocabulary.

    `total` is Σ exp(z - highest) and `weighted` is Σ exp(z - highest)·(z - highest) over the columns seen so far;
    both are brought up to date whenever a tile holds a higher logit (the online softmax of arXiv:1805.02867).
    """
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    highest = torch.full((len(rows),), -1e30, dtype=dtype, device=rows.device)  # finite: 0 · inf would be NaN
    total, weighted = torch.zeros_like(highest), torch.zeros_like(highest)
    picked = torch.zeros(targets.shape, dtype=dtype, device=rows.device)
    for tile in _slices(len(weight), options.tile_columns):
        logits = _logits(rows, weight[tile], None if bias is None else bias[tile], options.softcap, options.scale)
        here, column = _columns(targets, tile, logits.shape[1])
        picked = torch.where(here, logits.gather(1, column), picked)
        higher = torch.maximum(highest, logits.amax(dim=1))
        drop = highest - higher
        shrink = drop.exp()
        logits.sub_(higher[:, None])  # at most 0, so exp cannot overflow
        powers = logits.exp() if options.entropy else logits.exp_()
        if options.entropy:
            weighted = shrink * (weighted + drop * total) + (logits.mul_(powers)).sum(dim=1)
        total = shrink * total + powers.sum(dim=1)
        highest = higher
    log_total = total.log()
    return picked - highest[:, None] - log_total[:, None], highest + log_total, log_total - weighted / total


def _backward(
    saved: _Saved, options: _Options, upstream: _Upstream, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Tile by tile: the logits again, their gradient in place of them, then the products with weight and hidden."""
    hidden, bias, dtype = saved.hidden, saved.bias, saved.denominator.dtype
    weight = saved.weight.to(_product_dtype(hidden, saved.weight))
    # Summed in float32 whatever the parameter's dtype: in bfloat16 a small tile would be lost against the running sum.
    grad_hidden = torch.zeros_like(hidden, dtype=dtype) if needs[0] else None
    grad_weight = torch.zeros_like(weight, dtype=dtype) if needs[1] else None
    grad_bias = torch.zeros_like(bias, dtype=dtype) if needs[2] and bias is not None else None
    for part in _slices(len(hidden), options.tile_rows):
        rows = hidden[part].to(weight.dtype)
        for tile in _slices(len(weight), options.tile_columns):
            gradient = _tile_gradient(saved, options, upstream, part, tile, rows, weight[tile])
            narrow = gradient.to(weight.dtype)
            if grad_hidden is not None:
                _add_product(grad_hidden[part], narrow, weight[tile])
            if grad_weight is not None:
                _add_product(grad_weight[tile], narrow.t(), rows)
            if grad_bias is not None:
                grad_bias[tile] += gradient.sum(dim=0)
    return _like(grad_hidden, hidden), _like(grad_weight, saved.weight), _like(grad_bias, bias)


def _tile_gradient(
    saved: _Saved, options: _Options, upstream: _Upstream, part: slice, tile: slice, rows: Tensor, weight: Tensor
) -> Tensor:
    """d loss / d (h Wᵀ + bias) [C, columns] of one tile.

    With p the softmax and g, e the gradients of logprobs [C, K] and entropy H [C], a logit's gradient is
    onehots·g - p·Σg - e·p·(log p + H), and soft cap and scale multiply it by their slopes.
    """
    bias = None if saved.bias is None else saved.bias[tile]
    gradient = _logits(rows, weight, bias, options.softcap, options.scale)
    slope = None if options.softcap is None else (gradient / options.softcap).square_().neg_().add_(1)  # 1 - tanh²
    gradient.sub_(saved.denominator[part, None])  # now log p
    g, e = (None if grad is None else grad[part] for grad in upstream)
    if e is None:
        assert g is not None  # the caller returned early when nothing asked
        gradient.exp_().mul_(-g.sum(dim=1, keepdim=True))
    else:
        probabilities = gradient.exp()
        gradient.add_(saved.entropy[part, None]).mul_(-e[:, None])
        if g is not None:
            gradient.sub_(g.sum(dim=1, keepdim=True))
        gradient.mul_(probabilities)
    if g is not None:
        here, column = _columns(saved.targets[part], tile, gradient.shape[1])
        gradient.scatter_add_(1, column, g * here)  # adds up where a row names a token twice
    if slope is not None:
        gradient.mul_(slope)
    return gradient.mul_(options.scale) if options.scale != 1.0 else gradient


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
    """Logits [C, columns] in float32 (float64 for float64), a fresh tensor; rows and weight share a dtype."""
    product = rows @ weight.t()
    logits = product if product.dtype == torch.float64 else product.float()
    if bias is not None:
        logits.add_(bias)
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def _columns(targets: Tensor, tile: slice, width: int) -> tuple[Tensor, Tensor]:
    """Which targets [C, K] lie in the tile, and their column there (some column where they do not)."""
    column = targets - tile.start
    return (column >= 0) & (column < width), column.clamp_(0, width - 1)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a temporary where the dtypes allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _like(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if gradient is None or parameter is None else gradient.to(parameter.dtype)


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The wider of the two: bfloat16 hidden states must not round away a float32 LoRA delta in the weight."""
    return torch.promote_types(hidden.dtype, weight.dtype)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def _check(hidden: Tensor, head: Head, targets: Tensor, chunk_tokens: int | None) -> None:
    vocabulary, width = head.weight.shape
    if hidden.ndim != 2 or hidden.shape[1] != width:
        raise ShapeError(f"hidden must be [M, {width}] for a head of {vocabulary} tokens, not {list(hidden.shape)}")
    rows = len(hidden)
    if targets.ndim not in (1, 2) or len(targets) != rows:
        raise ShapeError(f"targets must be [{rows}] or [{rows}, K], one row a hidden state, not {list(targets.shape)}")
    if targets.dtype != torch.int64:
        raise DtypeError(f"targets must be int64 token ids, not {targets.dtype}")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ShapeError(f"chunk_tokens must be at least 1, not {chunk_tokens}")
    if targets.device.type == "cpu" and targets.numel():
        outside = (targets < 0) | (targets >= vocabulary)
        if outside.any():
            row, token = int(outside.nonzero()[0, 0]), int(targets[outside][0])
            raise TokenRangeError(f"targets row {row} names token {token}, outside the vocabulary [0, {vocabulary})")
