"""Hypothesis strategies that draw whatever data a loss reads, from nothing but its signature.

`datums(loss)` and then `outputs(loss, data)` are what the checks draw; `preference_pairs()`, `trajectories()` and
`topk_targets()` are the same for tests that have no loss at hand. Numbers lie on a grid of 1/32 (exact in float32, short in a report): 256 of
them an input, one byte each, which draws and shrinks fast. Extreme values are never drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from ...datums.key_kinds import key_kind
from ...datums.types import Datum, TensorData
from ..spec.spec import Input
from .loss_under_test import BATCH_STYLE_KEYS, EMBEDDING_WIDTH, OutputLists, Subject, datum_of, has_columns, rows

#: Weights that a byte stands for; the first is what examples shrink to.
MASKS = np.array([1, 1, 0, 1, 1, 0, 1, 1], dtype=np.float32)
POSITIVE_WEIGHTS = np.array([1, 0.5, 0, 1, 2, 0, 0.25, 1.5], dtype=np.float32)
REAL_WEIGHTS = np.array([1, -0.5, 0, -1, 2, 0, 0.25, -3], dtype=np.float32)
#: How many candidates a position may have, in losses over candidates.
WIDTHS = (3, 1, 2, 5)


def datums(
    loss: Any,
    *,
    min_units: int = 1,
    max_units: int = 4,
    max_length: int = 4,
    masked: bool = True,
    inputs: Mapping[str, Sequence[float]] | None = None,
) -> st.SearchStrategy[list[Datum]]:
    """Datums that `loss` can be given, at least one of them with a position of non-zero weight.

    loss: an id, a function, a `Loss` or a `Mixture`. min_units, max_units: datums, or pairs where it compares pairs.
    masked: with positions, and whole datums, of weight 0. inputs: numbers that an input is drawn from, such as
    {"label": (0, 1)}; without it by name (logprobs at most 0, thresholds within their meaning), else from [-4, 4].
    Optional inputs are there or not, for all datums alike.
    """
    subject = as_subject(loss, inputs)
    return _datums(subject, min_units, max_units, max_length, masked)


def outputs(loss: Any, data: Sequence[Datum]) -> st.SearchStrategy[OutputLists]:
    """What a model might say about `data`: every output that `loss` reads, float64, one tensor a datum."""
    subject = as_subject(loss)
    drawers = {**_OUTPUTS, "logprobs": candidate_logprobs} if subject.candidates else _OUTPUTS
    return st.fixed_dictionaries({name: drawers[name](data) for name in subject.outputs})


def logprobs(data: Sequence[Datum]) -> st.SearchStrategy[list[Tensor]]:
    """[N] or [N, K] float64 log-probabilities of each datum's targets, in [-8, 0]."""
    shapes = [tuple(d.loss_fn_inputs["target_tokens"].shape) if _has_targets(d) else (rows(d),) for d in data]
    return _tensors(shapes, _log_probabilities)


def candidate_logprobs(data: Sequence[Datum]) -> st.SearchStrategy[list[Tensor]]:
    """[N, K] float64 log-probabilities of K different tokens a position: their probabilities add up to less than 1."""
    shapes = [tuple(d.loss_fn_inputs["target_tokens"].shape) for d in data]
    return _tensors(shapes, _log_probabilities).map(lambda drawn: [torch.from_numpy(_of_one(t.numpy())) for t in drawn])


def preference_pairs(*, max_pairs: int = 3, max_length: int = 4) -> st.SearchStrategy[list[Datum]]:
    """Datums 2i and 2i+1: a chosen and a rejected response with `weights` and `ref_logprobs`."""
    return datums("dpo", max_units=max_pairs, max_length=max_length)


def trajectories(*, max_datums: int = 4, max_length: int = 6) -> st.SearchStrategy[list[Datum]]:
    """Sampled sequences with `weights`, `sampling_logprobs` and `advantages`."""
    return datums("ppo", max_units=max_datums, max_length=max_length).map(_with_weights)


def topk_targets(*, max_datums: int = 4, max_length: int = 4) -> st.SearchStrategy[list[Datum]]:
    """[N, K] candidates with `teacher_logprobs` [N, K] and `weights` [N]; some absent (-inf), K differs between datums."""
    return datums("topk_forward_kl", max_units=max_datums, max_length=max_length)


def as_subject(loss: Any, inputs: Mapping[str, Sequence[float]] | None = None) -> Subject:
    """A `Subject` from whatever `get_loss` takes."""
    from ..registry import get_loss

    return loss if isinstance(loss, Subject) else Subject(get_loss(loss), inputs or {})


@st.composite
def _datums(draw: Any, subject: Subject, min_units: int, max_units: int, max_length: int, masked: bool) -> list[Datum]:
    count = _draw_count(draw, subject, min_units, max_units)
    lengths = [1 + byte % max_length for byte in draw(_bytes(count))]
    drawn: list[dict[str, np.ndarray]] = [{} for _ in lengths]
    widths = _draw_widths(draw, subject, count)
    if subject.reads_tokens:
        shapes = [(n, *width) for n, width in zip(lengths, widths, strict=True)]
        weighed = [(n,) for n in lengths] if subject.candidates else shapes
        for inputs, shape, weights in zip(drawn, shapes, _draw_weights(draw, subject, weighed, masked), strict=True):
            inputs["target_tokens"] = np.arange(int(np.prod(shape))).reshape(shape)
            if weights is not None:
                inputs["weights"] = weights
    for wanted in _wanted(subject):
        if wanted.required or draw(st.booleans()):
            wide = widths if has_columns(wanted) else [()] * count
            shapes = [(n, *w) if wanted.per == "token" else () for n, w in zip(lengths, wide, strict=True)]
            values = _split(draw, shapes, _flag if wanted.is_flag else _meaning(wanted.name, subject))
            if wanted.name == subject.candidates:
                values = [_some_absent(_of_one(v.astype(np.float64)), draw(_bytes(len(v)))) for v in values]
            for inputs, array in zip(drawn, values, strict=True):
                inputs[wanted.name] = array
    data = [datum_of(n, inputs) for n, inputs in zip(lengths, drawn, strict=True)]
    # A loss that says itself how many datums it has values for may have none, such as where all serve an estimate.
    assume(all(part.spec.groups is None or not part.count(data).is_zero for part in subject.parts))
    return data


def _draw_count(draw: Any, subject: Subject, min_units: int, max_units: int) -> int:
    if subject.couples == "batch":
        largest = [n for n in subject.sizes if n >= 2] or list(subject.sizes)
        return draw(st.sampled_from(largest))
    return draw(st.integers(min_units, max_units)) * (2 if subject.has_pairs else 1)


def _draw_widths(draw: Any, subject: Subject, count: int) -> list[tuple[int, ...]]:
    """(K,) a datum, or () where its targets are one a position. Only a loss over candidates reads it, so only there K may
    differ from datum to datum."""
    if subject.candidates:
        return [(WIDTHS[byte % len(WIDTHS)],) for byte in draw(_bytes(count))]
    columns = draw(st.sampled_from((None, None, 2))) if subject.takes_columns else None
    return [() if columns is None else (columns,)] * count


def _wanted(subject: Subject) -> Sequence[Input]:
    if subject.is_batch_style:
        keys = dict.fromkeys((*BATCH_STYLE_KEYS, *subject.inputs))
        return [Input(key, True, "token") for key in keys]
    return subject.reads


def _draw_weights(
    draw: Any, subject: Subject, shapes: Sequence[tuple[int, ...]], masked: bool
) -> list[np.ndarray] | list[None]:
    """Weights in the shapes of the targets; None where they are left out and mean ones."""
    kinds = [MASKS, REAL_WEIGHTS if subject.takes_real_weights else POSITIVE_WEIGHTS]
    chosen = draw(st.sampled_from([*kinds, None] if subject.may_lack_weights else kinds))
    if chosen is None:
        return [None] * len(shapes)
    flat = [chosen[np.frombuffer(draw(_bytes(int(np.prod(shape)))), dtype=np.uint8) % 8] for shape in shapes]
    together = 2 if subject.has_pairs else 1
    alive = [byte % 4 != 3 or not masked for byte in draw(_bytes(len(shapes) // together))]
    alive = alive if any(alive) else [True, *alive[1:]]
    for i, weights in enumerate(flat):
        if not masked:
            weights[weights == 0] = 1
        if not alive[i // together]:
            weights[:] = 0
        elif not weights.any():
            weights[0] = 1
    return [weights.reshape(shape) for weights, shape in zip(flat, shapes, strict=True)]


Meaning = Callable[[np.ndarray], np.ndarray]


def _meaning(name: str, subject: Subject | None = None) -> Meaning:
    """From bytes to numbers that an input of this name may hold; byte 0 is the simplest."""
    if subject is not None and name in subject.inputs:
        choices = np.array(subject.inputs[name], dtype=np.float32)
        return lambda drawn: choices[drawn % len(choices)]
    kind = key_kind(name)
    if kind == "logprob":
        return _log_probabilities
    if kind == "prob":
        return lambda drawn: drawn / 256
    if name == "clip_low_threshold":
        return lambda drawn: 1 - drawn / 256
    if name == "clip_high_threshold":
        return lambda drawn: 1 + drawn / 64
    if kind == "flag":
        return _flag
    return _either_sign


def _flag(drawn: np.ndarray) -> np.ndarray:
    return drawn % 2


def _log_probabilities(drawn: np.ndarray) -> np.ndarray:
    return -(drawn / 32)


def _of_one(logprobs: np.ndarray) -> np.ndarray:
    """Rows [N, K] as log-probabilities of K of the tokens of a vocabulary: one more token holds what is left."""
    rest = np.zeros((len(logprobs), 1))
    return logprobs - np.logaddexp.reduce(np.concatenate([logprobs, rest], axis=1), axis=1, keepdims=True)


def _some_absent(logprobs: np.ndarray, drawn: bytes) -> np.ndarray:
    """float32, the last candidate of about a fifth of the rows absent (-inf), never the only one."""
    found = logprobs.astype(np.float32)
    if found.shape[1] > 1:
        found[np.frombuffer(drawn, dtype=np.uint8) % 5 == 4, -1] = -np.inf
    return found


def _either_sign(drawn: np.ndarray) -> np.ndarray:
    return np.where(drawn % 2 == 1, (drawn + 1) // 2, -(drawn // 2)) / 32


def _bytes(count: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=count, max_size=count)


def _split(draw: Any, shapes: Sequence[tuple[int, ...]], meaning: Meaning) -> list[np.ndarray]:
    """One draw for all datums: arrays of `shapes`, float32."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    drawn = np.frombuffer(draw(_bytes(sum(sizes))), dtype=np.uint8).astype(np.int64)
    values = np.split(np.asarray(meaning(drawn), dtype=np.float32) + np.float32(0), np.cumsum(sizes)[:-1])
    return [value.reshape(shape) for value, shape in zip(values, shapes, strict=True)]


@st.composite
def _tensors(draw: Any, shapes: Sequence[tuple[int, ...]], meaning: Meaning) -> list[Tensor]:
    return [torch.from_numpy(array.astype(np.float64)) for array in _split(draw, shapes, meaning)]


def _entropies(data: Sequence[Datum]) -> st.SearchStrategy[list[Tensor]]:
    return _tensors([(rows(d),) for d in data], lambda drawn: drawn / 32)


def _embeddings(data: Sequence[Datum]) -> st.SearchStrategy[list[Tensor]]:
    """Distinct and never zero: no two documents tie, and every cosine has a gradient. The offsets lie off the grid."""
    offsets = [torch.tensor([1 + 1 / 128, i / 512, 0.0], dtype=torch.float64) for i in range(len(data))]
    drawn = _tensors([(EMBEDDING_WIDTH,)] * len(data), _either_sign)
    return drawn.map(lambda rows: [row + offset for row, offset in zip(rows, offsets, strict=True)])


_OUTPUTS: dict[str, Callable[[Sequence[Datum]], st.SearchStrategy[list[Tensor]]]] = {
    "logprobs": logprobs,
    "entropy": _entropies,
    "logsumexp": lambda data: _tensors([(rows(d),) for d in data], _either_sign),
    "mean_logprobs": lambda data: _tensors([(rows(d),) for d in data], lambda drawn: -4 - drawn / 32),
    "values": lambda data: _tensors([(rows(d),) for d in data], _either_sign),
    "embeddings": _embeddings,
}


def _has_targets(datum: Datum) -> bool:
    return "target_tokens" in datum.loss_fn_inputs


def _with_weights(data: list[Datum]) -> list[Datum]:
    """Missing weights written out as ones."""
    return [
        d
        if "weights" in d.loss_fn_inputs
        else Datum(d.model_input, {**d.loss_fn_inputs, "weights": TensorData([1.0] * rows(d))})
        for d in data
    ]
