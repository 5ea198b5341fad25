"""The head's sweeps over the vocabulary: logits tile by tile, forward and, computed again, backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Options(NamedTuple):
    """What the head does to its product, the size of a tile, and which of the costlier outputs are asked for."""

    softcap: float | None
    scale: float
    tile_rows: int
    tile_columns: int
    entropy: bool
    mean: bool


class _Saved(NamedTuple):
    """What the forward keeps: its inputs, and one number a position (two with entropy)."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    denominator: Tensor
    entropy: Tensor


class _Upstream(NamedTuple):
    """The gradients of the outputs: [M, K], then [M] each; None where nothing asks."""

    logprobs: Tensor | None
    logsumexp: Tensor | None
    entropy: Tensor | None
    mean: Tensor | None


class LinearLogprobs(torch.autograd.Function):
    """[M, d], [V, d], [V] or None, [M, K] to logprobs [M, K], logsumexp [M], and entropy and mean logprob ([M], or [0]
    when not asked for)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: Options):
        ctx.set_materialize_grads(False)
        ctx.options = options
        product = product_dtype(hidden, weight)
        dtype = torch.float64 if product == torch.float64 else torch.float32
        logprobs = torch.empty(targets.shape, dtype=dtype, device=hidden.device)
        denominator = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        entropy = torch.empty(len(hidden) if options.entropy else 0, dtype=dtype, device=hidden.device)
        mean = torch.empty(len(hidden) if options.mean else 0, dtype=dtype, device=hidden.device)
        wide = weight.to(product)
        for part in _slices(len(hidden), options.tile_rows):
            swept = _sweep(hidden[part].to(product), wide, bias, targets[part], options)
            logprobs[part], denominator[part] = swept[:2]
            if options.entropy:
                entropy[part] = swept[2]
            if options.mean:
                mean[part] = swept[3]
        ctx.save_for_backward(*_Saved(hidden, weight, bias, targets, denominator, entropy))
        optional = ((entropy, options.entropy), (mean, options.mean))
        ctx.mark_non_differentiable(*(output for output, is_asked in optional if not is_asked))
        return logprobs, denominator, entropy, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None):  # type: ignore[override]
        saved = _Saved(*ctx.saved_tensors)
        logprobs, logsumexp, entropy, mean = upstream
        options: Options = ctx.options
        asked = _Upstream(logprobs, logsumexp, entropy if options.entropy else None, mean if options.mean else None)
        if all(gradient is None for gradient in asked):
            return None, None, None, None, None
        rows = _rows_with_gradient(asked)
        with torch.autocast(saved.hidden.device.type, enabled=False):
            if rows is None:
                return *_backward(saved, options, asked, ctx.needs_input_grad[:3]), None, None
            some = _Upstream(*(None if gradient is None else gradient[rows] for gradient in asked))
            found, *others = _backward(_only(saved, rows), options, some, ctx.needs_input_grad[:3])
            hidden = None if found is None else torch.zeros_like(saved.hidden).index_copy_(0, rows, found)
            return hidden, *others, None, None


def _rows_with_gradient(upstream: _Upstream) -> Tensor | None:
    """Positions through which anything flows back; None when that is all of them.

    A custom loss reads every position and weighs most prompts with zero, and a clipped token has no gradient either.
    """
    flows = [grad != 0 if grad.ndim == 1 else (grad != 0).any(dim=1) for grad in upstream if grad is not None]
    anything = torch.stack(flows).any(dim=0)
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
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logprobs [C, K], log denominator, entropy and mean logprob [C] of C positions, tile by tile over the vocabulary.

    `total` is Σ exp(z - highest) and `weighted` is Σ exp(z - highest)·(z - highest) over the columns seen so far;
    both are brought up to date whenever a tile holds a higher logit (the online softmax of arXiv:1805.02867).
    """
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    highest = torch.full((len(rows),), -1e30, dtype=dtype, device=rows.device)  # finite: 0 · inf would be NaN
    total, weighted, plain = torch.zeros_like(highest), torch.zeros_like(highest), torch.zeros_like(highest)
    picked = torch.zeros(targets.shape, dtype=dtype, device=rows.device)
    for tile in _slices(len(weight), options.tile_columns):
        logits = logits_of(rows, weight[tile], None if bias is None else bias[tile], options.softcap, options.scale)
        here, column = _columns(targets, tile, logits.shape[1])
        picked = torch.where(here, logits.gather(1, column), picked)
        if options.mean:
            plain = plain + logits.sum(dim=1)
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
    logprobs = picked - highest[:, None] - log_total[:, None]
    mean = plain / len(weight) - highest - log_total
    return logprobs, highest + log_total, log_total - weighted / total, mean


def _backward(
    saved: _Saved, options: Options, upstream: _Upstream, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Tile by tile: the logits again, their gradient in place of them, then the products with weight and hidden."""
    hidden, bias, dtype = saved.hidden, saved.bias, saved.denominator.dtype
    weight = saved.weight.to(product_dtype(hidden, saved.weight))
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
    saved: _Saved, options: Options, upstream: _Upstream, part: slice, tile: slice, rows: Tensor, weight: Tensor
) -> Tensor:
    """d loss / d (h Wᵀ + bias) [C, columns] of one tile.

    With p the softmax and g, s, e, m the gradients of logprobs [C, K], logsumexp, entropy H and mean logprob [C], a
    logit's gradient is onehots·g + p·(s - Σg - m) - e·p·(log p + H) + m / V, and soft cap and scale multiply it by their
    slopes.
    """
    bias = None if saved.bias is None else saved.bias[tile]
    gradient = logits_of(rows, weight, bias, options.softcap, options.scale)
    slope = None if options.softcap is None else (gradient / options.softcap).square_().neg_().add_(1)  # 1 - tanh²
    gradient.sub_(saved.denominator[part, None])  # now log p
    g, s, e, m = (None if found is None else found[part] for found in upstream)
    share = torch.zeros_like(saved.denominator[part])
    for sign, found in ((-1, None if g is None else g.sum(dim=1)), (1, s), (-1, m)):
        share = share if found is None else share.add(found, alpha=sign)
    if e is None:
        gradient.exp_().mul_(share[:, None])
    else:
        probabilities = gradient.exp()
        gradient.add_(saved.entropy[part, None]).mul_(-e[:, None]).add_(share[:, None]).mul_(probabilities)
    if m is not None:
        gradient.add_(m[:, None] / len(saved.weight))
    if g is not None:
        here, column = _columns(saved.targets[part], tile, gradient.shape[1])
        gradient.scatter_add_(1, column, g * here)  # adds up where a row names a token twice
    if slope is not None:
        gradient.mul_(slope)
    return gradient.mul_(options.scale) if options.scale != 1.0 else gradient


def logits_of(rows: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
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


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The wider of the two: bfloat16 hidden states must not round away a float32 LoRA delta in the weight."""
    return torch.promote_types(hidden.dtype, weight.dtype)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))
