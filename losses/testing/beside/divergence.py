"""`check_divergence`: whether a function of two distributions is a divergence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossCheckError

#: Distance from the ends of a setting at which the divergence is compared, and the relative change allowed.
NEAR, JUMP = 1e-6, 0.05
VOCABULARY = 4
#: Total variation distance above which two distributions count as different.
DISTANCE = 1 / 64


def check_divergence(
    function: Callable[..., Tensor],
    *,
    symmetric: bool = False,
    continuous_in: str | None = None,
    ends: tuple[float, float] = (0.0, 1.0),
    max_examples: int = 25,
    **settings: Any,
) -> None:
    """Raise LossCheckError, with the two distributions, unless `function` is a divergence.

    function: (log-probabilities [T, V] of one distribution, of the other) -> [T] nats. settings: passed on to it.

    It must be 0 where both are equal and above 0 where they differ, for any order of the tokens. A token with -inf in both
    must add nothing to value or gradient. bfloat16 must be computed in float32. symmetric: the arguments may be swapped.
    continuous_in: the name of a setting in which it must be continuous at its `ends`.
    """

    @hypothesis.settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=[*HealthCheck],  # type: ignore[list-item]
        phases=(Phase.generate, Phase.shrink),
    )
    @hypothesis.given(one=_logits(), other=_logits())
    def check(one: list[float], other: list[float]) -> None:
        p, q = (torch.log_softmax(torch.tensor([x, x[::-1]], dtype=torch.float64), -1) for x in (one, other))
        try:
            _check_values(function, p, q, settings)
            _check_absent(function, p, q, settings)
            _check_precision(function, p, q, settings)
            if symmetric:
                _check_equal(function(p, q, **settings), function(q, p, **settings), "when the arguments are swapped")
            if continuous_in is not None:
                _check_continuous(function, p, q, continuous_in, ends, settings)
        except LossCheckError as error:
            raise LossCheckError(f"{error}; at log_softmax({one}) and log_softmax({other})") from None

    check()


def _check_values(function: Callable[..., Tensor], p: Tensor, q: Tensor, settings: dict[str, Any]) -> None:
    values = function(p, q, **settings)
    if values.shape != p.shape[:-1]:
        raise LossCheckError(f"for [T, V] = {list(p.shape)} it returns {list(values.shape)}, not one number per row")
    if bool((values < -1e-12).any()):
        raise LossCheckError(f"it is {float(values.min()):.6g}, below 0")
    distance = (p.exp() - q.exp()).abs().sum(-1) / 2
    if bool(((distance > DISTANCE) & ~(values > distance.square() / 100)).any()):
        raise LossCheckError(f"it is {float(values.min()):.6g}, though both differ by {float(distance.max()):.3g}")
    _check_equal(function(p, p, **settings), torch.zeros_like(values), "where both are equal")
    _check_equal(values, function(p.flip(-1), q.flip(-1), **settings), "when the tokens are put in another order")


def _check_absent(function: Callable[..., Tensor], p: Tensor, q: Tensor, settings: dict[str, Any]) -> None:
    nothing = torch.full_like(p[:, :1], -torch.inf)
    longer = [torch.cat([x, nothing], -1).requires_grad_() for x in (p, q)]
    values = function(*longer, **settings)
    _check_equal(function(p, q, **settings), values, "when a token is added that both rule out")
    slopes = torch.autograd.grad(values.sum(), longer, allow_unused=True)
    if any(slope is not None and not bool(torch.isfinite(slope).all()) for slope in slopes):
        raise LossCheckError("its gradient is not finite when both rule a token out")


def _check_precision(function: Callable[..., Tensor], p: Tensor, q: Tensor, settings: dict[str, Any]) -> None:
    low = p.bfloat16(), q.bfloat16()
    values, expected = function(*low, **settings), function(*(x.float() for x in low), **settings)
    if values.dtype != torch.float32 or not torch.equal(values, expected):
        raise LossCheckError(
            f"from bfloat16 it is {values.tolist()} in {values.dtype}; computed in float32 it is {expected.tolist()}"
        )


def _check_continuous(
    function: Callable[..., Tensor],
    p: Tensor,
    q: Tensor,
    name: str,
    ends: tuple[float, float],
    settings: dict[str, Any],
) -> None:
    low, high = ends
    for end, near in ((low, low + NEAR * (high - low)), (high, high - NEAR * (high - low))):
        at_end, beside = (function(p, q, **{**settings, name: value}) for value in (end, near))
        if bool(((at_end - beside).abs() > JUMP * (at_end.abs() + beside.abs()) + 1e-4).any()):
            raise LossCheckError(
                f"it jumps at the end of {name}: {at_end.tolist()} at {end:g}, but {beside.tolist()} at {near:g}"
            )


def _check_equal(a: Tensor, b: Tensor, when: str) -> None:
    if not torch.allclose(a, b, rtol=1e-9, atol=1e-9):
        raise LossCheckError(f"it is {a.tolist()} and not {b.tolist()} {when}")


def _logits() -> st.SearchStrategy[list[float]]:
    return st.lists(st.integers(-64, 64).map(lambda n: n / 16), min_size=VOCABULARY, max_size=VOCABULARY)
