"""Directions, partitions and hardness of multiple_negatives_ranking, in numbers to be redone on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import LossConfigError

from ..cases import assert_rows_equal, evaluated
from .test_in_batch import ACROSS, documents, texts

E = math.e
#: Two queries, (1, 0) and (0, 1), and their documents: cosines 1 and 0.6 to the first query, 0 and 0.8 to the second.
SLANTED = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8]]


def ranking(**settings: Any) -> Any:
    return get_loss("multiple_negatives_ranking", scale=1.0, **settings)


@pytest.mark.parametrize(
    ("directions", "candidates"),
    [
        ({}, E + 1),
        ({"query_to_query": True}, E + 2),
        ({"document_to_query": True}, 2 * E + 2),
        ({"document_to_document": True}, E + 2),
        ({"query_to_query": True, "document_to_query": True, "document_to_document": True}, 2 * E + 4),
    ],
)
def test_each_direction_adds_its_candidates_to_one_softmax(directions: dict[str, bool], candidates: float) -> None:
    # Two rows at a right angle: whatever agrees counts e, whatever does not counts 1.
    value, _, _ = evaluated(ranking(**directions), texts(4), ACROSS)
    assert value == pytest.approx(math.log(candidates) - 1)


def test_a_softmax_per_direction_is_the_mean_of_both() -> None:
    # From queries: ln(e + e^0.6) - 1 and ln(1 + e^0.8) - 0.8; from documents: ln(e + 1) and ln(e^0.6 + e^0.8) for the same rows.
    value, _, _ = evaluated(ranking(document_to_query=True, partition="per_direction"), texts(4), SLANTED)
    first = (math.log(E + math.exp(0.6)) + math.log(E + 1)) / 2 - 1
    second = (math.log(1 + math.exp(0.8)) + math.log(math.exp(0.6) + math.exp(0.8))) / 2 - 0.8
    assert value == pytest.approx((first + second) / 2)


def test_documents_of_the_own_row_are_no_candidates_of_their_document() -> None:
    # One row with a hard negative that is the document itself: there is no other row to compare it with.
    rows = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    loss = ranking(num_hard_negatives=1, document_to_document=True, query_to_query=True)
    assert evaluated(loss, texts(3), rows)[0] == pytest.approx(math.log(2)), "the document and its hard negative"


def test_whatever_has_the_document_s_id_is_left_out_of_every_direction() -> None:
    loss = ranking(query_to_query=True, document_to_query=True, document_to_document=True)
    value, _, metrics = evaluated(loss, documents(7, 7, 7, 7), ACROSS)
    assert value == pytest.approx(math.log(2 * E) - 1), "the document, and its own query"
    assert metrics["masked_duplicates"] == 2


def test_no_texts_are_no_loss() -> None:
    for settings in ({"hardness_strength": 2.0}, {"document_to_document": True}):
        assert float(ranking(**settings).terms([], {"embeddings": []})[0]) == 0


#: Two queries, their documents, and a hard negative of each.
TWO_ROWS = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("settings", "rows", "value"),
    [
        pytest.param(
            {"hardness_strength": 2.0},
            SLANTED,
            (math.log(E + math.exp(0.6 + 1.2)) - 1 + math.log(1 + math.exp(0.8)) - 0.8) / 2,
            id="in-batch negatives: the one at 0.6 weighs 1.2 nats more, the one at 0 as it did",
        ),
        pytest.param(
            {"hardness_strength": 2.0, "num_hard_negatives": 1},
            [[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]],
            math.log(E + math.exp(0.6)) - 1,
            id="in-batch negatives leave a query's own hard negative alone",
        ),
        pytest.param(
            {"hardness": "hard_negatives", "hardness_strength": 2.0, "num_hard_negatives": 1},
            [[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]],
            math.log(E + math.exp(0.6 + 1.2)) - 1,
            id="hard negatives",
        ),
        # cosines 1, 0.6, 0.8, 0 and 0, 0.8, 0.6, 1 to both documents and then to both hard negatives
        pytest.param(
            {"hardness": "hard_negatives", "hardness_strength": 2.0, "num_hard_negatives": 1},
            TWO_ROWS,
            (
                math.log(E + math.exp(0.6) + math.exp(2.4) + 1)
                - 1
                + math.log(1 + math.exp(0.8) + math.exp(0.6) + math.exp(3.0))
                - 0.8
            )
            / 2,
            id="each row's own hard negative",
        ),
        pytest.param(
            {"hardness_strength": 2.0, "num_hard_negatives": 1},
            TWO_ROWS,
            (
                math.log(E + math.exp(1.8) + math.exp(0.8) + 1)
                - 1
                + math.log(1 + math.exp(0.8) + math.exp(1.8) + E)
                - 0.8
            )
            / 2,
            id="in-batch negatives: another row's document and hard negative",
        ),
        pytest.param(
            {"hardness": "all_negatives", "hardness_strength": 2.0, "num_hard_negatives": 1},
            TWO_ROWS,
            (
                math.log(E + math.exp(1.8) + math.exp(2.4) + 1)
                - 1
                + math.log(1 + math.exp(0.8) + math.exp(1.8) + math.exp(3.0))
                - 0.8
            )
            / 2,
            id="all negatives, hard ones of both rows among them; never the document",
        ),
    ],
)
def test_hardness_adds_to_the_logits_of_the_negatives_it_names(
    settings: dict[str, Any], rows: list[list[float]], value: float
) -> None:
    assert evaluated(ranking(**settings), texts(len(rows)), rows)[0] == pytest.approx(value)


def test_hardness_has_no_gradient_of_its_own() -> None:
    # The second document, (0.6, 0.8), is pulled by its query and pushed by the first, each along the circle, over two rows.
    _, gradients, _ = evaluated(ranking(hardness_strength=2.0), texts(4), SLANTED)
    pushed = math.exp(1.8) / (E + math.exp(1.8))
    pulled = 1 / (1 + math.exp(0.8))
    expected = [pushed * 0.64 + pulled * 0.48, -pushed * 0.48 - pulled * 0.36]
    assert_rows_equal(gradients[3:], [[one / 2 for one in expected]], 1e-12)


def test_dot_products_keep_lengths() -> None:
    rows = [[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]
    value, gradients, metrics = evaluated(ranking(similarity="dot", num_hard_negatives=1), texts(3), rows)
    assert value == pytest.approx(math.log(math.exp(2) + 1) - 2)
    share = 1 / (math.exp(2) + 1)
    assert_rows_equal(gradients, [[-share, 3 * share], [-2 * share, 0], [2 * share, 0]], 1e-12)
    assert metrics["positive_similarity"] == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hardness": "all_negatives"}, "hardness='all_negatives' does nothing at hardness_strength 0"),
        ({"partition": "per_direction"}, "needs a second direction: set document_to_query=True"),
        ({"partition": "per_direction", "query_to_query": True}, "have no right answer among their candidates"),
        (
            {"partition": "per_direction", "document_to_query": True, "document_to_document": True},
            "have no right answer among their candidates",
        ),
    ],
)
def test_settings_that_cannot_go_together_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(LossConfigError, match=words):
        ranking(**settings)


def test_hardness_of_hard_negatives_needs_some() -> None:
    loss = ranking(hardness="hard_negatives", hardness_strength=5.0)
    with pytest.raises(LossConfigError, match="num_hard_negatives is 0"):
        loss.check([Datum(ModelInput.from_ints([1]))] * 4)


def test_a_softmax_per_direction_is_of_each_row_by_itself() -> None:
    # Three rows at right angles, two directions: from a query and from its document, each against three.
    across = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]] * 2
    value, _, _ = evaluated(ranking(document_to_query=True, partition="per_direction"), texts(6), across)
    assert value == pytest.approx((math.log(E + 2) + math.log(E + 2)) / 2 - 1)
