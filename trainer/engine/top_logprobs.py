"""A model's likeliest next tokens at each position, with their logprobs: what a student is distilled from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...datums.errors import ShapeError
from ...datums.types import Datum
from ..head.logprobs import Head, linear_logprobs
from ..model.load import LoadedModel
from ..packing.micro_batches import plan_micro_batches
from ..responses import TopLogprobs
from .forward import Batching, as_far_as_read, check_fits, hidden_states, in_autocast_precision, tokens_of


@torch.no_grad()
def top_logprobs(
    model: LoadedModel, datums: Sequence[Datum], k: int, *, batching: Batching, tokens: int
) -> list[TopLogprobs]:
    """The k likeliest next tokens at every position whose weight is not 0, one result a datum.

    k: 1 to the size of the vocabulary, where all of the distribution is returned. tokens: how many run together.
    Raises ShapeError for another k, ModelError for an encoder or a datum that is too long, TokenRangeError.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= model.vocab_size:
        raise ShapeError(f"k must be 1 to {model.vocab_size}, the size of {model.name}'s vocabulary, not {k!r}")
    head = model.head()
    check_fits(model, datums, ())
    lengths = [datum.model_input.length for datum in datums]
    results: dict[int, TopLogprobs] = {}
    was_training = model.module.training
    model.module.eval()
    try:
        for cut in plan_micro_batches(lengths, tokens=tokens, pairs=False, padded=batching == "padded"):
            results |= zip(cut, _of_micro_batch(model, head, [datums[i] for i in cut], k, batching), strict=True)
    finally:
        model.module.train(was_training)
    return [results[i] for i in range(len(datums))]


def _of_micro_batch(
    model: LoadedModel, head: Head, datums: Sequence[Datum], k: int, batching: Batching
) -> list[TopLogprobs]:
    each = [_active(datum) for datum in datums]
    active = np.concatenate(each)
    best, logprobs = np.zeros((len(active), k), np.int64), np.full((len(active), k), -np.inf, np.float32)
    if active.any():
        read, rows = as_far_as_read([tokens_of(datum) for datum in datums], torch.from_numpy(active))
        with model.precision():
            hidden, narrow = in_autocast_precision(hidden_states(model, read, batching, rows), head)
        found = linear_logprobs(
            hidden, narrow, torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device), topk=k
        )
        assert found.topk_tokens is not None
        assert found.topk_logprobs is not None
        best[active] = found.topk_tokens.cpu().numpy()
        logprobs[active] = found.topk_logprobs.float().cpu().numpy()
    ends = np.cumsum([len(one) for one in each])[:-1]
    pieces = zip(np.split(best, ends), np.split(logprobs, ends), strict=True)
    return [TopLogprobs(ids, numbers) for ids, numbers in pieces]


def _active(datum: Datum) -> np.ndarray:
    """[N] bool: positions whose weight is not 0 (of [N, K] weights: any); all where there are none."""
    weights = datum.loss_fn_inputs.get("weights")
    if weights is None:
        return np.ones(datum.model_input.length, dtype=bool)
    return (weights.to_numpy().reshape(datum.model_input.length, -1) != 0).any(axis=1)
