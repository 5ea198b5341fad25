"""Curves: a loss and its gradient along what it is about, and how they are drawn in a terminal."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import describe_loss, get_loss, list_losses
from lossbook.losses import PerDatum
from lossbook.losses.cards.braille import HEIGHT, draw
from lossbook.losses.cards.curves import Curve, Line, curve_of
from lossbook.losses.cards.sample_inputs import usable

from ..cases import loss_of

#: Losses that no single quantity describes, and why.
WITHOUT: dict[str, str] = {"gor": "it compares texts of one block, and not those that belong together"}
ALL = [name for name in list_losses() if describe_loss(name).defined_in.startswith("lossbook.")]


def curve(loss: Any, points: int = 7) -> Curve:
    drawn = curve_of(usable(loss), points)
    assert drawn is not None
    return drawn


@pytest.mark.parametrize("name", ALL)
def test_every_shipped_loss_has_a_curve_that_moves(name: str) -> None:
    if name in WITHOUT:
        assert curve_of(usable(name), 5) is None, f"{name} has a curve now: {WITHOUT[name]} is stale"
        return
    drawn = curve(name, 12)
    assert any(slope != 0 for line in drawn.lines for slope in line.gradient)
    assert all(len(line.x) == len(line.loss) == len(line.gradient) > 10 for line in drawn.lines)


def test_a_policy_loss_is_drawn_over_the_log_ratio_for_either_sign_of_the_advantage() -> None:
    drawn = curve("ppo")
    assert drawn.quantity == "log-ratio to the sampler (nats)"
    rewarded, punished = drawn.lines
    assert (rewarded.label, punished.label) == ("A = +1", "A = -1")
    for line, sign in ((rewarded, 1), (punished, -1)):
        for x, loss, slope in zip(line.x, line.loss, line.gradient, strict=True):
            ratio = math.exp(x)
            clipped = min(max(ratio, 0.8), 1.2)
            assert loss == pytest.approx(-min(sign * ratio, sign * clipped), abs=1e-6)
            assert slope == pytest.approx(-sign * ratio if sign * ratio <= sign * clipped else 0.0, abs=1e-6)


def test_a_pair_loss_is_drawn_over_its_margin() -> None:
    drawn = curve("dpo")
    assert drawn.quantity == "margin: chosen - rejected, over the reference (nats)"
    (line,) = drawn.lines
    assert line.label == ""
    for x, loss, slope in zip(line.x, line.loss, line.gradient, strict=True):
        assert loss == pytest.approx(math.log1p(math.exp(-0.1 * x)), abs=1e-9)
        assert slope == pytest.approx(-0.1 / (1 + math.exp(0.1 * x)), abs=1e-9)


def test_a_supervised_loss_is_drawn_over_the_logprob() -> None:
    (line,) = curve("cross_entropy").lines
    assert line.loss == tuple(-x for x in line.x)
    assert set(line.gradient) == {-1.0}


def test_an_embedding_loss_is_drawn_over_the_cosine_of_a_pair_among_others() -> None:
    (line,) = curve(get_loss("info_nce", temperature=1.0)).lines
    for x, loss in zip(line.x, line.loss, strict=True):
        first = math.log(math.exp(x) + 1) - x  # the other pair's vectors stand at right angles
        second = math.log(1 + math.e) - 1
        assert loss == pytest.approx((first + second) / 2, abs=1e-9)


def test_a_loss_over_candidates_is_drawn_over_the_students_probability() -> None:
    def forward_kl(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        return (teacher_logprobs.exp() * (teacher_logprobs - logprobs)).sum(1)

    (line,) = curve(loss_of(forward_kl, candidates="teacher_logprobs")).lines
    for x, loss, slope in zip(line.x, line.loss, line.gradient, strict=True):
        assert loss == pytest.approx(0.7 * math.log(0.7 / x) + 0.3 * math.log(0.3 / (1 - x)), abs=1e-6)
        assert slope == pytest.approx(-0.7 / x + 0.3 / (1 - x), abs=1e-6)


def test_a_value_loss_is_drawn_over_its_error() -> None:
    def squared(values: Tensor, returns: Tensor) -> Tensor:
        return 0.5 * (values - returns) ** 2

    drawn = curve(loss_of(squared))
    assert drawn.quantity == "value - return"
    assert drawn.lines[0].loss == tuple(0.5 * x * x for x in drawn.lines[0].x)


def test_a_flag_gives_two_lines() -> None:
    def unpaired(logprobs: Tensor, ref_logprobs: Tensor, label: PerDatum, seqs: Any) -> Tensor:
        return (1 - 2 * label) * seqs.sum(logprobs - ref_logprobs)

    good, bad = curve(loss_of(unpaired, per="datum")).lines
    assert (good.label, bad.label) == ("label = 1", "label = 0")
    assert good.loss == pytest.approx([-x for x in good.x])
    assert bad.loss == pytest.approx(bad.x)


@pytest.mark.parametrize(
    ("function", "quantity"),
    [
        (lambda entropy: -entropy, "entropy (nats)"),
        (lambda logprobs, logsumexp: logsumexp**2 - logprobs, "logsumexp of the logits (nats)"),
        (lambda logprobs, ref_logprobs: logprobs - ref_logprobs, "log-ratio to the reference (nats)"),
        (lambda logprobs, mean_logprobs: -logprobs - mean_logprobs, "logprob (nats)"),
    ],
    ids=["entropy", "logsumexp", "reference", "mean_logprobs"],
)
def test_other_losses_are_drawn_over_what_they_read(function: Any, quantity: str) -> None:
    assert curve(function).quantity == quantity


def test_a_teacher_gives_a_line_on_either_side() -> None:
    def reverse(logprobs: Tensor, sampling_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        return (logprobs - sampling_logprobs).exp() * (sampling_logprobs - teacher_logprobs)

    assert [line.label for line in curve(reverse).lines] == ["teacher +1 nat", "teacher -1 nat"]


def test_where_no_quantity_tells_there_is_no_curve_and_no_error() -> None:
    def hosted(data: Any, logprobs_list: Any) -> Any:
        return -sum(t.sum() for t in logprobs_list), {}

    def broken(logprobs: Tensor) -> Tensor:
        raise ValueError("not today")

    assert curve_of(get_loss(hosted)) is None
    assert curve_of(get_loss(broken)) is None
    assert curve_of(1.0 * get_loss("ppo") + 1.0 * get_loss("cross_entropy")) is None
    assert curve_of(get_loss(lambda logprobs: torch.full_like(logprobs, math.nan) * logprobs)) is None


def test_points_that_are_not_finite_are_left_out() -> None:
    (line,) = curve(lambda logprobs: -(logprobs + 2.0).log()).lines
    assert 0 < len(line.x) < 7
    assert all(math.isfinite(value) for value in (*line.loss, *line.gradient))


# Jumps.


@settings(max_examples=15)
@given(st.floats(-5.5, -0.5), st.floats(0.1, 10), st.integers(12, 60))
def test_a_jump_of_the_gradient_cuts_its_line_where_it_jumps_and_not_the_losss(
    bound: float, slope: float, n: int
) -> None:
    (line,) = curve(lambda logprobs: slope * logprobs.clamp(max=bound), n).lines
    (before, after) = line.pieces(line.gradient)
    assert before[0][-1] == pytest.approx(bound, abs=1e-6)
    assert after[0][0] == pytest.approx(bound, abs=1e-6)
    assert set(before[1]) == {slope}
    assert set(after[1]) == {0.0}
    assert line.pieces(line.loss) == [(line.x, line.loss)]


def test_a_jump_of_the_loss_cuts_its_line_and_a_steep_rise_does_not() -> None:
    (jumping,) = curve(lambda logprobs: (logprobs > -2.5) + 0 * logprobs, 20).lines
    before, after = jumping.pieces(jumping.loss)
    assert (set(before[1]), set(after[1])) == ({0.0}, {1.0})
    (steep,) = curve(lambda logprobs: torch.sigmoid(50 * (logprobs + 2.5)), 20).lines
    assert steep.jumps == ()


def test_the_bounds_of_a_clip_are_jumps_of_the_gradient() -> None:
    lines = curve(get_loss("ppo", clip_low=0.9, clip_high=1.28), 20).lines
    assert [line.x[jump] for line in lines for jump in line.jumps] == pytest.approx(
        [math.log(1.28), math.log(0.9)], abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in WITHOUT])
def test_what_is_joined_of_a_shipped_loss_is_gradual(name: str) -> None:
    """With four times the points a step of a line is smaller; that of a jump would stay."""
    coarse, fine = ([_largest_steps(line) for line in curve(name, points).lines] for points in (31, 121))
    for steps, finer in zip(coarse, fine, strict=True):
        assert all(after < max(0.95 * before, 0.02) for before, after in zip(steps, finer, strict=True))


def _largest_steps(line: Line) -> list[float]:
    """The largest change between two joined points of the loss, and of the gradient, as a share of its range."""
    return [
        max((abs(b - a) for _, ys in line.pieces(values) for a, b in itertools.pairwise(ys)), default=0.0)
        / max(max(values) - min(values), 1e-9)
        for values in (line.loss, line.gradient)
    ]


def test_the_axes_say_what_is_drawn_in_which_unit() -> None:
    shown = {name: (curve(name).loss_title, curve(name).gradient_title) for name in ("ppo", "dpo", "value_mse", "gkd")}
    assert shown == {
        "ppo": ("loss (unitless)", "d loss / d log-ratio (per nat)"),
        "dpo": ("loss (nats)", "d loss / d margin (nats per nat)"),
        "value_mse": ("loss (reward squared)", "d loss / d (value - return) (reward)"),
        "gkd": ("loss (nats)", "d loss / d probability (nats)"),
    }
    assert curve(lambda logprobs: -logprobs).gradient_title == "d loss / d logprob"  # of no known unit


# Drawing.


def test_a_drawing_is_short_and_names_axes_ends_and_lines() -> None:
    shown = draw(curve("ppo", 61)).splitlines()
    assert len(shown) == HEIGHT + 4 < 15
    assert max(map(len, shown)) <= 120
    assert shown[0].split() == ["loss", "(unitless)", "d", "loss", "/", "d", "log-ratio", "(per", "nat)"]
    assert shown[1].lstrip().startswith("4.26 ┤")
    assert shown[-3].split() == ["-1.5", "1.45", "-1.5", "1.45"]
    assert shown[-2].strip() == "over the log-ratio to the sampler (nats)"
    assert "── A = +1, - - A = -1" in shown[-1]


def test_a_drawing_fits_any_width() -> None:
    for columns in (40, 60, 71, 72, 80, 140):
        shown = draw(curve("ppo", 61), columns).splitlines()
        titles = ["loss (unitless)", "d loss / d log-ratio (per nat)"]
        assert max(map(len, shown)) <= columns
        assert [line.strip() for line in shown if line.strip() in titles] == (titles if columns < 72 else [])


def test_a_rising_line_rises_and_a_flat_one_is_in_the_middle() -> None:
    line = Line("", (0.0, 1.0), (0.0, 1.0), (2.0, 2.0))
    rows = draw(Curve("x", "", (line,)), width=2, height=2).splitlines()
    # 4 x 8 dots: two rows a column, from the lower left to the upper right; the flat one at the fifth row of dots.
    assert rows[1] == "1 ┤ ⡜  2.5 ┤"
    assert rows[2] == "0 ┤⡜   1.5 ┤⠉⠉"
