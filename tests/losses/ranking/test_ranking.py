"""Ranking losses in numbers to be redone on paper, and the labels that they refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import LabelError, LossConfigError, MissingInput

#: log 2, log 3, log 1.5; and how much a gain loses from the first place to the second: 1 - 1 / log2 3.
LN2, LN3, STEP = math.log(2), math.log(3), 1 - 1 / math.log2(3)


def candidates(labels: Sequence[float], groups: Sequence[int] | None = None, **more: Sequence[float]) -> list[Datum]:
    """One datum per candidate, of two tokens of which the last counts; all in one group unless said."""
    groups = [0] * len(labels) if groups is None else groups
    return [
        Datum(
            ModelInput.from_ints([1, 2]),
            {"target_tokens": [1, 2], "weights": [0.0, 1.0], "label": y, "group": g}
            | {key: numbers[i] for key, numbers in more.items()},
        )
        for i, (y, g) in enumerate(zip(labels, groups, strict=True))
    ]


def scored(
    loss: Any, data: Sequence[Datum], scores: Sequence[float]
) -> tuple[list[float], list[float], dict[str, float]]:
    """The values, the gradient of their sum in the scores, and the metrics. The first token's value is never read."""
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    outputs = {"values": [torch.stack([one.new_full((), 9.0), one]) for one in leaf]}
    values = loss.values(data, outputs)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.tolist(), gradient.tolist(), loss(data, {"values": [t.detach() for t in outputs["values"]]})[1]


@pytest.mark.parametrize(
    ("name", "settings", "labels", "scores", "value", "gradient"),
    [
        # σ(log 3) = 3/4
        pytest.param("rank_bce", {}, [1], [LN3], [-math.log(0.75)], [-0.25], id="rank_bce: relevant, believed to 3/4"),
        pytest.param("rank_bce", {}, [0], [LN3], [math.log(4)], [0.75], id="rank_bce: irrelevant, believed to 3/4"),
        pytest.param(
            "rank_bce", {"positive_weight": 2.0}, [1, 0], [LN3, 0.0], [-2 * math.log(0.75), LN2], [-0.5, 0.5],
            id="rank_bce: only positives are weighed",
        ),
        pytest.param("rank_mse", {}, [2], [5.0], [9.0], [6.0], id="rank_mse: 3 too high"),
        # σ(0) = 1/2, its slope 1/4: 2 · (1/2 - 1) · 1/4
        pytest.param("rank_mse", {"activation": "sigmoid"}, [1], [0.0], [0.25], [-0.25], id="rank_mse of σ"),
        # shares 2/3 and 1/3
        pytest.param("rank_softmax", {}, [1, 0], [LN2, 0.0], [math.log(1.5)], [-1 / 3, 1 / 3], id="rank_softmax"),
        # shares 4/5 and 1/5; the gradient is twice as steep
        pytest.param("rank_softmax", {"scale": 2.0}, [1, 0], [LN2, 0.0], [math.log(1.25)], [-0.4, 0.4], id="scale 2"),
        # two positives of three equal scores: -log 1/3, gradient 1/3 - 1/2 and 1/3
        pytest.param("rank_softmax", {}, [1, 1, 0], [0.0] * 3, [LN3], [-1 / 6, -1 / 6, 1 / 3], id="two positives share"),
        pytest.param("rank_softmax", {}, [0, 0], [1.0, 2.0], [0.0], [0, 0], id="no positive, nothing to learn"),
        pytest.param("rank_mnrl", {}, [1, 0], [0.0, 0.0], [LN2], [-1.25, 1.25], id="rank_mnrl: 10 · 1/4 · 1/2"),
        # each positive against the one negative: log(1 + 1/2) and log(1 + 1), halved
        pytest.param(
            "rank_mnrl", {"activation": "none", "scale": 1.0}, [1, 1, 0], [LN2, 0.0, 0.0],
            [(math.log(1.5) + LN2) / 2], [-1 / 6, -1 / 4, 5 / 12], id="positives are no negatives of each other",
        ),
        pytest.param("rank_mnrl", {}, [1], [3.0], [0.0], [0], id="a positive without negatives"),
        # wanted 3/4, 1/4; shares 2/3, 1/3
        pytest.param(
            "listnet", {}, [LN3, 0], [LN2, 0.0], [0.75 * math.log(1.5) + 0.25 * LN3], [2 / 3 - 3 / 4, 1 / 12], id="listnet"
        ),
        pytest.param("list_mle", {}, [3, 2, 1], [0.0] * 3, [LN3 + LN2], [-2 / 3, -1 / 6, 5 / 6], id="list_mle: log 3!"),
        # the best first from three, then each of the two others from these two
        pytest.param("list_mle", {}, [1, 0, 0], [0.0] * 3, [LN3 + 2 * LN2], [-2 / 3, 1 / 3, 1 / 3], id="equal labels"),
        # places weigh 3, 1, 0 of 4
        pytest.param(
            "plist_mle", {}, [3, 2, 1], [0.0] * 3, [0.75 * LN3 + 0.25 * LN2], [-0.5, 0.125, 0.375], id="plist_mle"
        ),
        # the two last places share 1: 3, 1/2, 1/2 of 4
        pytest.param(
            "plist_mle", {}, [1, 0, 0], [0.0] * 3, [0.75 * LN3 + 0.25 * LN2], [-0.5, 0.25, 0.25], id="places are shared"
        ),
        pytest.param("plist_mle", {}, [1], [2.0], [0.0], [0], id="a list of one has one order"),
        # ranks 1 and 2, smooth ranks 1.5; σ' = 1/4, so d q / ds = ∓1/4: 2 (1/2) / log2(1 + r) each
        pytest.param(
            "adr_mse", {}, [1, 0], [0.0, 0.0], [0.25, 0.25 * (1 - STEP)],
            [-0.25 * (2 - STEP), 0.25 * (2 - STEP)], id="adr_mse",
        ),
        pytest.param("ranknet", {}, [2, 1, 0], [0.0] * 3, [3.0], [-1 / LN2, 0, 1 / LN2], id="ranknet: three bits"),
        pytest.param("ranknet", {"log_base": "natural"}, [1, 0], [0.0, LN3], [math.log(4)], [-0.75, 0.75], id="in nats"),
        pytest.param("ranknet", {"sigma": 2.0}, [1, 0], [0.0, 0.0], [1.0], [-1 / LN2, 1 / LN2], id="sigma 2"),
        pytest.param("ranknet", {}, [1, 1], [3.0, 0.0], [0.0], [0, 0], id="equal labels are not compared"),
        # the relevant one comes second by log 3: the pair costs log2(1 + 3) = 2, and exchanging them is worth 1 - 1 / log2 3
        pytest.param("lambda_loss", {"weighting": "none"}, [1, 0], [0.0, LN3], [2.0], None, id="lambda: none"),
        pytest.param("lambda_loss", {"weighting": "lambda_rank"}, [1, 0], [0.0, LN3], [2 * STEP], None, id="lambda_rank"),
        pytest.param("lambda_loss", {"weighting": "ndcg2"}, [1, 0], [0.0, LN3], [2 * STEP], None, id="lambda: ndcg2"),
        pytest.param("lambda_loss", {}, [1, 0], [0.0, LN3], [22 * STEP], None, id="lambda: 10 times one and the other"),
        # gain 1 at rank 2: with itself 1 bit, with the other 2
        pytest.param(
            "lambda_loss", {"weighting": "ndcg1"}, [1, 0], [0.0, LN3], [3 * (1 - STEP)], None, id="lambda: ndcg1"
        ),
        pytest.param("lambda_loss", {}, [0, 0], [0.0, LN3], [0.0], [0, 0], id="lambda: no gain to be had"),
    ],
)  # fmt: skip
def test_a_list_costs(
    name: str,
    settings: dict[str, Any],
    labels: list[float],
    scores: list[float],
    value: list[float],
    gradient: list[float] | None,
) -> None:
    values, slopes, _ = scored(get_loss(name, **settings), candidates(labels), scores)
    assert values == pytest.approx(value)
    assert gradient is None or slopes == pytest.approx(gradient)


def test_a_margin_is_the_teachers_of_every_pair() -> None:
    # the positive leads by 2 and by 4, the teacher's by 1 and by 1.5: squares 1 and 6.25
    data = candidates([1.5, 0.5, 0.0], is_positive=[1, 0, 0])
    values, slopes, metrics = scored(get_loss("rank_margin_mse"), data, [3.0, 1.0, -1.0])
    assert values == pytest.approx([3.625])
    assert slopes == pytest.approx([3.5, -1.0, -2.5])
    assert (metrics["margin"], metrics["teacher_margin"]) == pytest.approx((3.0, 1.25))
    assert metrics["without_pairs"] == 0
    lone, none, counted = scored(get_loss("rank_margin_mse"), candidates([1.0, 2.0], is_positive=[1, 1]), [3.0, 1.0])
    assert (lone, none, counted["without_pairs"]) == ([0.0], [0.0, 0.0], 1)


def test_margins_are_means_over_each_side() -> None:
    # positives at 4 and 1, a negative at 0.5; the teacher's at 3 and 2, and at 0
    data = candidates([3.0, 2.0, 0.0], is_positive=[1, 1, 0])
    metrics = scored(get_loss("rank_margin_mse"), data, [4.0, 1.0, 0.5])[2]
    assert (metrics["margin"], metrics["teacher_margin"]) == pytest.approx((2.0, 2.5))


def test_the_side_of_a_score_is_that_of_its_label() -> None:
    # labels above 1/2 are relevant: right are 2.0, -1.0 and 0.5; wrong are 1.25, whose label is not above 1/2, and 0.0, which is on neither side
    data = candidates([1.0, 0.0, 0.75, 0.5, 1.0], range(5))
    metrics = scored(get_loss("rank_bce"), data, [2.0, -1.0, 0.5, 1.25, 0.0])[2]
    assert metrics["right_side"] == pytest.approx(3 / 5)
    assert metrics["positive_score"] == pytest.approx(2.5 / 3)
    assert metrics["negative_score"] == pytest.approx((-1.0 + 1.25) / 2)


def test_the_rank_error_is_how_far_smooth_ranks_are_off() -> None:
    # smooth ranks 0.5 + σ(0) + σ(-ln 3) = 1.25 and 0.5 + σ(0) + σ(ln 3) = 1.75, for the ranks 2 and 1
    metrics = scored(get_loss("adr_mse", alpha=1.0), candidates([0, 1]), [LN3, 0.0])[2]
    assert metrics["rank_error"] == pytest.approx(0.75)


def test_the_pairs_that_count_are_of_the_first_k_places() -> None:
    # scores put the candidates in the order 2, 0, 1: with k = 1 only pairs with candidate 2 count, 2 of the 3
    data, scores = candidates([2, 1, 0]), [1.0, 0.0, 3.0]
    pairs = {k: scored(get_loss("ranknet", k=k), data, scores)[2]["pairs"] for k in (None, 1, 2, 3)}
    assert pairs == {None: 3, 1: 2, 2: 3, 3: 3}
    # and the gain is a share of the best first place, 3, in place of 3 + 1 / log2 3
    whole, first = (
        scored(get_loss("lambda_loss", weighting="lambda_rank", k=k), candidates([2, 1]), [0.0, LN3])[0]
        for k in (None, 1)
    )
    assert first[0] / whole[0] == pytest.approx((3 + 1 - STEP) / 3)


def test_equal_scores_share_their_ranks() -> None:
    # ranks 1.5 and 1.5 with one rank between them: nothing is won by an exchange, and ndcg2 sees neighbours
    data = candidates([1, 0])
    assert scored(get_loss("lambda_loss", weighting="lambda_rank"), data, [0.0, 0.0])[0] == [0]
    assert scored(get_loss("lambda_loss", weighting="ndcg2"), data, [0.0, 0.0])[0] == pytest.approx([STEP])


def test_metrics_take_the_worse_of_two_equal_candidates_first() -> None:
    # lists: right, wrong, undecided, without a relevant candidate, of one
    data = candidates([1, 0, 1, 0, 1, 0, 0, 0, 2], [0, 0, 1, 1, 2, 2, 3, 3, 4])
    scores = [1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 5.0]
    metrics = scored(get_loss("ranknet"), data, scores)[2]
    assert metrics["ndcg"] == pytest.approx((1 + (1 - STEP) + (1 - STEP) + 1) / 4)
    assert metrics["top_1"] == pytest.approx(1 / 3)
    # deviations ½, 1, 0, ½, 0
    assert metrics["score_deviation"] == pytest.approx(2 / 5)


def test_shorter_lists_beside_longer_ones_are_ranked_by_their_own_scores() -> None:
    # all scores below 0, where what fills up a list would lie
    data = candidates([1, 0, 2, 1, 0], [0, 0, 1, 1, 1])
    for scores in ([-1.0, -2.0, -1.0, -2.0, -3.0], [3.0, 2.0, 3.0, 2.0, 1.0]):
        metrics = scored(get_loss("lambda_loss"), data, scores)[2]
        assert (metrics["ndcg"], metrics["top_1"]) == (1, 1)


def test_a_negative_label_has_no_gain_but_an_order() -> None:
    data = candidates([-1, -3])
    assert scored(get_loss("ranknet"), data, [0.0, 0.0])[0] == [1]
    assert scored(get_loss("lambda_loss", weighting="lambda_rank"), data, [0.0, LN3])[0] == [0]
    mixed = candidates([1, -1])
    assert scored(get_loss("lambda_loss", weighting="lambda_rank"), mixed, [0.0, LN3])[0] == pytest.approx([2 * STEP])
    assert scored(get_loss("ranknet"), mixed, [1.0, 0.0])[2]["ndcg"] == 1


@pytest.mark.parametrize("name", ["rank_softmax", "rank_mnrl"])
def test_lists_without_a_positive_are_counted(name: str) -> None:
    data = candidates([1, 0, 0, 0, 1, 1, 0, 1], [0, 0, 1, 1, 2, 2, 3, 4])
    assert scored(get_loss(name), data, [0.0] * 8)[2]["without_positive"] == 2


def test_shares_below_one_are_shares_of_their_sum() -> None:
    whole, parts = (scored(get_loss("rank_softmax"), candidates(labels), [LN2, 0.0]) for labels in ([1, 0], [0.25, 0]))
    assert parts[:2] == whole[:2]
    assert parts[2]["ndcg"] == whole[2]["ndcg"] == 1


def test_a_lists_gain_is_a_share_of_the_best_it_could_be() -> None:
    # half a grade gains √2 - 1, which is all there is to gain, as a whole grade's 1 is
    whole, half = (scored(get_loss("lambda_loss"), candidates([y, 0]), [0.0, LN3])[0] for y in (1.0, 0.5))
    assert half == pytest.approx(whole)


def test_equals_in_score_and_label_take_places_of_their_own() -> None:
    # the irrelevant one of three equal scores first, then the two relevant ones in places 2 and 3
    metrics = scored(get_loss("ranknet"), candidates([1, 0, 1]), [0.0] * 3)[2]
    assert metrics["ndcg"] == pytest.approx((1 - STEP + 0.5) / (2 - STEP))
    assert metrics["top_1"] == 0


def test_lists_may_lie_apart_and_be_of_any_length() -> None:
    together = scored(get_loss("listnet"), candidates([1, 0, 2, 0, 1], [0, 0, 1, 1, 1]), [0.5, 0.25, 1.0, 0.0, -1.0])
    apart = scored(get_loss("listnet"), candidates([2, 1, 0, 0, 1], [7, -3, 7, -3, 7]), [1.0, 0.5, 0.0, 0.25, -1.0])
    assert apart[0] == together[0][::-1], "groups are counted by their first datum"
    assert apart[1] == [together[1][i] for i in (2, 0, 3, 1, 4)]


@pytest.mark.parametrize(
    ("name", "labels", "says"),
    [
        ("rank_bce", [0.0, 2.0], "a label is 2: it is a probability"),
        ("rank_bce", [-0.5, 1.0], "a label is -0.5: it is a probability"),
        ("rank_softmax", [-1.0, 1.0], "a label is -1: a share of a list is not negative"),
        ("rank_mnrl", [0.5, 1.0], "must be 0 or 1"),
        ("lambda_loss", [61.0, 1.0], "a label is 61: a gain is 2 to the label"),
    ],
)
def test_labels_that_a_loss_cannot_use_are_refused(name: str, labels: list[float], says: str) -> None:
    with pytest.raises(LabelError, match=says):
        get_loss(name).check(candidates(labels))


def test_the_highest_grade_is_60() -> None:
    data = candidates([60.0, 59.0])
    values, _, metrics = scored(get_loss("lambda_loss", weighting="lambda_rank"), data, [0.0, 0.0])
    assert values == [0], "equal scores share their ranks"
    # gains 2^60 and half of it, the worse first
    assert metrics["ndcg"] == pytest.approx((0.5 + (1 - STEP)) / (1 + 0.5 * (1 - STEP)))


def test_a_candidate_without_its_group_is_refused() -> None:
    lone = Datum(ModelInput.from_ints([1]), {"target_tokens": [1], "weights": [1.0], "label": 1.0})
    with pytest.raises(MissingInput, match="reads 'group', which datum 0 of 1 does not carry"):
        get_loss("listnet").check([lone])
    get_loss("rank_bce").check([lone])


def test_a_cutoff_is_a_count() -> None:
    with pytest.raises(LossConfigError, match="k=0"):
        get_loss("ranknet", k=0)
