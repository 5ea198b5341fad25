"""What a model says about the tokens of a prompt: their logprobs, the likeliest in their place, and those of given ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...datums.errors import ModelError, ShapeError, TokenRangeError
from ...datums.types import TensorData
from ..head.logprobs import linear_logprobs
from ..model.model import LoadedModel
from ..packing.hidden import hidden_states
from ..responses import TopLogprobs
from .params import Sampled, check_width, is_integer


@dataclass(frozen=True)
class Asked:
    """Which scores of a prompt of N tokens are asked for. Row i is about token i + 1, which the model has not read yet.

    logprobs  of its tokens
    topk      the k likeliest tokens in place of each; 0 for none
    targets   [N - 1] or [N - 1, K] ids whose logprobs are wanted, -1 for none; of a sparse one only the listed ids
    last      logprobs and topk are of the last n tokens alone
    """

    logprobs: bool = False
    topk: int = 0
    targets: TensorData | None = None
    last: int | None = None


@dataclass(frozen=True)
class PromptScores:
    """The answers; see `SampleResponse`."""

    prompt_logprobs: list[float | None] | None = None
    topk_prompt_logprobs: TopLogprobs | None = None
    target_prompt_logprobs: TensorData | None = None


def check_asked(model: Sampled, tokens: list[int], asked: Asked) -> None:
    """Raise ModelError, ShapeError or TokenRangeError for scores that a prompt cannot have, before anything is
    computed.
    """
    count = len(tokens)
    if not tokens or any(not 0 <= t < model.vocab_size for t in tokens):
        raise TokenRangeError(f"the prompt needs at least one token, all within 0 to {model.vocab_size - 1}")
    if model.max_length is not None and count - 1 > model.max_length:  # the last one is not read
        raise ModelError(
            f"the prompt has {count} tokens, but {model.name} reads at most {model.max_length}, and so gives "
            f"logprobs of {model.max_length + 1}. Cut the prompt"
        )
    check_width("topk_prompt_logprobs", asked.topk, model)
    if asked.last is not None:
        _check_last(asked.last, count, is_used=asked.logprobs or asked.topk > 0)
    if asked.targets is not None:
        _check_targets(asked.targets, count, model)


def _check_last(last: Any, count: int, *, is_used: bool) -> None:
    if not is_integer(last) or not 1 <= last < count:
        raise ModelError(
            f"prompt_logprobs_last_n must be 1 to {count - 1} for a prompt of {count} tokens, not {last!r}"
        )
    if not is_used:
        raise ModelError(
            "prompt_logprobs_last_n says of which tokens: ask for prompt logprobs or topk_prompt_logprobs too"
        )


def _check_targets(targets: TensorData, count: int, model: Sampled) -> None:
    shape, ids = targets.shape, np.asarray(targets.data)
    if targets.dtype != "int64" or len(shape) not in (1, 2) or shape[0] != count - 1:
        raise ShapeError(
            f"target_prompt_logprobs must be ids, int64 [{count - 1}] or [{count - 1}, K] for a prompt of {count} tokens (row i "
            f"is about token i + 1), not {targets.dtype} {list(shape)}"
        )
    outside = ids[(ids < -1) | (ids >= model.vocab_size)]
    if len(outside):
        raise TokenRangeError(
            f"target_prompt_logprobs names token {outside[0]}; {model.name} knows tokens 0 to {model.vocab_size - 1}, and -1 "
            "asks for nothing"
        )


def score_prompt(model: LoadedModel, tokens: list[int], asked: Asked) -> PromptScores:
    """One forward over the prompt, and one pass over the vocabulary at the positions that were asked about, in tiles.

    No matrix [tokens, vocabulary] is held. Raises as `check_asked` does.
    """
    check_asked(model, tokens, asked)
    count = len(tokens) - 1
    targets = np.full((count, 0), -1, np.int64) if asked.targets is None else target_ids(asked.targets)
    own = np.zeros(count, bool)  # positions whose own tokens are asked about
    if asked.logprobs or asked.topk:
        own[-asked.last if asked.last else 0 :] = True
    rows = np.flatnonzero(own | (targets >= 0).any(1))
    logprobs, of_targets = np.zeros(count), np.zeros(targets.shape, np.float32)
    top = TopLogprobs(
        np.zeros((count + 1, asked.topk), np.int64), np.full((count + 1, asked.topk), -np.inf, np.float32)
    )
    if len(rows):
        scores, ids, best = _scores(model, tokens, rows, targets[rows], asked.topk)
        logprobs[rows], of_targets[rows] = scores[:, 0], scores[:, 1:]
        of_targets[targets < 0] = 0.0
        top.tokens[1:][own], top.logprobs[1:][own] = ids[own[rows]], best[own[rows]]
    known = zip(logprobs.tolist(), own.tolist(), strict=True)
    return PromptScores(
        [None, *(value if is_own else None for value, is_own in known)] if asked.logprobs else None,
        top if asked.topk else None,
        None if asked.targets is None else _like(asked.targets, of_targets),
    )


def _scores(
    model: LoadedModel, tokens: list[int], rows: np.ndarray, targets: np.ndarray, topk: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At some positions: logprobs [M, 1 + K] of the next token and of targets [M, K], ids and logprobs [M, k] of the likeliest."""
    with torch.no_grad():
        chosen = None if len(rows) == len(tokens) - 1 else torch.from_numpy(rows)
        hidden = hidden_states(model, [tokens[:-1]], "padded", chosen)
        wanted = torch.from_numpy(np.asarray(tokens[1:], np.int64)[rows])
        if targets.size:
            wanted = torch.cat([wanted[:, None], torch.from_numpy(targets).clamp(min=0)], 1)
        outputs = linear_logprobs(hidden, model.head(), wanted.to(hidden.device), topk=topk)
    ids, best = outputs.topk_tokens, outputs.topk_logprobs
    return (
        outputs.logprobs.double().cpu().numpy().reshape(len(rows), -1),
        np.zeros((len(rows), 0), np.int64) if ids is None else ids.cpu().numpy(),
        np.zeros((len(rows), 0), np.float32) if best is None else best.float().cpu().numpy(),
    )


def target_ids(targets: TensorData) -> np.ndarray:
    """[N - 1, K] int64, -1 where nothing is asked: also where a sparse tensor lists nothing."""
    if targets.sparse_crow_indices is None:
        array = targets.to_numpy()
        return array[:, None] if array.ndim == 1 else array
    dense = np.full(targets.shape, -1, np.int64)
    dense[_listed(targets)] = targets.data
    return dense


def _listed(targets: TensorData) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the numbers that a sparse tensor lists."""
    rows = np.repeat(np.arange(targets.shape[0]), np.diff(targets.sparse_crow_indices or [0]))
    return rows, np.asarray(targets.sparse_col_indices, np.int64)


def _like(targets: TensorData, values: np.ndarray) -> TensorData:
    """Values [N - 1, K] in the shape and layout of the ids that were asked about."""
    if targets.sparse_crow_indices is None:
        return TensorData.from_numpy(values.reshape(targets.shape))
    listed = values[_listed(targets)].tolist()
    return TensorData(listed, "float32", targets.shape, targets.sparse_crow_indices, targets.sparse_col_indices)
