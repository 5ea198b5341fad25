"""Distillation over whole distributions: numbers by hand, tokens that are ruled out, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import get_loss
from lossbook.datums.errors import (
    LossConfigError,
    LossContractError,
    MissingInput,
    ShapeError,
    TraceError,
    UnknownInput,
)

from ..cases import datum

LN2, LN3 = math.log(2), math.log(3)
NEVER = -math.inf


def compared(name: str, student: list[float], teacher: list[float], **config: Any) -> tuple[float, list[float], Any]:
    """Loss, slopes in the logits (= logprobs here) and metrics of one position; both are probabilities."""
    logits = torch.tensor([student], dtype=torch.float64).log().requires_grad_()
    others = torch.tensor([teacher], dtype=torch.float64).log()
    value, metrics = get_loss(name, **config).on_logits(
        logits, torch.zeros(1, dtype=torch.int64), mask=torch.ones(1), teacher_logits=others
    )
    (slope,) = torch.autograd.grad(value, logits)
    return float(value.detach()), slope[0].tolist(), metrics


# student (1/2, 1/4, 1/4), teacher (1/4, 1/2, 1/4); KL either way: 1/4 ln 2. Slopes in logits: s - t of the forward KL, s (log s/t - KL)
# of the reverse one; m = (3/8, 3/8, 1/4) and a = ln 4/3, b = ln 2/3 of the JSD, whose slope is s (log s/m - KL(s || m)) / 2.
A, B = math.log(4 / 3), math.log(2 / 3)
KL_M = 0.5 * A + 0.25 * B
S, T = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]


@pytest.mark.parametrize(
    ("name", "config", "loss", "slopes"),
    [
        pytest.param("full_forward_kl", {}, LN2 / 4, [0.25, -0.25, 0], id="forward: s - t"),
        pytest.param("full_reverse_kl", {}, LN2 / 4, [3 / 8 * LN2, -5 / 16 * LN2, -LN2 / 16], id="reverse: s (log s/t - KL)"),
        pytest.param("full_jsd", {}, KL_M, [0.25 * (A - KL_M), 0.125 * (B - KL_M), -0.125 * KL_M], id="jsd"),
        pytest.param("full_gkd", {"beta": 0.5}, KL_M, [0.25 * (A - KL_M), 0.125 * (B - KL_M), -0.125 * KL_M], id="gkd in the middle"),
        pytest.param("full_gkd", {"beta": 0.0}, LN2 / 4, [0.25, -0.25, 0], id="gkd at 0"),
        # alpha 1/2: m = (3/8, 3/8, 1/4), KL(t || m) = 1/4 ln 2/3 + 1/2 ln 4/3; d/d log s_v = -t_v s_v / 2 m_v = (-1/6, -1/6, -1/8), less s Σ
        pytest.param("full_skewed_forward_kl", {"alpha": 0.5}, KL_M, [1 / 16, -5 / 96, -1 / 96], id="skewed forward"),
        # KL(s || m), the same number; s (log s/m + 1/2 (s's share outside m)): slope s (log s/m + 1 - s/2m - Σ)
        pytest.param("full_skewed_reverse_kl", {"alpha": 0.5}, KL_M, None, id="skewed reverse"),
        # head of T at 1/2: the second token; gaps 1/4, 1/4, 0, so that half of either KL
        pytest.param("full_adaptive_kl", {}, LN2 / 4, [0.125 + 3 / 16 * LN2, -0.125 - 5 / 32 * LN2, -LN2 / 32], id="adaptive"),
        # sign (1, -1, 0): 1/2 s (sign - Σ s sign), Σ = 1/4
        pytest.param("full_total_variation", {}, 0.25, [3 / 16, -5 / 32, -1 / 32], id="total variation"),
    ],
)  # fmt: skip
def test_numbers_by_hand(name: str, config: dict[str, Any], loss: float, slopes: list[float] | None) -> None:
    value, own, metrics = compared(name, S, T, **config)
    assert value == pytest.approx(loss)
    assert metrics["teacher_entropy"] == pytest.approx(1.5 * LN2)
    assert metrics["agreement"] == 0
    if slopes is not None:
        assert own == pytest.approx(slopes)


def test_the_skewed_reverse_slope_by_hand() -> None:
    mixture = [3 / 8, 3 / 8, 1 / 4]
    raw = [s * (math.log(s / m) + 1 - 0.5 * s / m) for s, m in zip(S, mixture, strict=True)]
    _, own, _ = compared("full_skewed_reverse_kl", S, T, alpha=0.5)
    assert own == pytest.approx([r - s * sum(raw) for r, s in zip(raw, S, strict=True)])


def test_temperature_flattens_both_and_divides_the_slope() -> None:
    # at temperature 2 student (9, 1)/10 is (3, 1)/4 and teacher (1, 9)/10 is (1, 3)/4: KL = (3/4 - 1/4) ln 3; slope (s - t) / 2
    value, slopes, _ = compared("full_forward_kl", [0.9, 0.1], [0.1, 0.9], temperature=2.0)
    assert value == pytest.approx(LN3 / 2)
    assert slopes == pytest.approx([0.25, -0.25])


@pytest.mark.parametrize("name", ["full_forward_kl", "full_reverse_kl", "full_jsd", "full_gkd", "full_skewed_forward_kl", "full_skewed_reverse_kl", "full_adaptive_kl", "full_total_variation"])  # fmt: skip
def test_a_token_that_both_rule_out_adds_nothing(name: str) -> None:
    value, slopes, metrics = compared(name, S, T)
    wider, more, others = compared(name, [*S, 0.0], [*T, 0.0])
    assert wider == pytest.approx(value)
    assert more == pytest.approx([*slopes, 0.0])
    assert dict(others) == pytest.approx(dict(metrics))


def test_head_is_the_fewest_tokens_that_reach_the_share() -> None:
    # T sorted: 1/2, 1/4 (id 0), 1/4 (id 2). head 0.6 needs two: gaps 1/4 + 1/4 of 1/2, all of it
    assert compared("full_adaptive_kl", S, T, head=0.6)[2]["head_share"] == pytest.approx(1.0)
    assert compared("full_adaptive_kl", S, T, head=0.5)[2]["head_share"] == pytest.approx(0.5)
    assert compared("full_adaptive_kl", T, T)[0] == 0


def test_a_loss_of_datums_takes_lists_of_tables() -> None:
    data = [datum(2, weights=[1.0, 0.0]), datum(1, weights=[3.0])]
    tables = [torch.tensor([S, S]).log(), torch.tensor([S]).log()]
    teachers = [torch.tensor([T, S]).log(), torch.tensor([T]).log()]
    value, _ = get_loss("full_gkd", beta=0.0)(data, {"vocab_logprobs": tables, "teacher_vocab_logprobs": teachers})
    assert float(value) == pytest.approx(LN2 / 4)
    with pytest.raises(ShapeError, match=r"datum 1 of 2: vocab_logprobs is \[1, 2\]: one number for each token"):
        get_loss("full_gkd")(
            data, {"vocab_logprobs": [tables[0], tables[1][:, :2]], "teacher_vocab_logprobs": teachers}
        )


def test_what_it_cannot_do_is_refused_with_the_mend() -> None:
    loss, labels = get_loss("full_gkd"), torch.zeros(2, dtype=torch.int64)
    logits = torch.zeros(2, 3)
    with pytest.raises(MissingInput, match=r"compares with a teacher, which was not given: teacher_logits="):
        loss.on_logits(logits, labels)
    with pytest.raises(MissingInput, match="teacher_hidden and teacher_head go together"):
        loss.on_hidden(
            torch.zeros(2, 2), torch.zeros(3, 2), labels, mask=torch.ones(2), teacher_hidden=torch.zeros(2, 2)
        )
    with pytest.raises(UnknownInput, match="cross_entropy reads no teacher's distributions"):
        get_loss("cross_entropy").on_logits(logits, labels, teacher_logits=logits)
    with pytest.raises(ShapeError, match="the student has 3 tokens and the teacher 4"):
        loss.on_logits(logits, labels, mask=torch.ones(2), teacher_logits=torch.zeros(2, 4))
    with pytest.raises(TraceError, match=r"hands out logprobs only.*topk_"):
        get_loss("full_gkd", reduction="sum").trace()
    with pytest.raises(LossContractError, match="topk_"):
        loss([datum(1, weights=[1.0])], [torch.zeros(1)])
    for alpha in (-0.1, 1.0, 1.5):
        with pytest.raises(LossConfigError, match="alpha"):
            get_loss("full_skewed_forward_kl", alpha=alpha)


def test_agreement_is_a_share_of_positions() -> None:
    student = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([[0.6, 0.2, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64).log()
    tokens = torch.zeros(2, dtype=torch.int64)
    _, metrics = get_loss("full_forward_kl").on_logits(student, tokens, mask=torch.ones(2), teacher_logits=teacher)
    assert metrics["agreement"] == 0.5
