"""One step of sampling: from logits to one token per row, with its logprob."""

from __future__ import annotations

import torch
from torch import Tensor

from .params import Rules

#: Tokens per block: with block sums, 49,152 tokens need one running sum over 192 numbers and one over 256, instead of one
#: over all.
BLOCK = 256
#: Tokens tried first for top_p. Where they hold less probability than that, the whole vocabulary is sorted.
LIKELIEST = 1024


def choose(logits: Tensor, rules: Rules, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token id per row, and its logprob over the whole vocabulary (nats): [rows] each.

    logits    [rows, V]  float32 or float64
    uniforms  [rows]     in [0, 1), at which the cumulative distribution is inverted; None for the likeliest token

    A token of probability 0 is never drawn. Rows are independent.
    """
    if uniforms is None:
        chosen, logsumexp = logits.argmax(1), logits.logsumexp(1)
    else:
        parts = uniforms.to(logits.device, wide_dtype(logits.device))[:, None]
        if 0 < rules.top_k < logits.shape[1] or rules.top_p < 1:
            chosen, logsumexp = _choose_among_likeliest(logits, rules, parts), logits.logsumexp(1)
        else:
            chosen, logsumexp = _choose_among_all(logits, rules.temperature, parts)
    if rules.logprob_temperature != 1:
        return chosen, _scaled(logits, rules).gather(1, chosen[:, None])[:, 0]
    return chosen, logits.gather(1, chosen[:, None])[:, 0] - logsumexp


def choose_unread(logits: Tensor, rules: Rules, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in few launches, with nothing read back by the host: for devices where both cost more than arithmetic.

    logits    [rows, V]  float32 or float64
    uniforms  [rows]     of `wide_dtype`, on the logits' device; None for the likeliest token
    """
    if uniforms is None:
        chosen = logits.argmax(1, keepdim=True)
        return chosen[:, 0], logits.log_softmax(1).gather(1, chosen)[:, 0]
    plain = rules.temperature == 1
    logprobs = None if plain else logits.log_softmax(1)
    p = (logits if logprobs is None else logprobs / max(rules.temperature, 1e-30)).softmax(1)
    kept, ids = p, None
    if 0 < rules.top_k < logits.shape[1]:
        kept, ids = p.topk(rules.top_k, dim=1)
    elif rules.top_p < 1:
        kept, ids = p.sort(dim=1, descending=True)
    gathered = kept.cumsum(1, dtype=uniforms.dtype)
    total = gathered[:, -1:]
    if rules.top_p < 1:  # likeliest first: keep tokens while the sum before them is below top_p
        count = (gathered - kept < rules.top_p * total).sum(1, keepdim=True)
        total = gathered.gather(1, (count - 1).clamp(min=0))
    # A uniform is at most 1 - 2^-53, so its part of the total lies below the total also after rounding, and the position is
    # one at which the running sum grows. The clamp is for NaN alone.
    position = torch.searchsorted(gathered, uniforms[:, None] * total, right=True).clamp(max=gathered.shape[1] - 1)
    chosen = position if ids is None else ids.gather(1, position)
    if logprobs is None or rules.logprob_temperature != 1:
        return chosen[:, 0], p.gather(1, chosen).log()[:, 0]
    return chosen[:, 0], logprobs.gather(1, chosen)[:, 0]


def likeliest(logits: Tensor, rules: Rules) -> tuple[Tensor, Tensor] | None:
    """The ids and logprobs (nats) of the `rules.said.topk` likeliest tokens, likeliest first: [rows, k] each; None for k = 0.

    Of the distribution whose logprobs are returned.
    """
    if not rules.said.topk:
        return None
    logprobs, ids = _scaled(logits, rules).topk(rules.said.topk, dim=1)
    return ids, logprobs


def _scaled(logits: Tensor, rules: Rules) -> Tensor:
    """[rows, V] log softmax at the temperature of the logprobs that are returned; small temperatures overflow nothing."""
    return (logits - logits.amax(1, keepdim=True)).div_(rules.logprob_temperature).log_softmax(1)


def wide_dtype(device: torch.device) -> torch.dtype:
    """Of sums over 10^5 tokens, which need more than float32, except on Apple's GPUs, which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def _choose_among_all(logits: Tensor, temperature: float, parts: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and the logits' logsumexp, [rows] each: first the block is chosen, then the token in it."""
    peaks, masses, sums = _masses(logits, temperature)
    gathered = sums.to(parts.dtype).cumsum(1)
    total = gathered[:, -1:]
    block = _invert(gathered, parts * total)
    before = gathered.gather(1, block) - sums.gather(1, block)
    rows = torch.arange(len(logits), device=logits.device)
    inside = masses[rows, block[:, 0]].to(parts.dtype).cumsum(1)
    chosen = (block * BLOCK + _invert(inside, parts * total - before))[:, 0]
    if temperature == 1:
        return chosen, (peaks + total.log().to(peaks.dtype))[:, 0]
    return chosen, logits.logsumexp(1)


def _choose_among_likeliest(logits: Tensor, rules: Rules, parts: Tensor) -> Tensor:
    """Token ids [rows] under top_k, then top_p of the tokens that are left."""
    vocabulary = logits.shape[1]
    if rules.top_k > 0:
        values, ids = logits.topk(min(rules.top_k, vocabulary), dim=1)
        gathered = _exponentials(values, rules.temperature, parts.dtype).cumsum(1)
        total = gathered[:, -1:]
    else:
        total = _masses(logits, rules.temperature)[2].sum(1, keepdim=True, dtype=parts.dtype)
        values, ids = logits.topk(min(LIKELIEST, vocabulary), dim=1)
        gathered = _exponentials(values, rules.temperature, parts.dtype).cumsum(1)
        if bool((gathered[:, -1:] < rules.top_p * total).any()):
            values, ids = logits.sort(dim=1, descending=True)
            gathered = _exponentials(values, rules.temperature, parts.dtype).cumsum(1)
    if rules.top_p < 1:  # likeliest first: keep tokens while the sum before them is below top_p
        before = gathered.roll(1, 1)
        before[:, 0] = 0.0
        count = (before < rules.top_p * total).sum(1, keepdim=True)
        gathered = gathered.minimum(gathered.gather(1, (count - 1).clamp(min=0)))
    return ids.gather(1, _invert(gathered, parts * gathered[:, -1:]))[:, 0]


def _masses(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Highest logits [rows, 1], exp((logits - highest) / temperature) [rows, blocks, BLOCK], and their sums."""
    rows, vocabulary = logits.shape
    peaks = logits.amax(1, keepdim=True)
    masses = logits.new_zeros(rows, -(-vocabulary // BLOCK) * BLOCK)
    within = masses[:, :vocabulary]
    torch.sub(logits, peaks, out=within)
    if temperature != 1:
        within.div_(max(temperature, 1e-30))  # close to float32's smallest number
    within.exp_()
    blocks = masses.view(rows, -1, BLOCK)
    return peaks, blocks, blocks.sum(2)


def _exponentials(values: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """exp((values - first) / temperature); the first value of each row is its highest."""
    return ((values - values[:, :1]).to(dtype) / temperature).exp()


def _invert(gathered: Tensor, wanted: Tensor) -> Tensor:
    """The first position [rows, 1] at which a running sum [rows, n] exceeds a number [rows, 1].

    Despite rounding, this is never a position of probability 0, nor one after the last of positive probability.
    """
    positions = torch.searchsorted(gathered, wanted.clamp(min=0), right=True)
    return positions.minimum((gathered < gathered[:, -1:]).sum(1, keepdim=True))
