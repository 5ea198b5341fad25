"""From hidden states to log-probabilities of given tokens, without ever holding [tokens, vocabulary].

The last layer of a language model is a matrix of V rows (V about 150,000) of whose product a loss reads one entry
a token. `linear_logprobs` walks over that product in tiles that fit the cache, keeps one number a token (the
logarithm of the softmax's denominator), and in the backward computes each tile's logits again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..datums.errors import DtypeError, ShapeError, TokenRangeError
from .head_sweeps import LinearLogprobs, Options, logits_of, product_dtype

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
            weight = self.weight.to(product_dtype(rows, self.weight))
            flat = logits_of(rows.to(weight.dtype), weight, self.bias, self.softcap, self.scale)
            return flat.view(*hidden.shape[:-1], weight.shape[0])


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """logprobs: nats, shaped like the targets. Over the whole vocabulary, [M] each: logsumexp of the logits; entropy in
    nats; mean_logprobs, the plain mean of log softmax in nats. The last two are None if not asked for."""

    logprobs: Tensor
    logsumexp: Tensor
    entropy: Tensor | None
    mean_logprobs: Tensor | None


def linear_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    entropy: bool = False,
    mean_logprobs: bool = False,
    chunk_tokens: int | None = None,
) -> HeadOutputs:
    """log softmax(logits)[target] and logsumexp(logits), and if asked the softmax's entropy and mean logprob, for M positions.

    hidden        [M, d]  any floating dtype; products are in the wider of its and the weight's dtype, all else in
                          float32 (float64 when that product is)
    targets       [M] or [M, K] int64, ids in [0, V); K tokens of a position share one sweep
    chunk_tokens  positions in a tile; by default up to TILE_ROWS. A tile's width follows from TILE_BYTES
    returns       logprobs float32, shaped like targets, the others [M] float32; gradients reach hidden, weight, bias

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
    columns = max(1, TILE_BYTES[place] // (4 * rows))
    options = Options(head.softcap, head.scale, rows, columns, entropy, mean_logprobs)
    with torch.autocast(hidden.device.type, enabled=False):
        table = targets if targets.ndim == 2 else targets[:, None]
        logprobs, logsumexp, entropies, means = LinearLogprobs.apply(hidden, head.weight, head.bias, table, options)
    return HeadOutputs(
        logprobs.view(targets.shape), logsumexp, entropies if entropy else None, means if mean_logprobs else None
    )


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
