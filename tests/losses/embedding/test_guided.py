"""GIST in numbers to be redone on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lossbook import Datum, ModelInput, get_loss
from lossbook.datums.errors import MissingInput

from ..cases import assert_rows_equal, evaluated
from .test_in_batch import ACROSS

#: To the guide each query is at 0.8 to its document and 0.6 to the other's, the queries at 0, and the documents at 0.96.
GUIDE = [[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.6, 0.8]]
E = math.e


def guided(guide: list[list[float]], **inputs: Any) -> list[Datum]:
    return [
        Datum(ModelInput.from_ints([1, 2]), {"guide_embedding": one, **{key: v[i] for key, v in inputs.items()}})
        for i, one in enumerate(guide)
    ]


@pytest.mark.parametrize(
    ("settings", "candidates", "share"),
    [
        pytest.param({}, E + 2, 2 / 6, id="the other document is nearer to the own one than its query is: masked"),
        pytest.param({"contrast_positives": False}, E + 2, 0, id="documents are not compared with documents"),
        pytest.param({"contrast_queries": False}, E + 1, 2 / 4, id="queries are not compared with queries"),
        pytest.param({"margin": 0.22}, E + 1, 4 / 6, id="the bar is at 0.58: the other document at 0.6 is masked"),
        pytest.param({"margin": 0.22, "margin_strategy": "relative"}, E + 2, 2 / 6, id="the bar is at 0.624"),
        pytest.param({"margin": 2.0}, E, 1, id="nothing is left but the document"),
    ],
)
def test_the_guide_masks_what_it_finds_nearer_than_the_document(
    settings: dict[str, Any], candidates: float, share: float
) -> None:
    # The student has both rows at a right angle: the document counts e, every other candidate 1.
    value, _, metrics = evaluated(get_loss("gist", temperature=1.0, **settings), guided(GUIDE), ACROSS)
    assert value == pytest.approx(math.log(candidates) - 1)
    assert metrics["masked_by_guide"] == pytest.approx(share)


def test_what_is_masked_has_no_gradient() -> None:
    # Only the other query and the other document push, both by 1 / (e + 2), in two rows.
    _, gradients, _ = evaluated(get_loss("gist", temperature=1.0), guided(GUIDE), ACROSS)
    share = 1 / (E + 2) / 2
    # Each query is pushed by the other document and by the other query, twice over: its own row and the other's.
    assert_rows_equal(gradients, [[0, 3 * share], [3 * share, 0], [0, share], [share, 0]], 1e-12)


def test_a_text_is_never_its_own_candidate() -> None:
    # The guide finds each document to be the very query, so nothing is nearer than the document: without the text itself
    # the candidates are both documents, the other query and the other document again.
    value, _, _ = evaluated(get_loss("gist", temperature=1.0), guided([[1.0, 0.0], [0.0, 1.0]] * 2), ACROSS)
    assert value == pytest.approx(math.log(E + 3) - 1)


def test_a_document_that_occurs_twice_is_left_out_whatever_the_guide_says() -> None:
    data = guided(GUIDE, document_id=[4, 4, 4, 4])
    loss = get_loss("gist", temperature=1.0, contrast_queries=False)
    value, _, metrics = evaluated(loss, data, ACROSS)
    assert value == pytest.approx(0)
    assert metrics["masked_duplicates"] == 2


def test_the_temperature_is_a_hundredth_unless_given_and_hard_negatives_are_every_query_s() -> None:
    rows, guide = [[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    value, _, metrics = evaluated(get_loss("gist", num_hard_negatives=1), guided(guide), rows)
    assert value == pytest.approx(math.log1p(math.exp(-40)))
    assert metrics["negative_similarity"] == pytest.approx(0.6)


def test_the_guide_may_have_another_width_but_must_be_there() -> None:
    wide = [[*one, 0.0, 0.0] for one in GUIDE]
    assert evaluated(get_loss("gist", temperature=1.0), guided(wide), ACROSS)[0] == pytest.approx(math.log(E + 2) - 1)
    with pytest.raises(MissingInput, match="gist reads 'guide_embedding', which datum 0 of 4 does not carry"):
        get_loss("gist").check([Datum(ModelInput.from_ints([1]))] * 4)
