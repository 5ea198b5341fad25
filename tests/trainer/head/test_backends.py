"""The head through cut-cross-entropy and Liger: the same numbers on a CPU, and clear words where they cannot serve."""

from __future__ import annotations

import importlib.util
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


def assert_ours(
    backend: Any, head: tuple[float | None, float], dtype: torch.dtype, *, frozen: bool, entropy: bool
) -> None:
    """A backend's outputs and gradients are those of our tiles, with a gradient of its own at each position and some of 0."""
    count = 600  # more than a library takes at a time
    hidden, weight, targets = leaves(count, dtype)
    weight.requires_grad_(not frozen)
    trained = [hidden] if frozen else [hidden, weight]
    factors = torch.linspace(-1, 2, count)
    factors[:3] = 0.0
    numbers = []
    for each in (backend, "chunked"):
        outputs = linear_logprobs(hidden, Head(weight, None, *head), targets, entropy=entropy, head_backend=each)
        assert outputs.backend == each
        assert outputs.strategy == ("keep" if each == "chunked" else "recompute")
        given = [outputs.logprobs, outputs.logsumexp, *([] if outputs.entropy is None else [outputs.entropy])]
        assert {one.dtype for one in given} == {torch.float32}
        assert len(given) == 2 + entropy
        total = torch.stack([(one * factors.roll(7 * k)).sum() for k, one in enumerate(given)]).sum()
        numbers.append([*given, *torch.autograd.grad(total, trained)])
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for theirs, ours in zip(*numbers, strict=True):
        assert theirs.dtype == ours.dtype
        assert (theirs - ours).float().norm() <= tolerance * ours.float().norm()


WAYS = [
    pytest.param((None, 1.0), torch.float32, False, id="plain"),
    pytest.param((None, 1.0), torch.float32, True, id="a frozen weight"),
    pytest.param((None, 0.7), torch.float32, False, id="a temperature"),
    pytest.param((None, 1.0), torch.bfloat16, False, id="bfloat16"),
    pytest.param((3.0, 0.5), torch.float32, False, id="a soft cap"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("head", "dtype", "frozen"), WAYS)
def test_cut_cross_entropy_gives_the_numbers_and_gradients_of_our_tiles(
    head: tuple[float | None, float], dtype: torch.dtype, frozen: bool, compiled: None
):
    assert_ours("cut-cross-entropy", head, dtype, frozen=frozen, entropy=False)


@pytest.mark.parametrize("entropy", [False, True], ids=["logprobs", "and entropy"])
@pytest.mark.parametrize(("head", "dtype", "frozen"), WAYS[:-1])
def test_liger_gives_the_numbers_and_gradients_of_our_tiles(
    head: tuple[float | None, float], dtype: torch.dtype, frozen: bool, entropy: bool
):
    pytest.importorskip("liger_kernel")
    assert_ours("liger", head, dtype, frozen=frozen, entropy=entropy)


def test_on_a_cpu_our_own_tiles_are_chosen():
    hidden, weight, targets = leaves(3, torch.bfloat16)
    assert linear_logprobs(hidden, Head(weight), targets).backend == "chunked"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"entropy": True}, "'cut-cross-entropy' has no entropy; take 'chunked'", id="entropy"),
        pytest.param({"head": Head(torch.zeros(60, 16), None, 3.0)}, "'liger' has no soft cap", id="soft cap"),
        pytest.param({"mean_logprobs": True, "topk": 2}, "has no mean logprobs, no top k", id="mean and top k"),
        pytest.param({"targets": torch.zeros(3, 2, dtype=torch.int64)}, "has no second target", id="two targets"),
        pytest.param({"head": Head(torch.zeros(60, 16), torch.zeros(60))}, "has no bias", id="bias"),
        pytest.param({"hidden": torch.zeros(3, 16).double()}, "would round float64", id="float64"),
    ],
)
def test_what_a_library_cannot_serve_is_refused_by_name(change: dict[str, Any], message: str):
    hidden, weight, targets = leaves(3)
    arguments: dict[str, Any] = {"hidden": hidden, "head": Head(weight), "targets": targets, **change}
    libraries: list[Any] = ["cut-cross-entropy", "liger"]
    for library in [one for one in libraries if one in message] or libraries:
        with pytest.raises(ModelError, match=message):
            linear_logprobs(**arguments, head_backend=library)


@pytest.mark.parametrize(
    ("backend", "package"), [("cut-cross-entropy", "cut_cross_entropy"), ("liger", "liger_kernel"), ("liger", "triton")]
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch, backend: Any, package: str):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else object())
    hidden, weight, targets = leaves(3)
    with pytest.raises(
        MissingExtraError, match=rf"backend '{backend}' needs a package: pip install 'lossbook\[cuda\]'"
    ):
        linear_logprobs(hidden, Head(weight), targets, head_backend=backend)
    assert linear_logprobs(hidden, Head(weight), targets).backend == "chunked"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_reference_logprobs_and_those_of_training_come_from_the_same_code(dtype: torch.dtype, wants_gradient: bool):
    """Else a policy would differ from its own reference by rounding before the first step."""
    hidden, weight, targets = leaves(3, dtype)
    with torch.set_grad_enabled(wants_gradient):
        assert linear_logprobs(hidden, Head(weight), targets).backend == "chunked"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "package"), [("cut-cross-entropy", "cut_cross_entropy"), ("liger", "liger_kernel")]
)
def test_a_library_gives_no_logprob_above_zero(backend: Any, package: str):
    """The first's target logit and its sum over the vocabulary are rounded apart: seen at +0.0016 on a GPU, in bfloat16."""
    pytest.importorskip(package)
    certain = torch.zeros(VOCABULARY, WIDTH)
    certain[7] = 100.0
    outputs = linear_logprobs(torch.full((5, WIDTH), 1.7), Head(certain), torch.full((5,), 7), head_backend=backend)
    assert bool((outputs.logprobs <= 0).all())
    assert bool((outputs.logprobs > -1e-3).all())
