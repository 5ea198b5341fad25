"""Float32 products through either library: the same numbers, where they belong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lossbook.trainer.head import products
from lossbook.trainer.head.logprobs import Head, linear_logprobs


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether products go through oneDNN."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "is_onednn_faster", lambda: request.param)
    return request.param


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


def test_a_product_lies_where_it_is_to_be_kept(library: bool) -> None:
    left, right, out = normal(5, 24), normal(40, 24)[3:20], torch.full((5, 17), float("nan"))
    product = products.times_transposed(left, right, out, in_place=True)
    assert product.data_ptr() == out.data_ptr()
    torch.testing.assert_close(product, (left.double() @ right.double().t()).float())
    other = products.times_transposed(left, right, torch.empty_like(out), in_place=False)
    assert torch.equal(product, other)


@pytest.mark.parametrize("length", [products.LONG_SUMS, 7])
def test_a_product_is_added_or_written_over_what_was_there(library: bool, length: int) -> None:
    left, right, before = normal(length, 6).t(), normal(length, 9), normal(6, 9)
    expected = left.double() @ right.double()
    total = before.clone()
    products.add_product(total, left, right)
    torch.testing.assert_close(total, (before.double() + expected).float(), rtol=1e-5, atol=1e-4)
    total = torch.full_like(before, float("nan"))
    products.add_product(total, left, right, is_first=True)
    torch.testing.assert_close(total, expected.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("strategy", ["keep", "recompute", "known-gradient"])
def test_the_head_gives_the_same_numbers_through_either_library(library: bool, strategy: str) -> None:
    hidden, weight = normal(20, 16).requires_grad_(), normal(600, 16).requires_grad_()
    targets = torch.arange(20)
    known = torch.linspace(-1, 1, 20)
    given = {"known_gradient": known} if strategy == "known-gradient" else {}
    outputs = linear_logprobs(hidden, Head(weight), targets, head_strategy=strategy, **given)  # type: ignore[arg-type]
    gradients = torch.autograd.grad((outputs.logprobs * known).sum(), [hidden, weight])
    wide = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    expected = (wide[0] @ wide[1].t()).log_softmax(-1)[torch.arange(20), targets]
    torch.testing.assert_close(outputs.logprobs, expected.float(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * known).sum(), wide), strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)
