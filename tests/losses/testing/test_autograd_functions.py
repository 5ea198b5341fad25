"""The kit differentiates a hand-written `torch.autograd.Function` as a whole: a right one passes, a wrong one is told the figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lossbook import Datum
from lossbook.datums.errors import LossCheckError
from lossbook.losses.testing import check_loss, run_check

from . import autograd_functions as functions


@pytest.mark.parametrize(
    "loss",
    [
        functions.right,
        functions.of_two,
        functions.by_a_constant_slope,
        functions.of_both_outputs,
        functions.of_one_output,
        functions.under_no_grad,
        functions.detached_inside,
        functions.in_single,
        functions.casting,
        functions.in_double,
    ],
    ids=lambda loss: loss.__name__,
)
def test_a_right_backward_passes_every_check(loss: Any) -> None:
    assert check_loss(loss, max_examples=5).passed


#: At logprobs of -1: loss, gradient by its backward, slope.
WRONG = [
    (functions.wrong_sign, {}, 1, -1),
    (functions.of_two_swapped, {"advantages": [3.0]}, 2, -3),  # -(2x) a / 2; the gradient given is -(2x) / 2 * 2
    (functions.of_both_outputs_halved, {}, -1.36787944, -2.36787944),  # -exp(x) + x^2: -exp(-1) - 2
]


@pytest.mark.parametrize(
    ("loss", "inputs", "given", "slope"), WRONG, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_wrong_backward_is_told_what_it_gives_and_what_it_should(
    loss: Any, inputs: Any, given: float, slope: float
) -> None:
    data = [Datum([0], {"target_tokens": [0], "weights": [1.0], **inputs})]
    with pytest.raises(LossCheckError) as caught:
        run_check("gradient", loss, data=data, outputs={"logprobs": [[-1.0]]})
    assert f"gradient of datum 0's logprobs at 0 is {given:g}, but finite differences give" in str(caught.value) or (
        f"is {given:.9g}, but finite differences give" in str(caught.value)
    )
    assert abs(float(str(caught.value).rpartition(" ")[2]) - slope) < 1e-6


@pytest.mark.parametrize("loss", [functions.in_single_halved, functions.casting_halved], ids=lambda loss: loss.__name__)
def test_a_wrong_backward_in_float32_is_told_so(loss: Any) -> None:
    data = [Datum([0], {"target_tokens": [0], "weights": [1.0]})]
    with pytest.raises(LossCheckError, match=r"at 0 is -1, but finite differences give -2(\.\d+)?$"):
        run_check("gradient", loss, data=data, outputs={"logprobs": [[-1.0]]})
    failed = check_loss(loss, on_fail="report", max_examples=5).failures
    assert [result.check for result in failed] == ["gradient"]


@pytest.mark.parametrize(
    ("loss", "word"),
    [
        (functions.in_single, "with float32's tolerances, because it takes no float64"),
        (functions.casting, "with float32's tolerances, because it computes in float32"),
        (functions.right, ""),
    ],
    ids=["takes float32 only", "casts to float32", "computes in float64"],
)
def test_a_report_says_in_which_precision_a_loss_was_checked(loss: Any, word: str) -> None:
    assert check_loss(loss, checks=["gradient"])["gradient"].message == word


def test_a_loss_that_takes_float64_only_is_refused_in_its_own_words() -> None:
    failed = check_loss(functions.in_double_as_it_comes, on_fail="report", max_examples=3).failures
    assert {"dtype", "extreme_logprobs"} >= {result.check for result in failed}
    assert "TypeError: the kernel takes float64, not torch.float32" in failed[0].message


def test_the_profiler_of_the_caller_stays_in_place() -> None:
    import sys

    def profile(*_: Any) -> None: ...

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        check_loss(functions.right, checks=["gradient"], max_examples=1)
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(before)
    assert torch.is_grad_enabled()
