"""What is particular to embedding losses: candidates, directions, temperature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import EmptyLossError, ShapeError

from ..cases import assert_rows_equal, evaluated

#: Two queries and their documents, the second query nearer to the first document.
PLANE = [[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]]


def texts(count: int) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1, 2]))] * count


def test_a_query_alone_with_its_document_has_nothing_to_tell_apart() -> None:
    value, gradients, metrics = evaluated(get_loss("info_nce"), texts(2), PLANE[:2])
    assert value == 0
    assert_rows_equal(gradients, [[0, 0], [0, 0]], 0)
    assert metrics["in_batch_recall_at_1"] == 1


def test_collapsed_embeddings_cost_the_logarithm_of_the_number_of_pairs() -> None:
    value, _, _ = evaluated(get_loss("info_nce"), texts(8), [[0.6, 0.8]] * 8)
    assert value == pytest.approx(math.log(4))


def test_extra_negatives_serve_the_queries_only() -> None:
    loss = get_loss("info_nce", temperature=1.0, num_extra_negatives=1)
    _, _, metrics = evaluated(loss, texts(5), [*PLANE, [1.0, 0.0]])
    # The third candidate: similarity 1 with query 1, .6 with query 2.
    first = math.log(math.exp(0.8) + 1 + math.e) - 0.8
    second = math.log(math.exp(0.96) + math.exp(0.8) + math.exp(0.6)) - 0.8
    assert metrics["query_to_document"] == pytest.approx((first + second) / 2)
    _, _, without = evaluated(get_loss("info_nce", temperature=1.0), texts(4), PLANE)
    assert metrics["document_to_query"] == without["document_to_query"]


@given(scale=st.floats(0.01, 100), which=st.integers(0, 3))
@settings(max_examples=30)
def test_the_length_of_a_vector_does_not_matter_and_its_gradient_turns_it_only(scale: float, which: int) -> None:
    stretched = [list(row) for row in PLANE]
    stretched[which] = [scale * x for x in stretched[which]]
    loss = get_loss("info_nce", temperature=0.5)
    value, gradients, _ = evaluated(loss, texts(4), stretched)
    assert value == pytest.approx(evaluated(loss, texts(4), PLANE)[0])
    for row, gradient in zip(stretched, gradients, strict=True):
        assert float(torch.tensor(row, dtype=torch.float64) @ gradient) == pytest.approx(0, abs=1e-12)


def test_a_low_temperature_tends_to_the_hardest_negative() -> None:
    # Query 2 prefers the wrong document by .16, document 1 the wrong query by .16; the other two are found.
    value, _, _ = evaluated(get_loss("info_nce", temperature=0.001), texts(4), PLANE)
    assert value == pytest.approx((160 + 160) / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_zero_vector_is_finite_in_value_and_gradient(dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    value, _ = get_loss("info_nce")(texts(4), list(rows))
    value.backward()
    assert torch.isfinite(value)
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()


@given(order=st.permutations(range(3)))
@settings(max_examples=6)
def test_the_order_of_the_pairs_does_not_matter(order: list[int]) -> None:
    rows = [[1.0, 0.2], [0.3, 0.8], [-0.5, 0.4], [0.9, 0.1], [0.1, 0.7], [-0.2, 0.9]]
    loss = get_loss("info_nce", temperature=0.3)
    value, gradients, _ = evaluated(loss, texts(6), rows)
    shuffled = [*order, *(3 + i for i in order)]
    again, moved, _ = evaluated(loss, texts(6), [rows[i] for i in shuffled])
    assert again == pytest.approx(value, abs=1e-12)
    assert_rows_equal(moved, [gradients[i] for i in shuffled], 1e-12)


@pytest.mark.parametrize(
    ("count", "extra"), [(3, 0), (4, 1), (1, 2)], ids=["odd", "odd without the extras", "fewer than the extras"]
)
def test_a_count_that_cannot_be_pairs_is_refused_before_any_forward(count: int, extra: int) -> None:
    with pytest.raises(ShapeError) as caught:
        get_loss("info_nce", num_extra_negatives=extra).check(texts(count))
    assert str(caught.value) == (
        f"info_nce takes B queries, their B documents and {extra} extra negatives, but there are {count} datums. "
        "Set num_extra_negatives to the number of documents without a query"
    )


def test_only_extra_negatives_are_nothing_to_train_on() -> None:
    with pytest.raises(EmptyLossError):
        get_loss("info_nce", num_extra_negatives=2).check(texts(2))


def test_embeddings_of_different_widths_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"^embeddings differ in shape: \[\[2\], \[3\]\]$"):
        get_loss("info_nce")(texts(2), [torch.ones(2), torch.ones(3)])


def documents(*ids: int) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1, 2]), {"document_id": i}) for i in ids]


def test_the_twin_of_a_document_is_a_false_negative_unless_ids_tell() -> None:
    # Two queries with one and the same document: without ids each is half wrong whatever it does.
    rows = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.6, 0.8]]
    loss = get_loss("info_nce", temperature=1.0)
    _, _, metrics = evaluated(loss, texts(4), rows)
    assert metrics["query_to_document"] == pytest.approx(math.log(2))
    value, gradients, metrics = evaluated(loss, documents(7, 7, 7, 7), rows)
    assert value == 0
    assert_rows_equal(gradients, [[0, 0]] * 4, 0)
    assert metrics["masked_duplicates"] == 2
    assert metrics["in_batch_recall_at_1"] == 1


def test_an_extra_negative_that_is_the_document_of_one_query_stays_a_negative_of_the_other() -> None:
    rows = [*PLANE, [0.8, 0.6]]  # the extra is document 1
    loss = get_loss("info_nce", temperature=1.0, num_extra_negatives=1)
    _, _, metrics = evaluated(loss, documents(1, 2, 1, 2, 1), rows)
    first = math.log(math.exp(0.8) + 1) - 0.8
    second = math.log(2 * math.exp(0.96) + math.exp(0.8)) - 0.8
    assert metrics["query_to_document"] == pytest.approx((first + second) / 2)
    assert metrics["masked_duplicates"] == 1
    assert metrics["negative_similarity"] == pytest.approx((0 + 0.96 + 0.96) / 3)


def test_ids_that_float32_cannot_tell_apart_are_told_apart() -> None:
    ids = (2**24, 2**24 + 1)
    value, _, metrics = evaluated(get_loss("info_nce", temperature=1.0), documents(*ids, *ids), PLANE)
    assert metrics["masked_duplicates"] == 0
    assert value == evaluated(get_loss("info_nce", temperature=1.0), texts(4), PLANE)[0]


def test_collapsed_embeddings_show_in_the_metrics() -> None:
    _, _, metrics = evaluated(get_loss("info_nce"), texts(8), [[0.6, 0.8]] * 8)
    assert metrics["in_batch_recall_at_1"] == 0, "a tie finds nothing"
    assert metrics["positive_similarity"] == pytest.approx(1)
    assert metrics["negative_similarity"] == pytest.approx(1)


def test_it_is_known_as_contrastive_too() -> None:
    assert get_loss("contrastive").name == "info_nce"
