"""Metrics merge exactly: parts put together say what the whole would have said."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook import Datum, get_loss, stats

KINDS = {"mean": stats.mean, "sum": stats.sum, "min": stats.min, "max": stats.max, "effective": stats.effective}
values = st.lists(st.integers(-1000, 1000).map(float), max_size=6)


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(values, min_size=1, max_size=4))
def test_merged_parts_equal_the_whole_even_where_a_part_is_empty(kind: str, parts: list[list[float]]) -> None:
    of = KINDS[kind]
    whole = of(torch.tensor([x for part in parts for x in part], dtype=torch.float64)).value()
    merged = stats.merge({"metric": of(torch.tensor(part, dtype=torch.float64))} for part in parts)
    assert stats.values(merged) == pytest.approx({"metric": whole}, nan_ok=True, abs=0)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("mean", 2.0), ("sum", 6.0), ("min", -1.0), ("max", 5.0), ("effective", 36 / (3 * 30))],
)
def test_a_stat_of_three_numbers(kind: str, value: float) -> None:
    assert KINDS[kind](torch.tensor([[-1.0, 5.0, 2.0]])).value() == value


@pytest.mark.parametrize(
    ("kind", "value"),
    [("mean", math.nan), ("sum", 0.0), ("min", math.nan), ("max", math.nan), ("effective", math.nan)],
)
def test_a_stat_of_nothing_is_nan_except_the_sum(kind: str, value: float) -> None:
    assert KINDS[kind](torch.zeros(0)).value() == pytest.approx(value, nan_ok=True)


def test_a_mean_of_unequal_parts_weighs_them_by_their_size() -> None:
    # A mean of means would say 2.
    merged = stats.mean(torch.tensor([1.0, 1.0, 1.0])).merge(stats.mean(torch.tensor([3.0])))
    assert merged.value() == 1.5


@pytest.mark.parametrize(
    ("kind", "value"), [("mean", 2 / 3), ("sum", 2.0), ("min", 0.0), ("max", 1.0), ("effective", 2 / 3)]
)
def test_booleans_count_as_zero_and_one(kind: str, value: float) -> None:
    assert KINDS[kind](torch.tensor([True, False, True])).value() == pytest.approx(value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stat_leaves_the_graph_behind(kind: str) -> None:
    stat = KINDS[kind](torch.ones(2, requires_grad=True) * 2)
    assert not stat.total.requires_grad
    assert stat.total.dtype == torch.float64


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        pytest.param([2.0, 2.0, 2.0], 1.0, id="equal weights: all count"),
        pytest.param([1.0, 0.0, 0.0, 0.0], 0.25, id="one of four"),
        pytest.param([0.0, 0.0], 0.0, id="none"),
        pytest.param([3.0, 1.0], 16 / 20, id="(3 + 1)² over 2 (9 + 1)"),
        pytest.param([2.0**14, 1.0], (2.0**14 + 1) ** 2 / (2 * (2.0**28 + 1)), id="squares are added up in float64"),
    ],
)
def test_the_effective_sample_size_is_a_share_of_the_weights(weights: list[float], share: float) -> None:
    assert stats.effective(torch.tensor(weights)).value() == pytest.approx(share, rel=1e-15)


def test_float32_values_are_added_up_in_float64() -> None:
    # In float32 a sum stands still at 2^24.
    assert stats.sum(torch.tensor([2.0**24, 1.0, 1.0, 1.0])).value() == 2**24 + 3


@pytest.mark.parametrize("kind", KINDS)
def test_stats_are_equal_where_their_numbers_are(kind: str) -> None:
    of, other = KINDS[kind], "max" if kind == "min" else "min"
    assert of(torch.tensor([1.0, 2.0])) == of(torch.tensor([1.0, 2.0]))
    assert of(torch.tensor([1.0, 2.0])) != of(torch.tensor([1.0, 2.0, 2.0]))
    assert of(torch.tensor([1.0, 2.0])) != KINDS[other](torch.tensor([1.0, 2.0]))
    assert of(torch.tensor([1.0])) != 1.0


def test_different_kinds_do_not_merge() -> None:
    with pytest.raises(ValueError, match=r"^cannot merge a mean with a sum$"):
        stats.mean(torch.ones(1)).merge(stats.sum(torch.ones(1)))


def test_parts_need_not_know_the_same_metrics() -> None:
    merged = stats.merge([{"first": stats.sum(torch.ones(2))}, {"second": stats.max(torch.ones(1))}, {}])
    assert stats.values(merged) == {"first": 2.0, "second": 1.0}


def test_a_nan_is_passed_on_and_not_hidden() -> None:
    for of in KINDS.values():
        assert math.isnan(of(torch.tensor([1.0, math.nan])).value())


def test_metrics_do_not_count_slots_that_only_a_wider_datum_beside_has() -> None:
    narrow = Datum([0], {"target_tokens": [[1]], "weights": [[1.0]]})
    wide = Datum([0], {"target_tokens": [[1, 2, 3]], "weights": [[0.5, 0.25, 0.0]]})
    logprobs = [torch.tensor([[-1.0]]), torch.tensor([[-2.0, -3.0, -50.0]])]
    loss = get_loss("dft", reduction="sum")
    _, together = loss.terms([narrow, wide], {"logprobs": logprobs})
    _, first = loss.terms([narrow], {"logprobs": logprobs[:1]})
    _, second = loss.terms([wide], {"logprobs": logprobs[1:]})
    expected = sum(math.exp(-nats) for nats in (1, 2, 3)) / 3  # three targets of weight, whatever the widths
    assert stats.values(together)["probability"] == pytest.approx(expected)
    assert stats.values(stats.merge([first, second])) == pytest.approx(stats.values(together))


def test_extremes_do_not_see_masked_slots_either() -> None:
    with stats.counting(torch.tensor([[True, False]])):
        assert stats.max(torch.tensor([[1.0, 9.0]])).value() == 1
        assert stats.max(torch.tensor([1.0, 9.0])).value() == 9  # of another shape: not about slots
    assert stats.max(torch.tensor([[1.0, 9.0]])).value() == 9


@given(rows=st.lists(st.tuples(st.integers(-9, 9).map(float), st.booleans()), max_size=6))
def test_a_mean_of_some_is_that_of_these_alone(rows: list[tuple[float, bool]]) -> None:
    given_values, where = torch.tensor([x for x, _ in rows]), torch.tensor([y for _, y in rows], dtype=torch.bool)
    alone = stats.mean(given_values[where])
    among = stats.mean(torch.where(where, given_values, torch.nan), where)
    assert (float(among.total), float(among.count)) == (float(alone.total), float(alone.count))
    assert stats.mean(where, where).value() == pytest.approx(1.0 if where.any() else math.nan, nan_ok=True)


def test_a_mean_of_some_leaves_out_slots_that_do_not_count() -> None:
    with stats.counting(torch.tensor([[True, False], [True, True]])):
        chosen = torch.tensor([[True, True], [False, True]])
        assert stats.mean(torch.tensor([[1.0, 9.0], [5.0, 3.0]]), chosen).value() == 2
        assert stats.mean(torch.tensor([1.0, 3.0]), torch.tensor([True, False])).value() == 1  # not about slots
    assert stats.mean(torch.tensor([[1.0, 9.0], [5.0, 2.0]]), chosen).value() == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_count_that_shapes_tell_is_on_the_cpu_wherever_the_values_are(kind: str) -> None:
    elsewhere = torch.ones(2, 3, device="meta")
    stat = KINDS[kind](elsewhere)
    assert (stat.is_known, stat.count.item(), stat.total.device.type) == (True, 6, "meta")
    with stats.counting(torch.ones(2, 3, dtype=torch.bool)):
        assert not KINDS[kind](elsewhere).is_known
        assert KINDS[kind](elsewhere[0]).count.item() == 3
    assert not stats.mean(elsewhere, elsewhere > 0).is_known
