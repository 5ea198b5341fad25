"""Laws of one-sample estimators of a KL divergence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossCheckError
from ..report import Report
from .helpers import Law, name_of, report_laws, same_numbers, shown

Estimator = Callable[[Tensor, Tensor], Tensor]
#: Rounding error of an expectation computed in float64.
EXACT = 1e-9


def check_kl_estimator(
    function: Estimator,
    *,
    value: Literal["kl", "biased"] = "kl",
    gradient: Literal["reverse", "forward", "zero"] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "report"] = "raise",
    max_examples: int | None = None,
) -> Report:
    """Run the laws of a one-sample KL estimator, a function (logprobs, ref_logprobs) -> [T] nats.

        check_kl_estimator(lambda p, f: 0.5 * (p - f) ** 2, value="biased", gradient="reverse")

    Expectations are exact: sums over a vocabulary of five tokens, weighted by the policy's probabilities. value: "kl" if
    the expected value is KL(policy || reference). gradient: the expected gradient, as a loss on policy: that of
    KL(policy || reference) ("reverse"), of KL(reference || policy) ("forward"), or zero; None: not checked. The other
    arguments are those of `check_advantages`.
    """
    pairs = st.tuples(_logits(), _logits())
    laws: dict[str, Law] = {
        "one_a_token": Law(_one_a_token, pairs),
        "zero_where_equal": Law(_zero_where_equal, _logits()),
        "finite_at_extremes": Law(_finite_at_extremes, st.sampled_from([20.0, -20.0, 89.0, -89.0, 1e4, -1e4])),
    }
    if value == "kl":
        laws["expected_value"] = Law(_expected_value, pairs)
    if gradient is not None:
        expected = {"reverse": _reverse_gradient, "forward": _forward_gradient, "zero": _no_gradient}[gradient]
        laws["expected_gradient"] = Law(expected, pairs)
    return report_laws(name_of(function), function, laws, expected_failed_checks, on_fail, max_examples)


def _logits() -> st.SearchStrategy[list[float]]:
    return st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=5, max_size=5)


def _one_a_token(function: Any, example: tuple[list[float], list[float]]) -> None:
    policy, reference = _distributions(example)
    estimates = function(policy, reference)
    if tuple(estimates.shape) != (5,):
        raise LossCheckError(f"for 5 tokens it returns estimates of shape {list(estimates.shape)}, not one per token")


def _zero_where_equal(function: Any, logits: list[float]) -> None:
    policy, _ = _distributions((logits, logits))
    estimates = function(policy, policy.detach()).detach()
    if not bool((estimates.abs() <= EXACT).all()):
        raise LossCheckError(f"where policy and reference agree the estimates are {shown(estimates)}, not 0")


def _finite_at_extremes(function: Any, difference: float) -> None:
    logprobs = torch.tensor([-1.0 + min(difference, 0), -0.5], requires_grad=True)
    estimates = function(logprobs, torch.tensor([-1.0 - max(difference, 0), -0.5]))
    (slopes,) = torch.autograd.grad(estimates.sum(), logprobs, allow_unused=True)
    if not bool(estimates.isfinite().all()) or (slopes is not None and not bool(slopes.isfinite().all())):
        raise LossCheckError(
            f"at a log-ratio of {difference:g}, in float32, the estimate or its gradient is not finite"
        )


def _expected_value(function: Any, example: tuple[list[float], list[float]]) -> None:
    policy, reference = _distributions(example)
    expectation = (policy.exp() * function(policy, reference)).sum().detach()
    same_numbers(expectation[None], _kl(policy, reference).detach()[None], "the expected estimate is", example, EXACT)


def _reverse_gradient(function: Any, example: tuple[list[float], list[float]]) -> None:
    policy, reference = _distributions(example)
    _same_gradient(function, policy, reference, _kl(policy, reference), "KL(policy || reference)", example)


def _forward_gradient(function: Any, example: tuple[list[float], list[float]]) -> None:
    policy, reference = _distributions(example)
    _same_gradient(function, policy, reference, _kl(reference, policy), "KL(reference || policy)", example)


def _no_gradient(function: Any, example: tuple[list[float], list[float]]) -> None:
    policy, reference = _distributions(example)
    _same_gradient(function, policy, reference, 0 * policy.sum(), "nothing", example)


def _same_gradient(
    function: Any,
    policy: Tensor,
    reference: Tensor,
    target: Tensor,
    name: str,
    example: tuple[list[float], list[float]],
) -> None:
    # Sampling probabilities are detached: they are the frequencies of the tokens, not part of the loss.
    sampled = (policy.detach().exp() * function(policy, reference)).sum()
    if not sampled.requires_grad:
        sampled = sampled + 0 * policy.sum()
    slopes, expected = (torch.autograd.grad(x, policy, retain_graph=True)[0] for x in (sampled, target))
    slopes, expected = (x - policy.detach().exp() * x.sum() for x in (slopes, expected))  # through log-softmax
    same_numbers(slopes, expected, f"the expected gradient is not that of {name}: it is", example, EXACT)


def _distributions(example: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of policy (a leaf) and reference over five tokens."""
    policy, reference = (torch.tensor(logits, dtype=torch.float64).log_softmax(0) for logits in example)
    return policy.requires_grad_(), reference


def _kl(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum()
