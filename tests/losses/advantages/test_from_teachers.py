"""Advantages from a teacher: numbers by hand, and the divergence whose gradient they give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import LengthMismatchError, LossConfigError, NonFiniteLossInput
from lossbook.losses.math.divergences import reverse_kl
from lossbook.losses.returns import teacher_advantages

NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # teacher - student of the three tokens: 0.75, -3, 0.
        pytest.param({}, [0.75, -3.0, 0.0], id="the difference"),
        pytest.param({"scale": 2.0}, [1.5, -6.0, 0.0], id="scaled"),
        pytest.param({"cap": 1.0}, [0.75, -1.0, 0.0], id="capped"),
        pytest.param({"cap": 1.0, "scale": 2.0}, [1.5, -2.0, 0.0], id="capped, then scaled"),
        pytest.param({"estimator": "k2"}, [-0.28125, -4.5, 0.0], id="k2: half the square, negated"),
        pytest.param({"estimator": "abs", "cap": 2.0}, [-0.75, -2.0, 0.0], id="abs"),
        pytest.param({"discount": 0.5}, [-0.75, -3.0, 0.0], id="discounted: 0.75 - 3/2"),
        pytest.param({"weights": [[1, 0, 1]]}, [0.75, 0.0, 0.0], id="without the second token"),
    ],
)
def test_a_token_is_rewarded_by_how_much_likelier_the_teacher_finds_it(
    options: dict[str, Any], expected: list[float]
) -> None:
    (row,) = teacher_advantages([[-1.0, -0.5, -2.0]], [[-0.25, -3.5, -2.0]], **options)
    assert row.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_token_of_weight_0_may_hold_anything() -> None:
    (row,) = teacher_advantages([[NAN, -1.0]], [[-1.0, -0.5]], weights=[[0, 1]])
    assert row.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: teacher_advantages([[-1.0]], []), LengthMismatchError, "1 rows of advantages but 0 of ref_logprobs"),
        (lambda: teacher_advantages([[-1.0]], [[NAN]]), NonFiniteLossInput, "sample 0: the KL at token 0 is nan"),
        (lambda: teacher_advantages([[-1.0]], [[-1.0]], cap=0.0), LossConfigError, "cap=0.0 must be a finite number"),
        (lambda: teacher_advantages([[-1.0]], [[-1.0]], cap=NAN), LossConfigError, "cap=nan must be a finite number"),
        (lambda: teacher_advantages([[-1.0]], [[-1.0]], cap=float("inf")), LossConfigError, "or None for no cap"),
    ],
    ids=["rows", "NaN", "cap 0", "cap NaN", "cap inf"],
)
def test_what_is_no_teacher_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


LOGITS = st.lists(st.floats(-3, 3), min_size=4, max_size=4)


@given(student=LOGITS, teacher=LOGITS)
def test_on_policy_the_expected_gradient_of_a_policy_loss_is_that_of_the_reverse_kl(
    student: list[float], teacher: list[float]
) -> None:
    """Each of the four tokens, weighted by how likely the student samples it."""
    logits = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    own, other = logits.log_softmax(0), torch.tensor(teacher, dtype=torch.float64).log_softmax(0)
    exact = torch.autograd.grad(reverse_kl(own, other), logits, retain_graph=True)[0]
    (advantages,) = teacher_advantages([own.detach()], [other])
    inputs = {
        **{"target_tokens": [0, 1, 2, 3], "weights": own.detach().exp().float()},
        **{"sampling_logprobs": own.detach().float(), "advantages": advantages.float()},
    }
    value, _ = get_loss("importance_sampling")([Datum(ModelInput.from_ints([0] * 4), inputs)], [own])
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], exact, atol=1e-5, rtol=1e-5)
