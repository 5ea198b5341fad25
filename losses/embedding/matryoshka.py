"""Embeddings whose first coordinates are embeddings too: any embedding loss, summed over several lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from ...datums.errors import LossConfigError, LossContractError, ShapeError
from ...datums.keywords import explained
from .. import stats
from ..ids import LossId, PresetId
from ..loss.loss import Loss
from ..registry import get_loss, is_registered
from ..stats import Stat

#: Laws that also hold for the sum over lengths. Rotation invariance does not: it mixes the first coordinates with others.
LAWS_OF_THE_SUM = ("scale_invariance", "grad_cache_is_full_batch")


@explained
def matryoshka(
    loss: LossId | PresetId | str | Loss | Callable[..., Any],
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    **config: Any,
) -> Loss:
    """Σ_d weight_d loss(the first d coordinates), after Kusupati et al. 2022, arXiv:2205.13147 eq. 1.

        training.forward_backward(datums, matryoshka("info_nce", dims=(768, 256, 64)))

    loss: an id, a function or a `Loss` over `embeddings`. config: its settings, which remain settings of the result. A loss
    over cosines normalizes at each length. dims: numbers of coordinates, in ascending or descending order; the full width
    is trained only if it is among them. weights: one per length, 1 unless given; they need not add up to 1.

    Metrics are named `dim_64/<metric>`, with `dim_64/loss` for the value at that length before its weight. Groups of
    datums, reduction and denominator are those of the loss.

    Raises LossContractError for a loss that reads no embeddings, LossConfigError for invalid dims or weights, and at the
    first forward ShapeError for more coordinates than the embeddings have.
    """
    base = get_loss(loss, **config)
    if not isinstance(base, Loss):
        raise LossContractError("matryoshka takes one loss, not a mixture: wrap its parts, and mix those")
    if base.spec.is_batch_style or "embeddings" not in base.outputs:
        raise LossContractError(f"matryoshka cuts `embeddings` short, but {base.name} reads {', '.join(base.outputs)}")
    lengths, shares = _checked(dims, weights)
    spec = base.spec
    name = f"matryoshka({spec.name},{'+'.join(map(str, lengths))})"
    function = _at_every_length(spec.function, spec.parameters.index("embeddings"), lengths, shares, name)
    if is_registered(spec.function):
        function.made_by = _source(spec.name, lengths, shares)  # type: ignore[attr-defined]
    laws = {law: spec.laws[law] for law in LAWS_OF_THE_SUM if law in spec.laws}
    given = {key: getattr(base.config, key) for key in base.config.model_fields_set}
    return Loss(replace(spec, name=name, function=function, laws=laws, aliases=(), differs={}), given)


def _at_every_length(
    function: Callable[..., Any], place: int, lengths: Sequence[int], shares: Sequence[float], name: str
) -> Callable[..., tuple[Tensor, dict[str, Stat]]]:
    """A loss function that sums another over lengths, cutting its argument at index `place` to each length."""

    def summed(*arguments: Any, **settings: Any) -> tuple[Tensor, dict[str, Stat]]:
        embeddings = arguments[place]
        _check_width(embeddings, lengths, name)
        total = embeddings.new_zeros(())
        metrics: dict[str, Stat] = {}
        for length, share in zip(lengths, shares, strict=True):
            short = (*arguments[:place], embeddings[:, :length], *arguments[place + 1 :])
            returned = function(*short, **settings)
            values, metrics_here = returned if isinstance(returned, tuple) else (returned, {})
            total = total + share * values
            metrics[f"dim_{length}/loss"] = stats.mean(values)
            metrics |= {f"dim_{length}/{key}": stat for key, stat in metrics_here.items()}
        return total, metrics

    return summed


def _checked(dims: Sequence[int], weights: Sequence[float] | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    lengths = tuple(dims)
    if not lengths or any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in lengths):
        raise LossConfigError(f"matryoshka: dims={dims!r} must be numbers of coordinates, such as (768, 256, 64)")
    steps = [b - a for a, b in pairwise(lengths)]
    if not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        ordered = tuple(sorted(set(lengths), reverse=True))
        raise LossConfigError(
            f"matryoshka: dims={dims!r} are neither ascending nor descending, or hold a number twice. Did you mean {ordered}?"
        )
    shares = tuple(1.0 for _ in lengths) if weights is None else tuple(float(w) for w in weights)
    if len(shares) != len(lengths):
        raise LossConfigError(
            f"matryoshka: {len(shares)} weights for {len(lengths)} dims: give one weight per dimension"
        )
    if any(not 0 < share < float("inf") for share in shares):
        raise LossConfigError(
            f"matryoshka: weights={weights!r}: each must be positive; leave out a dimension without weight"
        )
    return lengths, shares


def _check_width(embeddings: Tensor, lengths: Sequence[int], name: str) -> None:
    """Raise ShapeError for more coordinates than there are; without embeddings the width is unknown."""
    width = embeddings.shape[1]
    if len(embeddings) and max(lengths) > width:
        raise ShapeError(
            f"{name} wants the first {max(lengths)} coordinates, but these embeddings have {width}. Set dims to {width} at "
            "most"
        )


def _source(name: str, lengths: Sequence[int], shares: Sequence[float]) -> tuple[str, str]:
    """(import lines, expression) with which a reproducer recreates the loss."""
    weights = "" if all(share == 1 for share in shares) else f", weights={tuple(shares)!r}"
    return "from lossbook import matryoshka\n", f"matryoshka({name!r}, dims={tuple(lengths)!r}{weights})"
