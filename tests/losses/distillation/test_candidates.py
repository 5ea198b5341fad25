"""Distillation over K candidates: what each loss makes of the tail, of absent candidates, and of the ends of beta."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lossbook import Datum, get_loss
from lossbook.datums.errors import LengthMismatchError, LossConfigError, NonFiniteLossInput, ShapeError
from lossbook.losses.math import divergences

from ..cases import assert_rows_equal, datum, evaluated

LN2 = math.log(2)
A, B = math.log(4 / 3), math.log(2 / 3)
S = 2 / 3 * A + 1 / 3 * B
NEVER = -math.inf


def compared(student: list[float], teacher: list[float], name: str, **config: Any) -> tuple[float, list[float]]:
    """Loss and slopes of one position; both are probabilities, and a teacher's 0 is an absent candidate."""
    own = [[math.log(p) for p in student]]
    others = [[math.log(p) if p else NEVER for p in teacher]]
    data = [datum([list(range(len(student)))], teacher_logprobs=others, weights=[1.0])]
    value, gradients, _ = evaluated(get_loss(name, **config), data, [own])
    return value, gradients[0][0].tolist()


# student (1/2, 1/4), teacher (1/4, 1/2): a quarter of each is elsewhere
@pytest.mark.parametrize(
    ("name", "tail", "loss", "gradient"),
    [
        pytest.param("topk_forward_kl", "drop", 0.25 * LN2, [-0.25, -0.5], id="forward, two terms of the sum: -t"),
        pytest.param("topk_forward_kl", "bin", 0.25 * LN2, [0.25, -0.25], id="forward, tails agree: s - t"),
        pytest.param(
            "topk_forward_kl", "renormalise", LN2 / 3, [1 / 3, -1 / 3], id="forward, (2/3, 1/3) to (1/3, 2/3)"
        ),
        pytest.param(
            "topk_reverse_kl", "drop", 0.25 * LN2, [0.5 * (1 + LN2), 0.25 * (1 - LN2)], id="reverse, pushed off both"
        ),
        pytest.param("topk_reverse_kl", "bin", 0.25 * LN2, [0.5 * LN2, -0.25 * LN2], id="reverse, tails agree"),
        pytest.param(
            "topk_reverse_kl", "renormalise", LN2 / 3, [4 / 9 * LN2, -4 / 9 * LN2], id="reverse, s (log s/t - KL)"
        ),
        pytest.param("topk_jsd", "drop", 0.25 * B + 0.5 * A, [0.25 * A, 0.125 * B], id="jsd, mixture (3/8, 3/8)"),
        pytest.param("topk_jsd", "bin", 0.25 * B + 0.5 * A, [0.25 * A, 0.125 * B], id="jsd, tails agree"),
        pytest.param(
            "topk_jsd", "renormalise", S, [(A - S) / 3, (B - S) / 6], id="jsd, mixture (1/2, 1/2) of the candidates"
        ),
        pytest.param("gkd", "bin", 0.25 * B + 0.5 * A, [0.25 * A, 0.125 * B], id="gkd in the middle is jsd"),
    ],
)
def test_the_tail_is_treated_as_the_setting_says(name: str, tail: str, loss: float, gradient: list[float]) -> None:
    for student, teacher, slopes in (
        ([0.5, 0.25], [0.25, 0.5], gradient),
        ([0.5, 0.25, 0.125], [0.25, 0.5, 0.0], [*gradient, 0.0]),  # an absent candidate is as if it were not there
    ):
        value, gradient = compared(student, teacher, name, tail=tail)
        assert value == pytest.approx(loss, abs=1e-7)
        assert gradient == pytest.approx(slopes, abs=1e-6)


@pytest.mark.parametrize("tail", ["bin", "renormalise", "drop"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("topk_forward_kl", 0.1937942), ("topk_reverse_kl", 0.2238047), ("topk_jsd", 0.0508746), ("gkd", 0.0508746)],
)
def test_over_a_whole_vocabulary_of_three_it_is_the_divergence_itself(name: str, value: float, tail: str) -> None:
    assert compared([0.5, 0.3, 0.2], [0.2, 0.5, 0.3], name, tail=tail)[0] == pytest.approx(value, abs=2e-7)


@pytest.mark.parametrize(
    ("tail", "loss", "slope"),
    [
        pytest.param("drop", 0.1 * math.log(0.2), -0.1, id="drop: the one term is negative"),
        pytest.param("renormalise", 0.0, 0.0, id="renormalise: both are 1, nothing is learned"),
        # -t + t_tail s / s_tail = -0.1 + 0.9 * 0.5 / 0.5
        pytest.param("bin", 0.1 * math.log(0.2) + 0.9 * math.log(1.8), 0.8, id="bin: a coin of two sides"),
    ],
)
def test_one_candidate_is_learned_only_with_a_tail(tail: str, loss: float, slope: float) -> None:
    value, gradient = compared([0.5], [0.1], "topk_forward_kl", tail=tail)
    assert value == pytest.approx(loss, abs=1e-7)
    assert gradient == pytest.approx([slope], abs=1e-6)


def test_a_student_with_nothing_left_for_the_tail_gets_no_gradient_through_it() -> None:
    value, gradient = compared([0.5, 0.5], [0.5, 0.25], "topk_forward_kl", tail="bin")
    assert value == pytest.approx(-0.25 * LN2 + 0.25 * math.log(0.25 / 1e-7), abs=1e-6)
    assert gradient == pytest.approx([-0.5, -0.25], abs=1e-7)


@pytest.mark.parametrize("mass", [1 - 1e-3, 1 - 1e-5], ids=["a thousandth is left", "a hundred-thousandth is left"])
def test_the_tail_is_what_is_left_even_where_little_is(mass: float) -> None:
    present = torch.ones(2, dtype=torch.bool)
    log_probabilities = divergences.with_tail(torch.tensor([mass / 2] * 2, dtype=torch.float64).log(), present, "bin")
    assert float(log_probabilities[-1]) == pytest.approx(math.log(1 - mass), rel=1e-9)


def test_gkd_jumps_at_its_ends_where_it_is_a_kl() -> None:
    student, teacher = [0.5, 0.3, 0.1], [0.2, 0.5, 0.2]
    for beta, name in ((0.0, "topk_forward_kl"), (1.0, "topk_reverse_kl")):
        assert compared(student, teacher, "gkd", beta=beta) == compared(student, teacher, name)
        inside = abs(beta - 1e-3)
        assert compared(student, teacher, "gkd", beta=inside) == compared(student, teacher, "topk_jsd", beta=inside)
        share = compared(student, teacher, "gkd", beta=inside)[0] / compared(student, teacher, "gkd", beta=beta)[0]
        assert share == pytest.approx(1e-3, rel=0.01)


def test_beta_leans_to_the_forward_kl_where_it_is_small() -> None:
    # Agarwal et al. 2023 eq. 1: 0.25 KL(t || m) + 0.75 KL(s || m), m = 0.75 s + 0.25 t
    s, t = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    m = 0.75 * s + 0.25 * t
    expected = 0.25 * (t * np.log(t / m)).sum() + 0.75 * (s * np.log(s / m)).sum()
    assert compared([0.5, 0.3, 0.2], [0.2, 0.5, 0.3], "topk_jsd", beta=0.25)[0] == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_jsd_is_refused_at_its_ends_and_told_what_they_are(beta: float) -> None:
    with pytest.raises(LossConfigError, match=f"strictly between 0 and 1: at {beta:g} the loss is 0"):
        get_loss("topk_jsd", beta=beta)
    with pytest.raises(LossConfigError, match="the ends are forward_kl and reverse_kl"):
        divergences.jsd(torch.zeros(1), torch.zeros(1), beta)


@pytest.mark.parametrize(("name", "beta"), [("topk_jsd", 1.5), ("topk_jsd", -0.5), ("gkd", 1.5), ("gkd", -0.5)])
def test_beta_beyond_its_range_is_refused_and_not_clamped(name: str, beta: float) -> None:
    with pytest.raises(LossConfigError, match=f"{name}: beta={beta}"):
        get_loss(name, beta=beta)


def test_temperature_is_that_of_the_candidates_logits() -> None:
    student, teacher = torch.tensor([1.0, -0.5, 2.0]).double(), torch.tensor([0.5, 0.25, -1.0]).double()
    warm = [(x[:2] / 2.0).softmax(-1).log() for x in (student, teacher)]
    probabilities = [x.softmax(-1)[:2].tolist() for x in (student, teacher)]
    loss_value = compared(*probabilities, "gkd", beta=0.0, temperature=2.0, tail="renormalise")[0]
    assert loss_value == pytest.approx(float(divergences.forward_kl(*warm)), abs=1e-7)


@pytest.mark.parametrize("tail", ["bin", "drop"])
def test_temperature_is_refused_where_it_cannot_be_known(tail: str) -> None:
    with pytest.raises(LossConfigError, match=f"temperature=0.9 needs tail='renormalise', not '{tail}'"):
        compared([0.5], [0.5], "gkd", temperature=0.9, tail=tail)


def test_sdft_is_cross_entropy_with_the_renormalised_teacher_as_weights() -> None:
    value, slopes = compared([0.5, 0.25, 0.125], [0.25, 0.5, 0.0], "sdft")
    assert value == pytest.approx(5 / 3 * LN2, abs=1e-7)  # -(1/3 log 1/2 + 2/3 log 1/4)
    assert slopes == pytest.approx([-1 / 3, -2 / 3, 0.0], abs=1e-7)
    soft = [datum([[0, 1, 2]], weights=[[1 / 3, 2 / 3, 0.0]])]
    same, gradients, _ = evaluated(get_loss("cross_entropy"), soft, [[[math.log(p) for p in (0.5, 0.25, 0.125)]]])
    assert value == pytest.approx(same, abs=1e-7)
    assert slopes == pytest.approx(gradients[0][0].tolist(), abs=1e-7)


def test_candidates_are_reported_by_what_they_hold() -> None:
    data = [
        datum([[0, 1], [2, 3]], teacher_logprobs=[[math.log(0.25)] * 2, [math.log(0.75), NEVER]], weights=[1.0, 2.0])
    ]
    own = [[[math.log(0.5), math.log(0.25)], [math.log(0.5), math.log(0.125)]]]
    for name in ("topk_forward_kl", "topk_reverse_kl", "topk_jsd", "gkd", "sdft"):
        _, _, metrics = evaluated(get_loss(name), data, own)
        assert metrics == pytest.approx(
            {
                "teacher_mass": 0.625,
                "teacher_mass_min": 0.5,
                "student_mass": 0.625,
                "teacher_entropy": LN2 / 2,  # ln 2 of the even pair, 0 of the lone candidate
                "teacher_cross_entropy": (1.5 + 1) / 2 * LN2,
            },
            abs=1e-6,
        )


def test_multi_target_cross_entropy_of_one_target_is_cross_entropy() -> None:
    one, many = datum([3, 1], weights=[0.5, 2.0]), datum([[3], [1]], weights=[[0.5], [2.0]])
    plain = evaluated(get_loss("cross_entropy"), [one], [[-1.0, -2.0]])
    columns = evaluated(get_loss("cross_entropy"), [many], [[[-1.0], [-2.0]]])
    assert plain[0] == columns[0] == 4.5
    assert_rows_equal([columns[1][0][:, 0]], plain[1], 0)


def test_datums_with_different_numbers_of_candidates_are_read_together() -> None:
    pairs = datum([[0, 1]], teacher_logprobs=[[math.log(0.25), math.log(0.5)]], weights=[2.0])
    lone = datum([[4]], teacher_logprobs=[[math.log(0.5)]], weights=[1.0])
    outputs = [[[math.log(0.5), math.log(0.25)]], [[math.log(0.25)]]]
    value, gradients, _ = evaluated(get_loss("topk_forward_kl"), [pairs, lone], outputs)
    coin = 0.5 * LN2 + 0.5 * math.log(0.5 / 0.75)
    assert value == pytest.approx((2 * 0.25 * LN2 + coin) / 3, abs=1e-7)
    # 2/3 (s - t); and of the coin (-t + t_tail s / s_tail) / 3
    assert_rows_equal(gradients, [[[2 / 3 * 0.25, -2 / 3 * 0.25]], [[(-0.5 + 0.5 * 0.25 / 0.75) / 3]]], 1e-7)


def candidates(**changed: Any) -> Datum:
    inputs = {"teacher_logprobs": [[-1.0, -1.0], [-1.0, NEVER]], "weights": [1.0, 1.0], "targets": [[0, 1], [2, 3]]}
    inputs |= changed
    return datum(inputs.pop("targets"), **{k: v for k, v in inputs.items() if v is not None})


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        pytest.param(
            {"targets": [0, 1], "teacher_logprobs": [-1.0, -1.0]},
            ShapeError,
            r"reads target_tokens \[N, K\], but those of datum 0 of 1 are \[2\]",
            id="one target a position",
        ),
        pytest.param(
            {"teacher_logprobs": [[-1.0], [-1.0]]},
            ShapeError,
            r"teacher_logprobs is \[2, 1\] but target_tokens is \[2, 2\]",
            id="a number is missing for each second candidate",
        ),
        pytest.param(
            {"weights": [[1.0, 1.0], [1.0, 1.0]]},
            LengthMismatchError,
            r"weights is \[2, 2\], one for each of 2 candidates, but topk_forward_kl takes one per position, 2",
            id="a weight per candidate",
        ),
        pytest.param(
            {"teacher_logprobs": [[-1.0, -1.0], [NEVER, NEVER]]},
            NonFiniteLossInput,
            "teacher_logprobs of datum 0 is -inf for all 2 candidates at position 1",
            id="no candidate at all",
        ),
        pytest.param(
            {"teacher_logprobs": [[-1.0, -1.0], [math.nan, -1.0]]},
            NonFiniteLossInput,
            "teacher_logprobs of datum 0 is nan at position 1",
            id="NaN is not absent",
        ),
    ],
)
def test_candidates_that_do_not_fit_are_refused_before_the_model_runs(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        get_loss("topk_forward_kl").check([candidates(**changed)])


def test_a_position_without_candidates_is_left_out_by_its_weight() -> None:
    data = [candidates(teacher_logprobs=[[math.log(0.25), math.log(0.5)], [NEVER, NEVER]], weights=[1.0, 0.0])]
    own = [[[math.log(0.5), math.log(0.25)], [math.nan, math.nan]]]
    value, gradients, _ = evaluated(get_loss("topk_forward_kl"), data, own)
    assert value == pytest.approx(0.25 * LN2, abs=1e-7)
    assert gradients[0][1].tolist() == [0.0, 0.0]
