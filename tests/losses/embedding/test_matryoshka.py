"""Any embedding loss at several lengths: its sum, its metrics, what it keeps of the loss, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lossbook import Datum, ModelInput, get_loss, matryoshka
from lossbook.datums.errors import LossbookError, LossConfigError, LossContractError, ShapeError
from lossbook.losses.testing import check_loss, parametrize_with_checks
from lossbook.losses.testing.reproduce import loss_source

from ..cases import assert_rows_equal, evaluated, loss_of

ROWS = [[1.0, 0.0, 0.5], [0.6, 0.8, -1.0], [0.8, 0.6, 0.25], [-0.5, 1.0, 2.0]]


def texts(count: int, **inputs: Any) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1, 2]), inputs)] * count


def test_it_is_the_weighted_sum_of_the_loss_at_each_length() -> None:
    loss = matryoshka("info_nce", dims=(3, 2, 1), weights=(1, 0.5, 2), temperature=0.5)
    base = get_loss("info_nce", temperature=0.5)
    value, gradients, metrics = evaluated(loss, texts(4), ROWS)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    total = 0.0
    for length, weight in ((3, 1), (2, 0.5), (1, 2)):
        own, slopes, own_metrics = evaluated(base, texts(4), [row[:length] for row in ROWS])
        total += weight * own
        expected[:, :length] += weight * torch.stack(slopes)
        assert metrics[f"dim_{length}/loss"] == pytest.approx(own)
        assert {key: metrics[f"dim_{length}/{key}"] for key in own_metrics} == pytest.approx(own_metrics)
    assert value == pytest.approx(total)
    assert_rows_equal(gradients, list(expected), 1e-12)


def test_a_squared_length_in_one_and_in_two_coordinates() -> None:
    # 3² + (3² + 4²) = 34, and 2 * 3² + .5 * (3² + 4²) = 30.5.
    def squared(embeddings):
        return embeddings.square().sum(1)

    base = loss_of(squared, per="datum")
    value, gradients, _ = evaluated(matryoshka(base, dims=(1, 2)), texts(1), [[3.0, 4.0]])
    assert value == 34
    assert_rows_equal(gradients, [[12, 8]], 0)
    value, gradients, metrics = evaluated(matryoshka(base, dims=(1, 2), weights=(2, 0.5)), texts(1), [[3.0, 4.0]])
    assert value == 30.5
    assert_rows_equal(gradients, [[15, 4]], 0)
    assert metrics == {"dim_1/loss": 9, "dim_2/loss": 25}


def test_what_belongs_together_and_the_settings_are_those_of_the_loss() -> None:
    pairs = matryoshka("contrastive_pairs", dims=(2,), margin=0.75)
    assert (pairs.couples, pairs.reduction, pairs.settings["margin"]) == ("pair", "pair-mean", 0.75)
    assert get_loss(pairs, distance="euclidean").settings == {"margin": 0.75, "distance": "euclidean"}
    assert matryoshka(get_loss("cosent", scale=5.0), dims=(2,)).settings == {"scale": 5.0}
    assert matryoshka("triplet", dims=(2,), reduction="sum").reduction == "sum"
    with pytest.raises(ShapeError, match=r"^info_nce takes B queries, their B documents"):
        matryoshka("info_nce", dims=(2,)).check(texts(3))
    with pytest.raises(LossConfigError, match="has no setting 'temprature'"):
        matryoshka("info_nce", dims=(2,), temprature=0.1)


def test_a_mixture_may_hold_it_beside_its_own_loss() -> None:
    mixture = matryoshka("info_nce", dims=(2, 3)) + 0.5 * get_loss("info_nce")
    _, metrics = mixture(texts(4), [torch.tensor(row) for row in ROWS])
    assert {"matryoshka(info_nce,2+3)/dim_2/loss", "info_nce/query_to_document"} <= set(metrics)


@parametrize_with_checks(
    [
        matryoshka("info_nce", dims=(2, 3)),
        matryoshka("contrastive_pairs", dims=(3, 1), weights=(1, 0.5)),
        matryoshka("cosent", dims=(1, 3)),
    ],
    max_examples=5,
)
def test_it_keeps_the_laws(loss: Any, check: Any) -> None:
    check(loss)


def test_a_reproducer_makes_it_again() -> None:
    loss = matryoshka("info_nce", dims=(3, 1), weights=(1, 0.5), temperature=0.5)
    imports, expression = loss_source(loss)
    namespace: dict[str, Any] = {}
    exec(f"{imports}from lossbook import get_loss\nloss = {expression}", namespace)
    again = namespace["loss"]
    assert repr(again) == repr(loss)
    assert evaluated(again, texts(4), ROWS)[0] == evaluated(loss, texts(4), ROWS)[0]
    assert "weights" not in loss_source(matryoshka("info_nce", dims=(3, 1)))[1]


def test_a_loss_of_nobodys_registry_is_checked_too() -> None:
    def squared(embeddings):
        return embeddings.square().sum(1)

    check_loss(matryoshka(loss_of(squared, per="datum"), dims=(1, 3)), max_examples=5)


@pytest.mark.parametrize(
    ("loss", "settings", "error", "message"),
    [
        ("ppo", {"dims": (2,)}, LossContractError, "matryoshka cuts `embeddings` short, but ppo reads logprobs"),
        (
            0.5 * get_loss("cosent") + get_loss("angle"),
            {"dims": (2,)},
            LossContractError,
            "matryoshka takes one loss, not a mixture: wrap its parts, and mix those",
        ),
        (
            "info_nce",
            {"dims": ()},
            LossConfigError,
            "matryoshka: dims=() must be numbers of coordinates, such as (768, 256, 64)",
        ),
        (
            "info_nce",
            {"dims": (2, 0)},
            LossConfigError,
            "matryoshka: dims=(2, 0) must be numbers of coordinates, such as (768, 256, 64)",
        ),
        (
            "info_nce",
            {"dims": (2.0,)},
            LossConfigError,
            "matryoshka: dims=(2.0,) must be numbers of coordinates, such as (768, 256, 64)",
        ),
        (
            "info_nce",
            {"dims": (64, 768, 256)},
            LossConfigError,
            "matryoshka: dims=(64, 768, 256) are neither ascending nor descending, or hold a number twice. Did you mean "
            "(768, 256, 64)?",
        ),
        (
            "info_nce",
            {"dims": (64, 64)},
            LossConfigError,
            "matryoshka: dims=(64, 64) are neither ascending nor descending, or hold a number twice. Did you mean (64,)?",
        ),
        (
            "info_nce",
            {"dims": (2, 3), "weights": (1.0,)},
            LossConfigError,
            "matryoshka: 1 weights for 2 dims: give one weight per dimension",
        ),
        *(
            (
                "info_nce",
                {"dims": (2, 3), "weights": (1.0, weight)},
                LossConfigError,
                f"matryoshka: weights=(1.0, {weight}): each must be positive; leave out a dimension without weight",
            )
            for weight in (0.0, -1.0, float("nan"), float("inf"))
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    loss: Any, settings: dict[str, Any], error: type[LossbookError], message: str
) -> None:
    with pytest.raises(error) as caught:
        matryoshka(loss, **settings)
    assert str(caught.value) == message


def test_more_coordinates_than_there_are_is_refused() -> None:
    loss = matryoshka("info_nce", dims=(4, 2))
    with pytest.raises(ShapeError) as caught:
        loss(texts(4), [torch.tensor(row) for row in ROWS])
    assert str(caught.value) == (
        "matryoshka(info_nce,4+2) wants the first 4 coordinates, but these embeddings have 3. Set dims to 3 at most"
    )


def test_the_whole_width_is_not_more_than_there_is_and_no_embeddings_have_no_width() -> None:
    matryoshka("info_nce", dims=(3,))(texts(4), [torch.tensor(row) for row in ROWS])
    total, metrics = matryoshka("cosine_similarity", dims=(3, 2)).terms([], [])
    assert float(total) == 0
    assert set(metrics) == {f"dim_{d}/{key}" for d in (2, 3) for key in ("loss", "similarity", "labels_disagree")}
