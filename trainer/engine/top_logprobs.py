"""A model's likeliest next tokens at each position, with their logprobs: a teacher's side of distillation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...datums.errors import ShapeError
from ...datums.types import Datum
from ...losses.batch.positions import active_in
from ..head.logprobs import Head, linear_logprobs
from ..model.model import LoadedModel
from ..packing.hidden import hidden_states, trim_to_last_read
from ..packing.micro_batches import plan_micro_batches
from ..responses import TopLogprobs
from ..transfer import to_host
from .checks import checked_tokens
from .forward import in_autocast_precision
from .settings import EngineSettings


@torch.no_grad()
def top_logprobs(model: LoadedModel, datums: Sequence[Datum], k: int, settings: EngineSettings) -> list[TopLogprobs]:
    """The k likeliest next tokens at every position whose weight is not 0, one result per datum.

    k: 1 to the size of the vocabulary, which gives the whole distribution. Raises ShapeError for another k, ModelError for
    an encoder or a datum that is too long, TokenRangeError.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= model.vocab_size:
        raise ShapeError(f"k must be 1 to {model.vocab_size}, the size of {model.name}'s vocabulary, not {k!r}")
    head = model.head()
    sequences = checked_tokens(model, datums, ())
    active = [active_in(datum) for datum in datums]
    cuts = plan_micro_batches(
        [len(sequence) for sequence in sequences],
        tokens=settings.tokens_per_micro_batch,
        pairs=False,
        padded=settings.batching == "padded",
    )
    results: dict[int, TopLogprobs] = {}
    was_training = model.module.training
    model.module.eval()
    try:
        for cut in cuts:
            chosen = [sequences[i] for i in cut], [active[i] for i in cut]
            results |= zip(cut, _of_micro_batch(model, head, *chosen, k, settings), strict=True)
    finally:
        model.module.train(was_training)
    return [results[i] for i in range(len(datums))]


def _of_micro_batch(
    model: LoadedModel,
    head: Head,
    sequences: Sequence[np.ndarray],
    active: Sequence[np.ndarray],
    k: int,
    settings: EngineSettings,
) -> list[TopLogprobs]:
    positions = np.concatenate(active)
    tokens, logprobs = np.zeros((len(positions), k), np.int64), np.full((len(positions), k), -np.inf, np.float32)
    if positions.any():
        read, rows = trim_to_last_read(model, sequences, active)
        with model.precision():
            hidden = hidden_states(model, read, settings.batching, torch.from_numpy(rows))
            hidden, narrow = in_autocast_precision(hidden, head)
        any_target = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        outputs = linear_logprobs(hidden, narrow, any_target, topk=k)
        assert outputs.topk_tokens is not None
        assert outputs.topk_logprobs is not None
        here = to_host({"tokens": outputs.topk_tokens, "logprobs": outputs.topk_logprobs})
        tokens[positions], logprobs[positions] = here["tokens"].numpy(), here["logprobs"].float().numpy()
    ends = np.cumsum([len(mask) for mask in active])[:-1]
    return [TopLogprobs(*each) for each in zip(np.split(tokens, ends), np.split(logprobs, ends), strict=True)]
