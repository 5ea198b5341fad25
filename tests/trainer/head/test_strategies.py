"""Every strategy of the head computes the same numbers, and the outputs name the strategy taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook.datums.errors import ModelError, ShapeError
from lossbook.trainer.head import autograd
from lossbook.trainer.head import logprobs as head_module
from lossbook.trainer.head.logprobs import Head, linear_logprobs

POSITIONS, WIDTH, VOCABULARY = 9, 6, 31
STRATEGIES = ["keep", "recompute", "known-gradient"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of columns, the last one narrower, so that every test crosses their borders."""
    monkeypatch.setitem(head_module.TILE_BYTES, "cpu", 4 * 4 * 7)


class Problem:
    """Random hidden states, head and targets, and the gradient that a loss linear in the logprobs has."""

    def __init__(
        self,
        *,
        columns: int | None = None,
        bias: bool = False,
        softcap: float | None = None,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float64,
        trains: str = "hidden weight bias",
        positions: int = POSITIONS,
        repeated: bool = False,
        skipped: int = 0,
    ) -> None:
        random = torch.Generator().manual_seed(columns or 0)

        def drawn(name: str, *shape: int) -> Tensor:
            values = torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)
            return values.requires_grad_(name in trains)

        self.hidden = drawn("hidden", positions, WIDTH)
        self.head = Head(
            drawn("weight", VOCABULARY, WIDTH), drawn("bias", VOCABULARY) if bias else None, softcap, scale
        )
        shape = (positions,) if columns is None else (positions, columns)
        self.targets = torch.randint(VOCABULARY, shape, generator=random)
        if repeated:
            self.targets[:, 1] = self.targets[:, 0]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.gradient = torch.randn(shape, generator=random, dtype=torch.float64).to(wide)
        self.gradient[:skipped] = 0.0

    def leaves(self) -> list[Tensor]:
        named = (self.hidden, self.head.weight, self.head.bias)
        return [leaf for leaf in named if leaf is not None and leaf.requires_grad]

    def ours(self, strategy: str, **options: Any) -> tuple[Tensor, list[Tensor]]:
        """Logprobs and gradients of the linear loss."""
        known = {"known_gradient": self.gradient} if strategy == "known-gradient" else {}
        outputs = linear_logprobs(
            self.hidden, self.head, self.targets, head_strategy=strategy, chunk_tokens=4, **known, **options
        )
        assert outputs.strategy == strategy
        return outputs.logprobs, self.pulled(outputs.logprobs)

    def plainly(self) -> tuple[Tensor, list[Tensor]]:
        """The definition: all logits, log_softmax, gather."""
        everything = plain_logits(self.hidden, self.head).log_softmax(-1)
        table = self.targets if self.targets.ndim == 2 else self.targets[:, None]
        logprobs = everything.gather(1, table).view(self.targets.shape)
        return logprobs, self.pulled(logprobs)

    def pulled(self, logprobs: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((logprobs * self.gradient).sum(), self.leaves()))


def plain_logits(hidden: Tensor, head: Head) -> Tensor:
    logits = hidden.double() @ head.weight.double().t()
    logits = (logits if head.bias is None else logits + head.bias) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def assert_same(ours: tuple[Tensor, list[Tensor]], wanted: tuple[Tensor, list[Tensor]], tolerance: float) -> None:
    for one, other in zip([ours[0], *ours[1]], [wanted[0], *wanted[1]], strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


PROBLEMS = [
    pytest.param({}, id="one target per position"),
    pytest.param({"columns": 3}, id="three targets per position"),
    pytest.param({"columns": 3, "repeated": True}, id="a token named twice"),
    pytest.param({"bias": True}, id="with a bias"),
    pytest.param({"softcap": 3.0}, id="soft-capped"),
    pytest.param({"scale": 0.25}, id="scaled"),
    pytest.param({"columns": 2, "bias": True, "softcap": 2.0, "scale": 1.5}, id="everything at once"),
    pytest.param({"trains": "hidden", "bias": True}, id="frozen head"),
    pytest.param({"trains": "weight"}, id="frozen hidden states"),
    pytest.param({"trains": "bias", "bias": True}, id="only the bias trains"),
    pytest.param({"skipped": 3}, id="a third of the positions without gradient"),
    pytest.param({"skipped": 5, "columns": 2, "bias": True}, id="a whole part without gradient"),
    pytest.param({"skipped": POSITIONS}, id="no position with gradient"),
    pytest.param({"positions": 0, "bias": True}, id="no positions"),
    pytest.param({"positions": 1}, id="one position"),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_values_and_gradients_are_those_of_the_plain_formula(kind: dict, strategy: str):
    problem = Problem(**kind)
    assert_same(problem.ours(strategy), problem.plainly(), 1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_in_float32_they_agree_to_its_rounding(kind: dict, strategy: str):
    problem = Problem(**kind, dtype=torch.float32)
    assert_same(problem.ours(strategy), problem.plainly(), 1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_in_bfloat16_they_agree_to_its_rounding_and_gradients_keep_the_dtype(kind: dict, strategy: str):
    problem = Problem(**kind, dtype=torch.bfloat16)
    logprobs, gradients = problem.ours(strategy)
    assert logprobs.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}
    assert_same((logprobs, gradients), problem.plainly(), 0.05)


@pytest.mark.parametrize(
    ("kept_dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 0.003), (torch.bfloat16, 0.03)]
)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_what_is_kept_may_be_narrower_and_costs_its_rounding(kind: dict, kept_dtype: torch.dtype, tolerance: float):
    problem = Problem(**kind)
    assert_same(problem.ours("keep", kept_dtype=kept_dtype), problem.plainly(), tolerance)


def test_a_logit_too_far_down_for_the_kept_dtype_leaves_finite_gradients():
    hidden = torch.tensor([[3e5]], requires_grad=True)
    weight = torch.linspace(-1, 1, VOCABULARY)[:, None].requires_grad_()
    outputs = linear_logprobs(
        hidden, Head(weight), torch.tensor([0]), entropy=True, head_strategy="keep", kept_dtype=torch.float16
    )
    assert outputs.entropy is not None
    (outputs.logprobs.sum() + outputs.entropy.sum()).backward()
    for leaf in (hidden, weight):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


# --- top k ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["keep", "recompute"])
@pytest.mark.parametrize("k", [1, 3, 12, VOCABULARY])
def test_the_likeliest_tokens_and_their_gradients_are_those_of_a_sort(strategy: Any, k: int):
    problem = Problem(columns=2, bias=True, softcap=2.0, scale=1.5)
    outputs = linear_logprobs(
        problem.hidden, problem.head, problem.targets, topk=k, head_strategy=strategy, chunk_tokens=4
    )
    everything = plain_logits(problem.hidden, problem.head).log_softmax(-1)
    wanted, tokens = everything.topk(k, dim=1)
    assert outputs.topk_logprobs is not None
    assert outputs.topk_tokens is not None
    assert outputs.topk_tokens.tolist() == tokens.tolist()
    factors = torch.linspace(-1, 2, wanted.numel(), dtype=torch.float64).view(wanted.shape)
    named = everything.gather(1, problem.targets)
    for others in (0.0, 1.0):
        ours = (outputs.topk_logprobs * factors).sum() + others * (outputs.logprobs * problem.gradient).sum()
        plain = (wanted * factors).sum() + others * (named * problem.gradient).sum()
        our_gradients = torch.autograd.grad(ours, problem.leaves(), retain_graph=True)
        plain_gradients = torch.autograd.grad(plain, problem.leaves(), retain_graph=True)
        assert_same((outputs.topk_logprobs, list(our_gradients)), (wanted, list(plain_gradients)), 1e-12)


def test_nothing_is_searched_for_unless_asked():
    problem = Problem()
    outputs = linear_logprobs(problem.hidden, problem.head, problem.targets)
    assert (outputs.topk_logprobs, outputs.topk_tokens, outputs.entropy, outputs.mean_logprobs) == (None,) * 4


# --- a known gradient ---------------------------------------------------------------------------------------------------


def second_passes(monkeypatch) -> list[int]:
    """Filled with one entry each time the backward goes over the vocabulary again."""
    real, seen = autograd.recomputed_blocks, []

    def noting(*arguments):
        seen.append(1)
        return real(*arguments)

    monkeypatch.setattr(autograd, "recomputed_blocks", noting)
    return seen


def test_a_known_gradient_that_holds_needs_no_second_pass(monkeypatch):
    seen = second_passes(monkeypatch)
    Problem(bias=True).ours("known-gradient")
    assert not seen


BROKEN: list[Any] = [
    pytest.param(lambda outputs, known: 2 * (outputs.logprobs * known).sum(), id="another gradient"),
    pytest.param(lambda outputs, known: (outputs.logprobs * known).sum() + outputs.entropy.sum(), id="entropy as well"),
    pytest.param(
        lambda outputs, known: (outputs.logprobs * known).sum() + outputs.logsumexp.sum(), id="logsumexp as well"
    ),
    pytest.param(
        lambda outputs, known: outputs.topk_logprobs.sum() + (outputs.logprobs * known).sum(), id="top k as well"
    ),
    pytest.param(lambda outputs, known: outputs.mean_logprobs.sum(), id="logprobs not at all"),
]


@pytest.mark.parametrize("loss", BROKEN)
def test_a_known_gradient_that_does_not_hold_still_gives_the_right_one(loss: Callable, monkeypatch):
    seen = second_passes(monkeypatch)
    problem = Problem(bias=True)
    gradients = []
    for strategy in ("known-gradient", "recompute"):
        known = problem.gradient if strategy == "known-gradient" else None
        outputs = linear_logprobs(
            problem.hidden, problem.head, problem.targets, entropy=True, mean_logprobs=True, topk=2,
            head_strategy=strategy, known_gradient=known, chunk_tokens=4,
        )  # fmt: skip
        assert outputs.strategy == strategy
        gradients.append(torch.autograd.grad(loss(outputs, problem.gradient), problem.leaves()))
    assert len(seen) == 2
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_second_backward_of_a_retained_graph_gives_the_same(strategy: Any):
    problem = Problem(bias=True)
    known = problem.gradient if strategy == "known-gradient" else None
    outputs = linear_logprobs(
        problem.hidden, problem.head, problem.targets, head_strategy=strategy, known_gradient=known
    )
    total = (outputs.logprobs * problem.gradient).sum()
    total.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in problem.leaves() if leaf.grad is not None]
    total.backward()
    for leaf, first in zip(problem.leaves(), once, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * first)


def test_nothing_is_precomputed_where_no_gradient_is_wanted(monkeypatch):
    monkeypatch.setattr(autograd, "Gradients", None)  # would fail if called
    problem = Problem()
    with torch.no_grad():
        outputs = linear_logprobs(
            problem.hidden,
            problem.head,
            problem.targets,
            head_strategy="known-gradient",
            known_gradient=problem.gradient,
        )
    assert outputs.strategy == "forward-only"


# --- the choice -------------------------------------------------------------------------------------------------------

ROW = VOCABULARY * 8  # bytes of one position's float64 products


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        pytest.param({}, "keep", id="little of it: kept"),
        pytest.param({"head_memory": POSITIONS * ROW}, "keep", id="a budget that just suffices"),
        pytest.param({"head_memory": POSITIONS * ROW - 1}, "recompute", id="a budget that just does not"),
        pytest.param({"head_memory": POSITIONS * ROW // 4, "kept_dtype": torch.float16}, "keep", id="kept narrower"),
        pytest.param({"head_memory": 0}, "recompute", id="no budget"),
        pytest.param({"known_gradient": torch.ones(POSITIONS)}, "known-gradient", id="a known gradient"),
        pytest.param(
            {"known_gradient": torch.ones(POSITIONS), "head_memory": ROW}, "recompute", id="known, but no room for it"
        ),
        pytest.param({"head_memory": 0, "head_strategy": "keep"}, "keep", id="a strategy by name overrides the budget"),
    ],
)
def test_the_strategy_follows_from_the_budget_and_is_reported(options: dict, chosen: str):
    problem = Problem()
    assert linear_logprobs(problem.hidden, problem.head, problem.targets, **options).strategy == chosen


def test_what_requires_no_gradient_is_computed_forward_only():
    problem = Problem(trains="")
    assert linear_logprobs(problem.hidden, problem.head, problem.targets).strategy == "forward-only"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(
            {"head_strategy": "fast"}, ModelError, "one of auto, keep, recompute, known-gradient, not 'fast'", id="name"
        ),
        pytest.param({"head_strategy": "known-gradient"}, ModelError, "needs known_gradient", id="known to nobody"),
        pytest.param({"known_gradient": torch.ones(3)}, ShapeError, r"known_gradient .* \[9\], not \[3\]", id="shape"),
        pytest.param({"topk": VOCABULARY + 1}, ShapeError, "topk must be 0 to 31.* not 32", id="more than there are"),
        pytest.param({"topk": -1}, ShapeError, "topk must be 0 to 31.* not -1", id="less than none"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict, error: type[Exception], message: str):
    problem = Problem()
    with pytest.raises(error, match=message):
        linear_logprobs(problem.hidden, problem.head, problem.targets, **change)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_temperature_divides_the_logits(softcap: float | None):
    problem = Problem(bias=True, softcap=softcap, scale=1.5)
    wanted = plain_logits(problem.hidden, problem.head) / 0.7
    torch.testing.assert_close(problem.head.at_temperature(0.7).logits(problem.hidden), wanted.detach())
    with pytest.raises(ModelError, match="must be positive, not 0"):
        problem.head.at_temperature(0.0)
