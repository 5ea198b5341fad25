"""Math answers: each earns 1 whole, in any form, and none of its parts does."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.cookbook.environments.math_answers import MathReward
from lossbook.datums.errors import RewardError

from .math_style_answers import ANSWERS

#: What a model writes around its answer.
SHAPES = [
    "$\\boxed{%s}$",
    "\\boxed{%s}",
    "So we get\n$$\\boxed{%s}$$.",
    "%s",
    "The answer is %s.",
    "Two lines.\n#### %s",
]
#: Numbers and letters in an answer that are a form of the whole answer: percent, and a set of one element.
WHOLE_AS_WELL = {("50%", "50"), ("\\{0\\}", "0"), ("$0.75", "0.75")}


@pytest.fixture(scope="module")
def reward() -> MathReward:
    return MathReward()


def parts(answer: str) -> set[str]:
    """Every number and every single letter that stands in an answer."""
    return set(re.findall(r"\d+|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", answer)) - {answer}


def test_the_list_has_at_least_200_answers_written_in_different_ways() -> None:
    assert len({answer for answer, _, _ in ANSWERS}) == len(ANSWERS) >= 200


@pytest.mark.parametrize("shape", SHAPES)
def test_every_answer_earns_1_for_itself(reward: MathReward, shape: str) -> None:
    wrong = [answer for answer, _, _ in ANSWERS if reward(shape % answer, {"answer": answer}) != 1]
    assert wrong == []


def test_every_answer_earns_1_in_its_other_forms(reward: MathReward) -> None:
    wrong = [
        (answer, form)
        for answer, forms, _ in ANSWERS
        for form in forms
        if reward(SHAPES[0] % form, {"answer": answer}) != 1
    ]
    assert wrong == []


@pytest.mark.parametrize("shape", [pytest.param("$\\boxed{%s}$", marks=pytest.mark.slow), "%s"])
def test_parts_and_near_misses_of_an_answer_earn_0(reward: MathReward, shape: str) -> None:
    wrong = [
        (answer, other)
        for answer, forms, others in ANSWERS
        for other in sorted({*others, *parts(answer)} - set(forms))
        if (answer, other) not in WHOLE_AS_WELL and reward(shape % other, {"answer": answer}) != 0
    ]
    assert wrong == []


@settings(max_examples=60, deadline=None)
@given(
    st.integers(-9, 9).filter(bool),
    st.integers(2, 9),
    st.sampled_from([2, 3, 5, 7]),
    st.sampled_from(["x", "n", "i", "\\pi"]),
)
def test_a_sum_of_two_terms_earns_1_in_either_order_and_0_for_a_term(
    reward: MathReward, a: int, b: int, root: int, letter: str
) -> None:
    row = {"answer": f"{a} + {b}\\sqrt{{{root}}}{letter}"}
    shown = [f"{b}\\sqrt{{{root}}}{letter} + {a}", f"{a}", f"{b}\\sqrt{{{root}}}{letter}", f"{b}", f"{root}", letter]
    assert [reward(f"$\\boxed{{{text}}}$", row) for text in shown] == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("right", "answer", "expected"),
    [
        pytest.param(
            "2",
            "$\\boxed{1}$, no: it is odd after all, so the result must be $\\boxed{2}$",
            1,
            id="the last box counts",
        ),
        pytest.param(
            "1",
            "$\\boxed{1}$, no: it is odd after all, so the result must be $\\boxed{2}$",
            0,
            id="an earlier box does not",
        ),
        pytest.param("1, 2", "$\\boxed{1}$ and $\\boxed{2}$", 1, id="two boxes joined by and are one answer"),
        pytest.param("2", "$\\boxed{1}$ and $\\boxed{2}$", 0, id="one of two joined boxes is a part"),
        pytest.param(
            "3", "$\\boxed{x \\heartsuit 3}$, because of 3", 0, id="a box that cannot be read is not replaced by prose"
        ),
        pytest.param("2", "So we get 2x+3.", 0, id="the number of a term in prose is a part"),
        pytest.param("2x+3", "So we get 2x + 3.", 1, id="the last expression in prose"),
        pytest.param("9", "The cat has 9 lives", 1, id="a number in prose"),
        pytest.param("1/4", "It is $\\frac{1}{4}$.", 1, id="mathematics in prose"),
        pytest.param("72", "48/2 = 24 in May, 48+24 = 72 in all.\n#### 72", 1, id="behind ####"),
        pytest.param("She sold 24 clips in May and so 72 in all.\n#### 72", "72", 1, id="a right answer behind ####"),
        pytest.param("She sold 24 clips in May and so 72 in all.\n#### 72", "24", 0, id="not a number before ####"),
        pytest.param("Adding gives $3+4$, so the sum is $\\boxed{7}$.", "7", 1, id="a right answer in a box in prose"),
        pytest.param("Paris", "\\boxed{Pairs}", 0, id="the same letters in another order"),
        pytest.param("12", "$\\boxed{12", 0, id="a box that was cut off"),
        pytest.param("12", "$\\boxed{\\boxed{12}}$", 1, id="a box in a box"),
        pytest.param("5", "", 0, id="no answer"),
        pytest.param("5", "I do not know", 0, id="only words"),
    ],
)
def test_which_part_of_a_text_is_its_answer(reward: MathReward, right: str, answer: str, expected: float) -> None:
    assert reward(answer, {"answer": right}) == expected


@pytest.mark.parametrize(
    ("right", "message"),
    [
        pytest.param("", "the answer '' is empty", id="empty"),
        pytest.param("The cat sat on the mat for 5 long hours", "is prose. Write the final answer alone", id="prose"),
    ],
)
def test_a_right_answer_that_nobody_could_repeat_is_refused(reward: MathReward, right: str, message: str) -> None:
    with pytest.raises(RewardError, match=re.escape(message)):
        reward("5", {"answer": right})
