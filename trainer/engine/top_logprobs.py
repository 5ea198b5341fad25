"""A model's likeliest next tokens at each position, with their logprobs: a teacher's side of distillation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import ShapeError
from ...datums.types import Datum
from ...losses.batch.positions import active_in
from ..head.logprobs import in_autocast_precision, linear_logprobs
from ..model.model import LoadedModel
from ..packing.hidden import hidden_states, trim_to_last_read
from ..packing.shares import plan_shares
from ..responses import TopLogprobs
from ..transfer import to_host
from .checks import checked_routes, checked_tokens
from .micro_batch_run import budget_on, most_forwards
from .settings import EngineSettings


@torch.no_grad()
def top_logprobs(model: LoadedModel, datums: Sequence[Datum], k: int, settings: EngineSettings) -> list[TopLogprobs]:
    """The k likeliest next tokens at every position whose weight is not 0, one result per datum.

    k: 1 to the size of the vocabulary, which gives the whole distribution. On several ranks each computes those of its own
    datums, and the others' have no rows. Raises ShapeError for another k, ModelError for an encoder or a datum that is too
    long, TokenRangeError.
    """
    with model.ranks.agree():
        _check(model, k)
        sequences = checked_tokens(model, datums, ())
    routes, active = checked_routes(model, datums, settings), [active_in(datum) for datum in datums]
    lengths = [len(sequence) for sequence in sequences]
    shares = plan_shares(
        lengths,
        ranks=model.ranks.places,
        tokens=budget_on(model, settings),
        pairs=False,
        padded=settings.batching == "padded",
    )
    forwards = most_forwards(model, settings, lengths, shares)
    nothing = TopLogprobs(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    results: dict[int, TopLogprobs] = {}
    was_training = model.module.training
    model.module.eval()
    try:
        for cut in shares[model.ranks.place]:
            chosen = [sequences[i] for i in cut], [active[i] for i in cut], routes and [routes[i] for i in cut]
            results |= zip(cut, _of_micro_batch(model, *chosen, k, settings, forwards), strict=True)
    finally:
        model.module.train(was_training)
    return [results.get(i, nothing) for i in range(len(datums))]


def _check(model: LoadedModel, k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= model.vocab_size:
        raise ShapeError(f"k must be 1 to {model.vocab_size}, the size of {model.name}'s vocabulary, not {k!r}")
    if model.kind == "encoder":
        model.head()  # which says what an encoder lacks


def _of_micro_batch(
    model: LoadedModel,
    sequences: Sequence[np.ndarray],
    active: Sequence[np.ndarray],
    routes: Sequence[np.ndarray] | None,
    k: int,
    settings: EngineSettings,
    forwards: int,
) -> list[TopLogprobs]:
    positions = np.concatenate([np.zeros(0, bool), *active])
    tokens, logprobs = np.zeros((len(positions), k), np.int64), np.full((len(positions), k), -np.inf, np.float32)
    if positions.any():
        read, rows = trim_to_last_read(model, sequences, active)
    elif model.ranks.size > 1:  # the others run a forward now
        read, rows, routes = [np.zeros(1, np.int64)], np.zeros(0, np.int64), None
    else:
        return _by_datum(tokens, logprobs, active)

    def forward() -> dict[str, Tensor]:
        sent = [each[: len(tokens)] for each, tokens in zip(routes, read, strict=True)] if routes else None
        hidden = hidden_states(model, read, settings.batching, torch.from_numpy(rows), forwards=forwards, routes=sent)
        with torch.autocast(model.device.type, enabled=False):  # an adapter on the head is added to it unrounded
            head = model.head()
        hidden, narrow = in_autocast_precision(hidden, head)
        any_target = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        outputs = linear_logprobs(hidden, narrow, any_target, topk=k)
        assert outputs.topk_tokens is not None
        assert outputs.topk_logprobs is not None
        return {"tokens": outputs.topk_tokens, "logprobs": outputs.topk_logprobs}

    with model.precision():
        here = to_host(model.inside(forward))
    tokens[positions], logprobs[positions] = here["tokens"].numpy(), here["logprobs"].float().numpy()
    return _by_datum(tokens, logprobs, active)


def _by_datum(tokens: np.ndarray, logprobs: np.ndarray, active: Sequence[np.ndarray]) -> list[TopLogprobs]:
    ends = np.cumsum([len(mask) for mask in active], dtype=np.int64)[:-1]
    parts = zip(np.split(tokens, ends), np.split(logprobs, ends), strict=True)
    return [TopLogprobs(*each) for each in parts][: len(active)]
