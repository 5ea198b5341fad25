"""The head through cut-cross-entropy: the same numbers on a CPU, and clear words where it cannot serve."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from lossbook.datums.errors import MissingExtraError, ModelError
from lossbook.trainer.head.logprobs import Head, linear_logprobs

WIDTH, VOCABULARY = 16, 60


def leaves(positions: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, WIDTH, generator=random).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=random).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (positions,), generator=random)


@pytest.fixture
def compiled(monkeypatch):
    """cut-cross-entropy's path for CPUs, which needs the library and a C++ compiler."""
    pytest.importorskip("cut_cross_entropy")
    import shutil

    if shutil.which("g++") is None:
        pytest.skip("needs g++")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_cut_cross_entropy_gives_the_numbers_and_gradients_of_our_tiles(compiled):
    for softcap, scale, frozen, dtype in (
        (None, 1.0, False, torch.float32),
        (3.0, 0.5, False, torch.float32),
        (None, 1.0, True, torch.float32),
        (None, 1.0, False, torch.bfloat16),
    ):
        hidden, weight, targets = leaves(12, dtype)
        weight.requires_grad_(not frozen)
        trained = [hidden] if frozen else [hidden, weight]
        factors = torch.linspace(-1, 2, 12)
        factors[:3] = 0.0
        gradients = {}
        for backend in ("cut-cross-entropy", "chunked"):
            outputs = linear_logprobs(hidden, Head(weight, None, softcap, scale), targets, head_backend=backend)
            assert outputs.backend == backend
            assert outputs.logprobs.dtype == torch.float32
            total = (outputs.logprobs * factors).sum() + (outputs.logsumexp * factors.flip(0)).sum()
            gradients[backend] = [outputs.logprobs, outputs.logsumexp, *torch.autograd.grad(total, trained)]
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        for theirs, ours in zip(gradients["cut-cross-entropy"], gradients["chunked"], strict=True):
            assert theirs.dtype == ours.dtype
            torch.testing.assert_close(theirs, ours, rtol=tolerance, atol=tolerance)


def test_on_a_cpu_our_own_tiles_are_chosen():
    hidden, weight, targets = leaves(3, torch.bfloat16)
    assert linear_logprobs(hidden, Head(weight), targets).backend == "chunked"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"entropy": True}, "has no entropy; take 'chunked'", id="entropy"),
        pytest.param({"mean_logprobs": True, "topk": 2}, "has no mean logprobs, no top k", id="mean and top k"),
        pytest.param({"targets": torch.zeros(3, 2, dtype=torch.int64)}, "has no second target", id="two targets"),
        pytest.param({"head": Head(torch.zeros(60, 16), torch.zeros(60))}, "has no bias", id="bias"),
        pytest.param({"hidden": torch.zeros(3, 16).double()}, "would round float64", id="float64"),
    ],
)
def test_what_cut_cross_entropy_cannot_serve_is_refused_by_name(change: dict[str, Any], message: str):
    hidden, weight, targets = leaves(3)
    arguments: dict[str, Any] = {"hidden": hidden, "head": Head(weight), "targets": targets, **change}
    with pytest.raises(ModelError, match=message):
        linear_logprobs(**arguments, head_backend="cut-cross-entropy")


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", None)
    hidden, weight, targets = leaves(3)
    with pytest.raises(MissingExtraError, match=r"pip install 'lossbook\[cuda\]'"):
        linear_logprobs(hidden, Head(weight), targets, head_backend="cut-cross-entropy")
    assert linear_logprobs(hidden, Head(weight), targets).backend == "chunked"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_reference_logprobs_and_those_of_training_come_from_the_same_code(dtype: torch.dtype, wants_gradient: bool):
    """Else a policy would differ from its own reference by rounding before the first step."""
    hidden, weight, targets = leaves(3, dtype)
    with torch.set_grad_enabled(wants_gradient):
        assert linear_logprobs(hidden, Head(weight), targets).backend == "chunked"


def test_cut_cross_entropy_gives_no_logprob_above_zero():
    """Its target logit and its sum over the vocabulary are rounded apart: seen at +0.0016 on a GPU, in bfloat16."""
    certain = torch.zeros(VOCABULARY, WIDTH)
    certain[7] = 100.0
    outputs = linear_logprobs(
        torch.full((5, WIDTH), 1.7), Head(certain), torch.full((5,), 7), head_backend="cut-cross-entropy"
    )
    assert bool((outputs.logprobs <= 0).all())
    assert bool((outputs.logprobs > -1e-3).all())
