"""Evaluate a loss on a batch as a whole or in parts, and compare the results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import LossCheckError
from ...datums.types import Datum
from .. import stats
from ..batch.outputs import Outputs
from ..reductions import Count
from ..spec.layers import LAYER_EMBEDDINGS
from ..spec.top import TOP_OUTPUTS, TOP_TOKENS
from ..spec.vocabulary import TOKEN_EMBEDDINGS, VOCABULARY_OUTPUTS
from ..stats import Stat
from .loss_under_test import EMBEDDING_WIDTH, VOCABULARY_WIDTH, LossUnderTest, OutputLists, datum_of, rows

#: Relative difference that rounding may cause.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}

#: Datums with their outputs.
Part = tuple[list[Datum], OutputLists]


@dataclass(frozen=True)
class Evaluation:
    """A loss on some data: total before division, denominator, reduced value, gradients and metrics.

    tolerance: the relative difference that rounding may cause.
    """

    total: Tensor
    count: Count
    value: Tensor
    gradients: OutputLists
    metrics: dict[str, Stat]
    tolerance: float = TOLERANCES[torch.float64]


def terms(
    loss: Any, data: Sequence[Datum], outputs: OutputLists, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, dict[str, Stat]]:
    """`loss.terms`. For no datums, as on a rank without data, the outputs are empty tensors of `dtype` with gradients."""
    if data:
        return loss.terms(data, outputs)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("embeddings", TOKEN_EMBEDDINGS), (0, EMBEDDING_WIDTH))
    shapes |= dict.fromkeys(VOCABULARY_OUTPUTS, (0, VOCABULARY_WIDTH))
    shapes[LAYER_EMBEDDINGS] = (0, max(len(part.layers) for _, part in loss.parts), EMBEDDING_WIDTH)
    if any(part.spec.candidates is not None for _, part in loss.parts):
        shapes["logprobs"] = (0, 1)
    shapes |= dict.fromkeys(TOP_OUTPUTS, (0, max(part.top_k for _, part in loss.parts)))
    empty: dict[str, Any] = {n: torch.zeros(shapes.get(n, (0,)), dtype=dtype, requires_grad=True) for n in loss.outputs}
    empty |= {TOP_TOKENS: torch.zeros(shapes[TOP_TOKENS], dtype=torch.int64)} if TOP_TOKENS in empty else {}
    return loss.terms([], Outputs(**empty))


def leaves(outputs: Mapping[str, Sequence[Any]], dtype: torch.dtype = torch.float64) -> OutputLists:
    """Detached copies that require gradients; ids as they are."""
    return {name: [_leaf(torch.as_tensor(one), dtype) for one in tensors] for name, tensors in outputs.items()}


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    copy = tensor.detach().clone()
    return copy.to(dtype).requires_grad_() if copy.is_floating_point() else copy


def evaluate(
    loss: LossUnderTest,
    data: Sequence[Datum],
    outputs: Mapping[str, Sequence[Any]],
    dtype: torch.dtype | None = None,
) -> Evaluation:
    """The loss on all data in one piece."""
    own = leaves(outputs, dtype or loss.dtype)
    return evaluate_parts(loss, [(list(data), own)], own)


def evaluate_parts(loss_under_test: LossUnderTest, parts: Sequence[Part], whole: OutputLists) -> Evaluation:
    """The loss on parts, merged as the trainer merges them: counts first, then totals, gradients and metrics.

    whole: the outputs that the parts are slices of; gradients are taken with respect to them.
    """
    loss = loss_under_test.wrapped
    count: Any = sum((loss.count(data) for data, _ in parts[1:]), loss.count(parts[0][0]))
    terms_of_parts = [terms(loss, data, outputs, loss_under_test.dtype) for data, outputs in parts]
    totals = [total for total, _ in terms_of_parts]
    value = torch.stack([(total / count).double() for total in totals]).sum()
    names = [set(metrics) for _, metrics in terms_of_parts]
    if any(other != names[0] for other in names):
        odd = sorted(set.union(*names) - set.intersection(*names))
        raise LossCheckError(
            f"the metrics {', '.join(odd)} appear in some parts of the data only, so parts cannot be merged"
            f"{_empty_hint(parts)}. Always return every metric; the mean of no values is a valid Stat"
        )
    metrics = stats.merge(metrics for _, metrics in terms_of_parts)
    total = torch.stack([t.double() for t in totals]).sum(0)
    slopes = gradients(value, whole)
    return Evaluation(total.detach(), count, value.detach(), slopes, metrics, TOLERANCES[loss_under_test.precision])


def gradients(value: Tensor, outputs: OutputLists) -> OutputLists:
    """d value / d outputs; zeros where value does not depend on them."""
    flat = [tensor for tensors in outputs.values() for tensor in tensors if tensor.requires_grad]
    computed = torch.autograd.grad(value, flat, allow_unused=True) if value.requires_grad and flat else ()
    slopes = {id(leaf): slope for leaf, slope in zip(flat, computed, strict=False) if slope is not None}
    return {
        name: [
            slopes[id(leaf)]
            if id(leaf) in slopes
            else torch.zeros(leaf.shape, dtype=leaf.dtype if leaf.is_floating_point() else torch.float64)
            for leaf in tensors
        ]
        for name, tensors in outputs.items()
    }


def select(data: Sequence[Datum], outputs: OutputLists, chosen: Sequence[int]) -> Part:
    """The chosen datums and their outputs, in the order given."""
    return [data[i] for i in chosen], {name: [tensors[i] for i in chosen] for name, tensors in outputs.items()}


def boundaries(loss: LossUnderTest, data: Sequence[Datum]) -> int:
    """The number of places to cut: between tokens where the loss couples none, else between groups of datums."""
    if loss.couples == "token" and loss.reads_tokens:
        return sum(rows(d) for d in data) - 1
    return len(loss.groups(data)) - 1


def cut_up(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, cuts: Sequence[int]) -> list[Part]:
    """The parts between `cuts`, each in 1 .. boundaries."""
    edges = [0, *sorted(set(cuts)), boundaries(loss, data) + 1]
    spans = list(itertools.pairwise(edges))
    if loss.couples != "token" or not loss.reads_tokens:
        groups = loss.groups(data)
        return [select(data, outputs, [i for group in groups[a:b] for i in group]) for a, b in spans]
    return [_token_span(data, outputs, a, b) for a, b in spans]


def _token_span(data: Sequence[Datum], outputs: OutputLists, start: int, stop: int) -> Part:
    """Tokens start .. stop of the concatenated data; a datum across an edge is cut shorter."""
    chosen: list[Datum] = []
    views: OutputLists = {name: [] for name in outputs}
    first = 0
    for i, datum in enumerate(data):
        length = rows(datum)
        a, b = max(start - first, 0), min(stop - first, length)
        first += length
        if a >= b:
            continue
        chosen.append(datum if b - a == length else sliced(datum, a, b, length))
        for name, tensors in outputs.items():
            views[name].append(tensors[i][a:b])
    return chosen, views


def sliced(datum: Datum, a: int, b: int, length: int) -> Datum:
    """Positions a .. b of a datum of `length`."""
    cut: dict[str, np.ndarray] = {}
    for key, value in datum.loss_fn_inputs.items():
        array = value.to_numpy()
        cut[key] = array[a:b] if array.ndim and len(array) == length else array
    return datum_of(b - a, cut)


def same(whole: Evaluation, other: Evaluation, how: str, *, exactly: bool = False) -> None:
    """Raise LossCheckError naming the difference, if there is one. `how` says what was done to the data."""
    tolerance = 0.0 if exactly else whole.tolerance
    if whole.count != other.count and not _close_counts(whole.count, other.count):
        raise LossCheckError(f"the denominator {_counts(whole.count)} became {_counts(other.count)} {how}")
    _same_tensor(whole.total, other.total, "the total", how, tolerance)
    _same_tensor(whole.value, other.value, "the loss", how, tolerance)
    for name, tensors in whole.gradients.items():
        for i, (a, b) in enumerate(zip(tensors, other.gradients[name], strict=True)):
            _same_tensor(a, b, f"the gradient of datum {i}'s {name}", how, tolerance)
    same_metrics(whole.metrics, other.metrics, how, tolerance)


def same_metrics(whole: Mapping[str, Stat], other: Mapping[str, Stat], how: str, tolerance: float) -> None:
    """Raise LossCheckError unless names, kinds, totals and counts of all metrics agree."""
    if whole.keys() != other.keys():
        odd = ", ".join(sorted(whole.keys() ^ other.keys()))
        raise LossCheckError(f"the metrics {odd} appeared or vanished {how}: metric names must not depend on the data")
    for name, stat in whole.items():
        if stat.kind != other[name].kind:
            raise LossCheckError(f"metric {name!r} became a {other[name].kind} instead of a {stat.kind} {how}")
        _same_tensor(stat.total, other[name].total, f"metric {name!r} (its total)", how, tolerance)
        _same_tensor(stat.count, other[name].count, f"metric {name!r} (its count)", how, tolerance)


def _same_tensor(a: Tensor, b: Tensor, what: str, how: str, tolerance: float) -> None:
    largest = float(torch.where(torch.isfinite(a), a.abs(), torch.ones_like(a)).max()) if a.numel() else 1.0
    absolute = tolerance * max(1.0, largest)
    agree = a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=absolute, equal_nan=True)
    if not agree:
        raise LossCheckError(f"{what} changed from {shown(a)} to {shown(b)} {how}")


def shown(tensor: Tensor) -> str:
    """Numbers for an error message."""
    flat = [f"{value:.12g}" for value in tensor.detach().double().reshape(-1).tolist()]
    return flat[0] if tensor.ndim == 0 else f"[{', '.join(flat)}]"


def _close_counts(a: Count, b: Count) -> bool:
    if len(a.values) != len(b.values):
        return False
    pairs = zip(a.values, b.values, strict=True)
    return all(
        x == y or (x is not None and y is not None and abs(x - y) <= TOLERANCES[torch.float64] * abs(x))
        for x, y in pairs
    )


def _counts(count: Count) -> str:
    return ", ".join("1 (a sum)" if value is None else f"{value:.12g}" for value in count.values)


def _empty_hint(parts: Sequence[Part]) -> str:
    return " (one part has no datums, as a rank without data)" if any(not data for data, _ in parts) else ""
