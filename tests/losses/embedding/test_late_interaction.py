"""MaxSim in numbers to be redone on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import AlignmentError, MissingInput

from ..cases import assert_rows_equal, evaluated_by_name

RIGHT, UP, SLANT = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]
#: A query of two tokens, its document of two, and one that has only the first of its words.
QUERY, DOCUMENT, OTHER = [RIGHT, UP], [UP, RIGHT], [RIGHT, SLANT, RIGHT]


def texts(*rows: list[list[float]], **inputs: Any) -> list[Datum]:
    return [
        Datum(
            ModelInput.from_ints([1] * len(row)),
            {"weights": [1.0] * len(row), **{key: values[i] for key, values in inputs.items()}},
        )
        for i, row in enumerate(rows)
    ]


def search(rows: list[list[list[float]]], data: list[Datum] | None = None, **settings: Any) -> Any:
    loss = get_loss("maxsim", **settings)
    return evaluated_by_name(loss, texts(*rows) if data is None else data, {"token_embeddings": rows})


def test_each_token_of_a_query_finds_its_nearest_in_a_document() -> None:
    # The document has both words, 1 + 1; the hard negative the first one, 1 + 0.8.
    value, gradients, metrics = search([QUERY, DOCUMENT, OTHER], num_hard_negatives=1)
    assert value == pytest.approx(math.log(math.exp(2) + math.exp(1.8)) - 2)
    share = 1 / (1 + math.exp(0.2))
    # Only UP of the query and SLANT of the negative are not aligned: each is pushed along the circle by that share.
    rows = gradients["token_embeddings"]
    assert_rows_equal(rows[:2], [[[0, 0], [0.6 * share, 0]], [[0, 0], [0, 0]]], 1e-12)
    assert_rows_equal(rows[2:], [[[0, 0], [-0.48 * share, 0.36 * share], [0, 0]]], 1e-12)
    assert metrics == pytest.approx(
        {"masked_duplicates": 0, "in_batch_recall_at_1": 1, "positive_similarity": 2, "negative_similarity": 1.8}
    )


def test_a_mean_over_the_query_is_within_one_and_scale_multiplies_scores() -> None:
    value, _, metrics = search([QUERY, DOCUMENT, OTHER], num_hard_negatives=1, mean_over_query=True, scale=10.0)
    assert value == pytest.approx(math.log(math.exp(10) + math.exp(9)) - 10)
    assert metrics["positive_similarity"] == pytest.approx(1)


def test_lengths_of_vectors_do_not_count() -> None:
    long = [[[3 * x for x in token] for token in row] for row in (QUERY, DOCUMENT, OTHER)]
    assert search(long, num_hard_negatives=1)[0] == pytest.approx(math.log(math.exp(2) + math.exp(1.8)) - 2)


def test_tokens_of_weight_zero_are_left_out_and_others_weigh_a_query_s_terms() -> None:
    data = texts(QUERY, DOCUMENT, OTHER)
    masked = [
        Datum(one.model_input, {"weights": weights})
        for one, weights in zip(data, ([1.0, 0.5], [0.0, 1.0], [2.0, 0.0, 0.0]), strict=True)
    ]
    # The document has RIGHT left, and so has the negative: both score 1 + 0.5 x 0.
    value, _, metrics = search([QUERY, DOCUMENT, OTHER], masked, num_hard_negatives=1)
    assert value == pytest.approx(math.log(2))
    assert metrics["positive_similarity"] == metrics["negative_similarity"] == 1
    halved, _, _ = search([QUERY, DOCUMENT, OTHER], [masked[0], *data[1:]], num_hard_negatives=1)
    assert halved == pytest.approx(math.log(math.exp(1.5) + math.exp(1.4)) - 1.5)


def test_documents_of_other_rows_are_negatives_but_for_duplicates() -> None:
    rows = [QUERY, [RIGHT], DOCUMENT, OTHER]
    value, _, _ = search(rows)
    assert value == pytest.approx((math.log(math.exp(2) + math.exp(1.8)) - 2 + math.log(2)) / 2)
    value, _, metrics = search(rows, texts(*rows, document_id=[3, 3, 3, 3]))
    assert value == pytest.approx(0)
    assert metrics["masked_duplicates"] == 2


def test_a_text_without_a_token_is_refused_since_places_say_what_datums_are() -> None:
    data = texts(QUERY, [RIGHT], DOCUMENT, OTHER)
    data[1] = Datum(data[1].model_input, {"weights": [0.0]})
    with pytest.raises(AlignmentError, match="maxsim knows datums by their places, and datum 1 of 4 has no position"):
        get_loss("maxsim").check(data)
    with pytest.raises(AlignmentError, match="and datum 1 of 2 has no position of non-zero weight"):
        get_loss("maxsim").on_tensors(token_embeddings=torch.ones(2, 1, 2), mask=[[1.0], [0.0]])


def test_a_mean_needs_weights() -> None:
    with pytest.raises(MissingInput, match="maxsim with reduction 'mean' reads 'weights'"):
        get_loss("maxsim").check([Datum(ModelInput.from_ints([1, 2]))] * 2)
