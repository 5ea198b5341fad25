"""Evaluating a loss on a whole or on its parts, and comparing the two."""

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
from ..reductions import Count
from ..stats import Stat
from .loss_under_test import OutputLists, Subject, datum_of, rows, terms

#: What float64 rounding may move, relative to the size of what is compared.
TOLERANCE = 1e-10

#: Datums with their outputs.
Part = tuple[list[Datum], OutputLists]


@dataclass(frozen=True)
class Evaluation:
    """A loss on some data: the undivided total, the denominator, the reduced value, its gradients, the metrics."""

    total: Tensor
    count: Count
    value: Tensor
    gradients: OutputLists
    metrics: dict[str, Stat]


def leaves(outputs: Mapping[str, Sequence[Any]], dtype: torch.dtype = torch.float64) -> OutputLists:
    """Fresh tensors that gradients can be asked for."""
    return {
        n: [torch.as_tensor(t).detach().to(dtype).clone().requires_grad_() for t in ts] for n, ts in outputs.items()
    }


def evaluate(
    subject: Subject, data: Sequence[Datum], outputs: Mapping[str, Sequence[Any]], dtype: torch.dtype = torch.float64
) -> Evaluation:
    """The loss on all data in one piece."""
    own = leaves(outputs, dtype)
    return evaluate_parts(subject, [(list(data), own)], own)


def evaluate_parts(subject: Subject, parts: Sequence[Part], own: OutputLists) -> Evaluation:
    """The loss on parts, merged as the trainer merges them: counts first, then totals, gradients and metrics."""
    loss = subject.loss
    count: Any = sum((loss.count(data) for data, _ in parts[1:]), loss.count(parts[0][0]))
    found = [terms(loss, data, outputs) for data, outputs in parts]
    totals = [total for total, _ in found]
    value = torch.stack([(total / count).double() for total in totals]).sum()
    names = [set(metrics) for _, metrics in found]
    if any(other != names[0] for other in names):
        odd = sorted(set.union(*names) - set.intersection(*names))
        raise LossCheckError(
            f"the metrics {', '.join(odd)} appear in some parts of the data only, so parts cannot be merged"
            f"{_empty_hint(parts)}. Return every metric always; the mean of no values is a fine Stat"
        )
    metrics = stats.merge(metrics for _, metrics in found)
    total = torch.stack([t.double() for t in totals]).sum(0)
    return Evaluation(total.detach(), count, value.detach(), gradients(value, own), metrics)


def gradients(value: Tensor, own: OutputLists) -> OutputLists:
    """d value / d outputs; zeros where value does not depend on them."""
    flat = [tensor for tensors in own.values() for tensor in tensors]
    found = torch.autograd.grad(value, flat, allow_unused=True) if value.requires_grad and flat else (None,) * len(flat)
    pending = iter(zip(found, flat, strict=True))
    return {
        name: [torch.zeros_like(leaf) if g is None else g for g, leaf in (next(pending) for _ in tensors)]
        for name, tensors in own.items()
    }


def select(data: Sequence[Datum], outputs: OutputLists, chosen: Sequence[int]) -> Part:
    """Some of the datums, in the order given."""
    return [data[i] for i in chosen], {name: [tensors[i] for i in chosen] for name, tensors in outputs.items()}


def boundaries(subject: Subject, data: Sequence[Datum]) -> int:
    """How many places there are to cut: between tokens where the loss couples none, else between units."""
    if subject.couples == "token" and subject.reads_tokens:
        return sum(rows(d) for d in data) - 1
    return len(subject.units(data)) - 1


def cut_up(subject: Subject, data: Sequence[Datum], outputs: OutputLists, cuts: Sequence[int]) -> list[Part]:
    """The parts between `cuts`, which are numbers in 1 .. boundaries."""
    edges = [0, *sorted(set(cuts)), boundaries(subject, data) + 1]
    spans = list(itertools.pairwise(edges))
    if subject.couples != "token" or not subject.reads_tokens:
        units = subject.units(data)
        return [select(data, outputs, [i for unit in units[a:b] for i in unit]) for a, b in spans]
    return [_token_span(data, outputs, a, b) for a, b in spans]


def _token_span(data: Sequence[Datum], outputs: OutputLists, start: int, stop: int) -> Part:
    """Tokens start .. stop of all data in a row; a datum on an edge becomes a shorter datum."""
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
    """Raise LossCheckError, saying what differs, unless both evaluations agree. `how` says what was done to the data."""
    if whole.count != other.count and not _close_counts(whole.count, other.count):
        raise LossCheckError(f"the denominator {_counts(whole.count)} became {_counts(other.count)} {how}")
    _same_tensor(whole.total, other.total, "the total", how, exactly)
    _same_tensor(whole.value, other.value, "the loss", how, exactly)
    for name, tensors in whole.gradients.items():
        for i, (a, b) in enumerate(zip(tensors, other.gradients[name], strict=True)):
            _same_tensor(a, b, f"the gradient of datum {i}'s {name}", how, exactly)
    same_metrics(whole.metrics, other.metrics, how, exactly=exactly)


def same_metrics(whole: Mapping[str, Stat], other: Mapping[str, Stat], how: str, *, exactly: bool = False) -> None:
    """Raise LossCheckError unless both hold the same metrics: names, kinds, totals and counts."""
    if whole.keys() != other.keys():
        odd = ", ".join(sorted(whole.keys() ^ other.keys()))
        raise LossCheckError(f"the metrics {odd} appeared or vanished {how}: names must not depend on data")
    for name, stat in whole.items():
        if stat.kind != other[name].kind:
            raise LossCheckError(f"metric {name!r} became a {other[name].kind} instead of a {stat.kind} {how}")
        _same_tensor(stat.total, other[name].total, f"metric {name!r} (its total)", how, exactly)
        _same_tensor(stat.count, other[name].count, f"metric {name!r} (its count)", how, exactly)


def _same_tensor(a: Tensor, b: Tensor, what: str, how: str, exactly: bool) -> None:
    largest = float(torch.where(torch.isfinite(a), a.abs(), torch.ones_like(a)).max()) if a.numel() else 1.0
    relative, absolute = (0.0, 0.0) if exactly else (TOLERANCE, TOLERANCE * max(1.0, largest))
    agree = a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=relative, atol=absolute, equal_nan=True)
    if not agree:
        raise LossCheckError(f"{what} changed from {shown(a)} to {shown(b)} {how}")


def shown(tensor: Tensor) -> str:
    """A few numbers."""
    flat = [f"{value:.12g}" for value in tensor.detach().double().reshape(-1).tolist()]
    return flat[0] if tensor.ndim == 0 else f"[{', '.join(flat)}]"


def _close_counts(a: Count, b: Count) -> bool:
    if len(a.values) != len(b.values):
        return False
    pairs = zip(a.values, b.values, strict=True)
    return all(x == y or (x is not None and y is not None and abs(x - y) <= TOLERANCE * abs(x)) for x, y in pairs)


def _counts(count: Count) -> str:
    return ", ".join("1 (a sum)" if value is None else f"{value:.12g}" for value in count.values)


def _empty_hint(parts: Sequence[Part]) -> str:
    return " (one part has no datums, as a rank without data)" if any(not data for data, _ in parts) else ""
