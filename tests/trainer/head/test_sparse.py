"""Vectors over the vocabulary are those of all logits at once, gradients too, in tiles that never hold them all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lossbook.trainer.head.logprobs import Head
from lossbook.trainer.head.sparse import splade_vectors


def all_at_once(hidden: Tensor, head: Head, sizes: list[int]) -> Tensor:
    """The definition."""
    logits = hidden @ head.weight.T
    logits = head.scale * (logits if head.bias is None else logits + head.bias)
    logits = logits if head.softcap is None else head.softcap * (logits / head.softcap).tanh()
    return torch.stack([torch.log(1 + part.clamp(min=0)).amax(0) for part in logits.split(sizes)])


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        pytest.param({}, [3, 1, 2], id="texts of several lengths"),
        pytest.param({"scale": 0.5, "softcap": 3.0}, [2, 2], id="scaled and capped"),
        pytest.param({}, [1500, 600], id="a vocabulary of three tiles"),
    ],
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_vectors_and_gradients_are_those_of_all_logits(
    settings: dict[str, float], sizes: list[int], has_bias: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    vocabulary, width = (1200 if sum(sizes) > 100 else 11), 4

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()

    hidden, weight, bias = leaf(sum(sizes), width), leaf(vocabulary, width), leaf(vocabulary)
    head = Head(weight, bias if has_bias else None, **settings)
    upstream = torch.randn(len(sizes), vocabulary, generator=random, dtype=torch.float64)
    leaves = [hidden, weight, *([bias] if has_bias else [])]
    vectors, wanted = splade_vectors(hidden, head, sizes), all_at_once(hidden, head, sizes)
    torch.testing.assert_close(vectors, wanted, rtol=1e-12, atol=1e-12)
    own = torch.autograd.grad(vectors, leaves, upstream)
    for gradient, expected in zip(own, torch.autograd.grad(wanted, leaves, upstream), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_numbers_to_be_redone_on_paper() -> None:
    # Logits of the tokens: (1, -2) and (3, -1). The largest are 3 and -1; what is below 0 is 0.
    hidden = torch.tensor([[1.0, 0.0], [3.0, 1.0]], requires_grad=True)
    head = Head(torch.tensor([[1.0, 0.0], [-2.0, 5.0]]), torch.tensor([0.0, -7.0]))
    vectors = splade_vectors(hidden, head, [2])
    torch.testing.assert_close(vectors, torch.tensor([[torch.log(torch.tensor(4.0)), 0.0]]))
    (gradient,) = torch.autograd.grad(vectors.sum(), hidden)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0], [0.25, 0.0]]))


def test_a_frozen_head_has_no_gradient_and_half_precision_sums_in_float32() -> None:
    hidden = torch.ones(2, 4, dtype=torch.bfloat16, requires_grad=True)
    vectors = splade_vectors(hidden, Head(torch.ones(3, 4, dtype=torch.bfloat16)), [2])
    assert vectors.dtype == torch.float32
    vectors.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    assert hidden.grad[1].abs().sum() == 0, "of equally large products the first token has the gradient"
