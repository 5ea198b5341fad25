"""Hypothesis strategies that draw the data a loss reads, from its signature.

The checks draw `datums(loss)` and then `outputs(loss, data)`; `preference_pairs()`, `trajectories()` and `topk_targets()`
are for tests without a loss at hand. Values lie on a grid of 1/32, exact in float32 and short in a report. One byte is
drawn per value, which draws and shrinks fast. Extreme values are never drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from ...datums.inputs import key_kind
from ...datums.types import Datum, TensorData
from ..registry import get_loss
from ..spec.layers import LAYER_EMBEDDINGS
from ..spec.settings import WEIGHTS_KEY
from ..spec.spec import GROUP_KEY, Input
from ..spec.top import TOP_LOGPROBS, TOP_OUTPUTS
from ..spec.vocabulary import TOKEN_EMBEDDINGS, VOCABULARY_OUTPUTS
from .draws.meanings import Meaning, either_sign, flags, ids, log_probabilities, meaning_of, of_one, some_absent
from .loss_under_test import (
    BATCH_STYLE_KEYS,
    EMBEDDING_WIDTH,
    VOCABULARY_WIDTH,
    LossUnderTest,
    OutputLists,
    datum_of,
    has_columns,
    rows,
)

#: The weights that a byte stands for; examples shrink to the first.
MASKS = np.array([1, 1, 0, 1, 1, 0, 1, 1], dtype=np.float32)
POSITIVE_WEIGHTS = np.array([1, 0.5, 0, 1, 2, 0, 0.25, 1.5], dtype=np.float32)
REAL_WEIGHTS = np.array([1, -0.5, 0, -1, 2, 0, 0.25, -3], dtype=np.float32)
#: Sizes of groups, for losses that couple them.
GROUP_SIZES = (2, 1, 3, 2)
#: Numbers of candidates per position, for losses over candidates.
WIDTHS = (3, 1, 2, 5)


def datums(
    loss: Any,
    *,
    min_groups: int = 1,
    max_groups: int = 4,
    max_length: int = 4,
    masked: bool = True,
    inputs: Mapping[str, Sequence[float]] | None = None,
    min_units: int | None = None,
    max_units: int | None = None,
) -> st.SearchStrategy[list[Datum]]:
    """Datums that `loss` accepts, at least one of them with a position of non-zero weight.

    loss: an id, a function, a `Loss` or a `Mixture`. min_groups, max_groups: the number of datums, of pairs for a loss
    over pairs, or of groups of 1 to 3 datums that lie anywhere among each other, for a loss that couples these (`min_units`
    and `max_units` are their former names). masked: whether some positions and whole datums have weight 0. inputs: values to draw an input from, such as {"label": (0, 1)}; without it the range follows from the
    input's kind (logprobs at most 0, flags 0 or 1), else it is [-4, 4]. An optional input is in all datums or in none.
    """
    loss_under_test = as_loss_under_test(loss, inputs)
    fewest, most = min_groups if min_units is None else min_units, max_groups if max_units is None else max_units
    return _datums(loss_under_test, fewest, most, max_length, masked)


def outputs(loss: Any, data: Sequence[Datum]) -> st.SearchStrategy[OutputLists]:
    """Model outputs for `data`: every output that `loss` reads, float64, one tensor per datum."""
    loss_under_test = as_loss_under_test(loss)
    drawers = {**_OUTPUTS, "logprobs": candidate_logprobs} if loss_under_test.candidates else dict(_OUTPUTS)
    drawers |= {name: partial(_top, loss_under_test.top_k, name) for name in TOP_OUTPUTS}
    of_layers = (loss_under_test.layers, EMBEDDING_WIDTH)
    drawers[LAYER_EMBEDDINGS] = lambda data: _tensors([of_layers] * len(data), _vectors)
    return st.fixed_dictionaries({name: drawers[name](data) for name in loss_under_test.outputs})


def logprobs(data: Sequence[Datum]) -> st.SearchStrategy[list[Tensor]]:
    """[N] or [N, K] float64 log-probabilities of each datum's targets, in [-8, 0].

    Where the data carries log-probabilities, such as a sampler's, some draws are within 1/8 nat of them: losses that drop
    responses far off the sampler keep these.
    """
    shapes = [tuple(d.loss_fn_inputs["target_tokens"].shape) if _has_targets(d) else (rows(d),) for d in data]
    anywhere = _tensors(shapes, log_probabilities)
    if (carried := _carried_logprobs(data, shapes)) is None:
        return anywhere
    return st.one_of(anywhere, _tensors(shapes, _small).map(lambda moves: _moved_by(carried, moves)))


def candidate_logprobs(data: Sequence[Datum]) -> st.SearchStrategy[list[Tensor]]:
    """[N, K] float64 log-probabilities of K different tokens per position, whose probabilities add up to less than 1."""
    shapes = [tuple(d.loss_fn_inputs["target_tokens"].shape) for d in data]
    return _tensors(shapes, log_probabilities).map(lambda drawn: [torch.from_numpy(of_one(t.numpy())) for t in drawn])


def preference_pairs(*, max_pairs: int = 3, max_length: int = 4) -> st.SearchStrategy[list[Datum]]:
    """Datums 2i and 2i+1: a chosen and a rejected response with `weights` and `ref_logprobs`."""
    return datums("dpo", max_groups=max_pairs, max_length=max_length)


def trajectories(*, max_datums: int = 4, max_length: int = 6) -> st.SearchStrategy[list[Datum]]:
    """Sampled sequences with `weights`, `sampling_logprobs` and `advantages`."""
    return datums("ppo", max_groups=max_datums, max_length=max_length).map(_with_weights)


def topk_targets(*, max_datums: int = 4, max_length: int = 4) -> st.SearchStrategy[list[Datum]]:
    """[N, K] candidates with `teacher_logprobs` [N, K] and `weights` [N]; some are absent (-inf), and K varies by datum."""
    return datums("topk_forward_kl", max_groups=max_datums, max_length=max_length)


def as_loss_under_test(loss: Any, inputs: Mapping[str, Sequence[float]] | None = None) -> LossUnderTest:
    """A `LossUnderTest` from whatever `get_loss` takes."""
    return loss if isinstance(loss, LossUnderTest) else LossUnderTest(get_loss(loss), inputs or {})


@st.composite
def _datums(
    draw: Any, loss: LossUnderTest, min_groups: int, max_groups: int, max_length: int, masked: bool
) -> list[Datum]:
    members = _draw_groups(draw, loss, min_groups, max_groups) if loss.couples == "group" else None
    count = _draw_count(draw, loss, min_groups, max_groups) if members is None else len(members)
    lengths = [1 + byte % max_length for byte in draw(_bytes(count))]
    drawn: list[dict[str, np.ndarray]] = [{} for _ in lengths]
    widths = _draw_widths(draw, loss, count)
    if loss.reads_tokens:
        shapes = [(n, *width) for n, width in zip(lengths, widths, strict=True)]
        per_position = [(n,) for n in lengths]
        for inputs, shape in zip(drawn, shapes, strict=True):
            inputs["target_tokens"] = np.arange(int(np.prod(shape))).reshape(shape)
        for key in loss.weight_keys:
            weighed = per_position if key in loss.weight_keys_of_candidates else shapes
            for inputs, weights in zip(drawn, _draw_weights(draw, loss, weighed, masked, key), strict=True):
                inputs.update({} if weights is None else {key: weights})
    for inputs, group in zip(drawn, members or (), strict=False):
        inputs[GROUP_KEY] = np.array(group)
    for wanted in _wanted(loss):
        if wanted.name == GROUP_KEY and members is not None:
            continue
        if wanted.required or draw(st.booleans()):
            wide = widths if has_columns(wanted) else [()] * count
            one = (EMBEDDING_WIDTH,) if wanted.is_vector else ()
            shapes = [(n, *w) if wanted.per == "token" else one for n, w in zip(lengths, wide, strict=True)]
            kinds = ((wanted.is_flag, flags), (wanted.is_id, ids), (wanted.is_vector, _vectors))
            values = _split(draw, shapes, next((own for is_it, own in kinds if is_it), meaning_of(wanted.name, loss)))
            if wanted.name == loss.candidates:
                values = [some_absent(of_one(v.astype(np.float64)), draw(_bytes(len(v)))) for v in values]
            for inputs, array in zip(drawn, values, strict=True):
                inputs[wanted.name] = array
    data = [datum_of(n, inputs) for n, inputs in zip(lengths, drawn, strict=True)]
    # A loss that says how many values it returns may return none, as when all datums only serve an estimate.
    assume(all(part.spec.groups is None or not part.count(data).is_zero for part in loss.parts))
    return data


def _draw_count(draw: Any, loss: LossUnderTest, min_groups: int, max_groups: int) -> int:
    if loss.couples == "batch":
        largest = [n for n in loss.sizes if n >= 2] or list(loss.sizes)
        return draw(st.sampled_from(largest))
    return draw(st.integers(min_groups, max_groups)) * (2 if loss.has_pairs else 1)


def _draw_groups(draw: Any, loss: LossUnderTest, min_groups: int, max_groups: int) -> list[int]:
    """The group of each datum; both datums of a pair are in one."""
    count = draw(st.integers(min_groups, max_groups))
    sizes = [GROUP_SIZES[byte % len(GROUP_SIZES)] for byte in draw(_bytes(count))]
    members = [group - 3 for group, size in enumerate(sizes) for _ in range(size)]
    return np.repeat(draw(st.permutations(members)), 2 if loss.has_pairs else 1).tolist()


def _draw_widths(draw: Any, loss: LossUnderTest, count: int) -> list[tuple[int, ...]]:
    """(K,) for each datum, or () for one target per position. K varies by datum only for a loss over candidates."""
    if loss.candidates:
        return [(WIDTHS[byte % len(WIDTHS)],) for byte in draw(_bytes(count))]
    columns = draw(st.sampled_from((None, None, 2))) if loss.takes_columns else None
    return [() if columns is None else (columns,)] * count


def _wanted(loss: LossUnderTest) -> Sequence[Input]:
    if loss.is_batch_style:
        keys = dict.fromkeys((*BATCH_STYLE_KEYS, *loss.inputs))
        return [Input(key, True, "token") for key in keys]
    return loss.reads


def _draw_weights(
    draw: Any, loss: LossUnderTest, shapes: Sequence[tuple[int, ...]], masked: bool, key: str
) -> list[np.ndarray] | list[None]:
    """Weights in the shapes of the targets; None where they are left out and count as ones, as under their usual key."""
    kinds = [MASKS, REAL_WEIGHTS if loss.takes_real_weights else POSITIVE_WEIGHTS]
    chosen = draw(st.sampled_from([*kinds, None] if loss.may_lack_weights and key == WEIGHTS_KEY else kinds))
    if chosen is None:
        return [None] * len(shapes)
    flat = [chosen[np.frombuffer(draw(_bytes(int(np.prod(shape)))), dtype=np.uint8) % 8] for shape in shapes]
    together = 2 if loss.has_pairs else 1
    active = [byte % 4 != 3 or not masked or loss.is_laid_out for byte in draw(_bytes(len(shapes) // together))]
    active = active if any(active) else [True, *active[1:]]
    for i, weights in enumerate(flat):
        if not masked:
            weights[weights == 0] = 1
        if not active[i // together]:
            weights[:] = 0
        elif not weights.any():
            weights[0] = 1
    return [weights.reshape(shape) for weights, shape in zip(flat, shapes, strict=True)]


def _bytes(count: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=count, max_size=count)


def _split(draw: Any, shapes: Sequence[tuple[int, ...]], meaning: Meaning) -> list[np.ndarray]:
    """float32 arrays of `shapes`, from one draw for all datums."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    drawn = np.frombuffer(draw(_bytes(sum(sizes))), dtype=np.uint8).astype(np.int64)
    values = np.split(np.asarray(meaning(drawn), dtype=np.float32) + np.float32(0), np.cumsum(sizes)[:-1])
    return [value.reshape(shape) for value, shape in zip(values, shapes, strict=True)]


@st.composite
def _tensors(draw: Any, shapes: Sequence[tuple[int, ...]], meaning: Meaning) -> list[Tensor]:
    return [torch.from_numpy(array.astype(np.float64)) for array in _split(draw, shapes, meaning)]


def _entropies(data: Sequence[Datum]) -> st.SearchStrategy[list[Tensor]]:
    return _tensors([(rows(d),) for d in data], lambda drawn: drawn / 32)


def _vectors(drawn: np.ndarray) -> np.ndarray:
    """Distinct and never zero, so that no two documents tie and every cosine has a gradient. Offsets lie off the grid.

    No vector is as far from two others by its offsets alone: i³ is not midway between two other cubes, nor are these, which
    stay small.
    """
    moved = either_sign(drawn).reshape(-1, EMBEDDING_WIDTH)
    return (moved + [[1 + 1 / 128, i**3 % 257 / 512, i**2 % 67 / 2048] for i in range(len(moved))]).reshape(-1)


def _distributions(data: Sequence[Datum]) -> st.SearchStrategy[list[Tensor]]:
    drawn = _tensors([(rows(d), VOCABULARY_WIDTH) for d in data], log_probabilities)
    return drawn.map(lambda tensors: [tensor.log_softmax(-1) for tensor in tensors])


def _top(count: int, name: str, data: Sequence[Datum]) -> st.SearchStrategy[list[Tensor]]:
    """[N, k] float64 log-probabilities of the k likeliest tokens, falling, or their ids, which differ within a row."""
    drawn = _tensors([(rows(d), count) for d in data], log_probabilities)
    if name == TOP_LOGPROBS:
        return drawn.map(lambda tensors: [torch.from_numpy(-np.sort(-of_one(one.numpy()), axis=1)) for one in tensors])
    return drawn.map(lambda tensors: [one.argsort(1) + torch.arange(len(one))[:, None] for one in tensors])


_OUTPUTS: dict[str, Callable[[Sequence[Datum]], st.SearchStrategy[list[Tensor]]]] = {
    "logprobs": logprobs,
    "entropy": _entropies,
    "logsumexp": lambda data: _tensors([(rows(d),) for d in data], either_sign),
    "mean_logprobs": lambda data: _tensors([(rows(d),) for d in data], lambda drawn: -4 - drawn / 32),
    "values": lambda data: _tensors([(rows(d),) for d in data], either_sign),
    "embeddings": lambda data: _tensors([(EMBEDDING_WIDTH,)] * len(data), _vectors),
    TOKEN_EMBEDDINGS: lambda data: _tensors([(rows(d), EMBEDDING_WIDTH) for d in data], _vectors),
    **dict.fromkeys(VOCABULARY_OUTPUTS, _distributions),
}


def _carried_logprobs(data: Sequence[Datum], shapes: Sequence[tuple[int, ...]]) -> list[Tensor] | None:
    """The first log-probabilities that all datums carry, in the shapes of the model's."""
    for key in data[0].loss_fn_inputs if data else ():
        arrays = [
            d.loss_fn_inputs[key].to_numpy() for d in data if key_kind(key) == "logprob" and key in d.loss_fn_inputs
        ]
        if [array.shape for array in arrays] == list(shapes):
            return [torch.from_numpy(array.astype(np.float64)) for array in arrays]
    return None


def _small(drawn: np.ndarray) -> np.ndarray:
    return either_sign(drawn) / 32


def _moved_by(values: Sequence[Tensor], moves: Sequence[Tensor]) -> list[Tensor]:
    return [(value + move).clamp(max=0) for value, move in zip(values, moves, strict=True)]


def _has_targets(datum: Datum) -> bool:
    return "target_tokens" in datum.loss_fn_inputs


def _with_weights(data: list[Datum]) -> list[Datum]:
    """The data with missing weights added as ones."""
    return [
        d
        if "weights" in d.loss_fn_inputs
        else Datum(d.model_input, {**d.loss_fn_inputs, "weights": TensorData([1.0] * rows(d))})
        for d in data
    ]
