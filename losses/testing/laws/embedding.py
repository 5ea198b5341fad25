"""Laws of losses over embeddings: invariance to scale and rotation, and gradients computed in two passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossCheckError
from ....datums.types import Datum
from ...registry import get_loss
from ...spec.layers import LAYER_EMBEDDINGS
from ..checks import batches, family_law
from ..evaluation import TOLERANCES, evaluate, shown, terms
from ..loss_under_test import EMBEDDING_WIDTH, LossUnderTest, OutputLists

#: Powers of two: multiplying by them is exact.
FACTORS = (1.0, 0.25, 2.0, 8.0, 0.5)
#: Number of features that the small encoder reads.
FEATURES = 4


def scale_invariance(
    loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, factors: Sequence[float]
) -> None:
    """Multiplying each embedding by a positive number keeps the loss and divides the gradient by that number.

    `{"own": {...}}`: the loss's settings under which this holds, such as a distance.
    """
    here = _with_law_settings(loss, "scale_invariance")
    scaled = [row * factor for row, factor in zip(outputs["embeddings"], factors, strict=True)]
    whole, other = evaluate(here, data, outputs), evaluate(here, data, {"embeddings": scaled})
    back = [g * factor for g, factor in zip(other.gradients["embeddings"], factors, strict=True)]
    how = f"when the embeddings were multiplied by {list(factors)}"
    _same("the loss", whole.value, other.value, how)
    for i, (before, after) in enumerate(zip(whole.gradients["embeddings"], back, strict=True)):
        _same(f"the gradient of embedding {i}, times the embedding's factor,", before, after, how)


def rotation_invariance(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, seed: int) -> None:
    """Rotating (or reflecting) all embeddings keeps the loss and rotates its gradient."""
    here = _with_law_settings(loss, "rotation_invariance")
    turn, _ = torch.linalg.qr(_normal(seed, EMBEDDING_WIDTH, EMBEDDING_WIDTH))
    whole = evaluate(here, data, outputs)
    other = evaluate(here, data, {"embeddings": [row @ turn for row in outputs["embeddings"]]})
    how = "when all embeddings were rotated"
    _same("the loss", whole.value, other.value, how)
    for i, (before, after) in enumerate(zip(whole.gradients["embeddings"], other.gradients["embeddings"], strict=True)):
        _same(f"the gradient of embedding {i}, rotated back,", before, after @ turn.T, how)


def grad_cache_is_full_batch(
    loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, seed: int, chunk: int
) -> None:
    """An encoder's gradient is the same in two passes: embeddings without a graph, then forward again by `chunk` texts.

    Gao et al. 2021, arXiv:2101.06983. The encoder is tanh(x W + b); `seed` draws its features and parameters.
    """
    features, weight, bias = (_normal(seed, *shape) for shape in ((len(data), FEATURES), _WEIGHT, (EMBEDDING_WIDTH,)))
    parameters = [weight.requires_grad_(), bias.requires_grad_()]

    def encoded(rows: Tensor) -> Tensor:
        """[N, 1 + L, D]: the last layer's vectors, and those of L layers before it."""
        last = torch.tanh(rows @ weight + bias)
        return torch.stack([last, *(torch.tanh(last * (i + 2)) for i in range(loss.layers))], 1)

    def value_of(embeddings: Tensor) -> Tensor:
        given = {"embeddings": list(embeddings[:, 0]), LAYER_EMBEDDINGS: list(embeddings[:, 1:])}
        total, _ = terms(loss.wrapped, data, {name: given[name] for name in loss.outputs})
        return total / loss.wrapped.count(data)

    in_one_pass = torch.autograd.grad(value_of(encoded(features)), parameters)
    with torch.no_grad():
        leaf = encoded(features)
    leaf.requires_grad_()
    (slopes,) = torch.autograd.grad(value_of(leaf), leaf)
    in_two = [torch.zeros_like(p) for p in parameters]
    for rows, slope in zip(features.split(chunk), slopes.split(chunk), strict=True):
        parts = torch.autograd.grad(encoded(rows), parameters, slope)
        in_two = [total + part for total, part in zip(in_two, parts, strict=True)]
    for name, once, twice in zip(("weights", "biases"), in_one_pass, in_two, strict=True):
        _same(f"the gradient of the encoder's {name}", once, twice, f"in two passes, {chunk} texts at a time")


def layers_in_any_order(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Naming the layers in another order, and giving their embeddings in it, keeps the loss and its gradients."""
    assert loss.only is not None
    layers = loss.only.layers
    other = replace(loss, wrapped=get_loss(loss.wrapped, layers=layers[::-1]))
    turned = {**outputs, LAYER_EMBEDDINGS: [rows.flip(0) for rows in outputs[LAYER_EMBEDDINGS]]}
    whole, again = evaluate(loss, data, outputs), evaluate(other, data, turned)
    how = f"when the layers {layers} were named the other way round"
    _same("the loss", whole.value, again.value, how)
    for name, rows in whole.gradients.items():
        for i, (before, after) in enumerate(zip(rows, again.gradients[name], strict=True)):
            _same(
                f"the gradient of datum {i}'s {name}", before, after.flip(0) if name == LAYER_EMBEDDINGS else after, how
            )


_WEIGHT = (FEATURES, EMBEDDING_WIDTH)


def _with_law_settings(loss: LossUnderTest, law: str) -> LossUnderTest:
    own = loss.laws[law].get("own")
    return replace(loss, wrapped=get_loss(loss.wrapped, **own)) if own else loss


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _same(what: str, before: Tensor, after: Tensor, how: str) -> None:
    largest, exact = max(1.0, float(before.abs().max())), TOLERANCES[torch.float64]
    if not torch.allclose(before, after, rtol=exact, atol=exact * largest):
        raise LossCheckError(f"{what} changed from {shown(before)} to {shown(after)} {how}")


@st.composite
def _with_factors(draw: Any, loss: LossUnderTest) -> Mapping[str, Any]:
    example = draw(batches(loss))
    count = len(example["data"])
    return {**example, "factors": draw(st.lists(st.sampled_from(FACTORS), min_size=count, max_size=count))}


@st.composite
def _with_seed(draw: Any, loss: LossUnderTest) -> Mapping[str, Any]:
    return {**draw(batches(loss)), "seed": draw(st.integers(0, 2**16))}


@st.composite
def _with_chunk(draw: Any, loss: LossUnderTest) -> Mapping[str, Any]:
    return {**draw(_with_seed(loss)), "chunk": draw(st.integers(1, 3))}


CHECKS = (
    family_law(scale_invariance, _with_factors),
    family_law(rotation_invariance, _with_seed),
    family_law(grad_cache_is_full_batch, _with_chunk),
    family_law(layers_in_any_order),
)
