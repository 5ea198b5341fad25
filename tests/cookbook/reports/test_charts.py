"""Curves and their axes: smoothing that does not lag, and ticks that are few, round and different."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.cookbook.reports.charts import MOST_POINTS, chart_html
from lossbook.cookbook.reports.panels import Panel
from lossbook.cookbook.reports.plots import centred_mean
from lossbook.cookbook.reports.scales import scales, ticks

LOSS = Panel("loss", ("loss",))


@given(st.floats(-1e3, 1e3), st.floats(-10, 10), st.integers(30, 900))
def test_the_smooth_line_of_a_straight_one_is_itself_so_it_does_not_lag(start: float, slope: float, count: int) -> None:
    """A trailing mean of a falling loss lies above it: training would look worse than held-out data."""
    values = start + slope * np.arange(count)
    np.testing.assert_allclose(centred_mean(values), values, rtol=1e-9, atol=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_a_centred_mean_is_that_of_the_values_around(values: list[float]) -> None:
    half = max(len(values) // 40, 1)
    expected = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        expected.append(np.mean(values[i - reach : i + reach + 1]))
    np.testing.assert_allclose(centred_mean(values), expected, rtol=1e-6, atol=1e-3)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside_the_range(low: float, width: float) -> None:
    values = ticks(low, low + width)
    assert 1 <= len(values) <= 7
    assert all(low - 1e-6 * width <= tick <= low + 1.000001 * width for tick in values)


@given(st.lists(st.floats(-1e9, 1e9) | st.floats(1e-9, 1e9), min_size=1, max_size=20))
def test_every_scale_holds_the_values_and_has_different_ticks_inside(values: list[float]) -> None:
    for scale in scales(np.array(values)):
        assert all(-1e-9 <= scale.share(value) <= 1 + 1e-9 for value in values)
        texts = [text for _, text in scale.ticks()]
        assert 1 <= len(texts) == len(set(texts)) <= 9
        assert all(-1e-6 <= scale.share(value) <= 1 + 1e-6 for value, _ in scale.ticks())


def test_positive_values_over_decades_are_drawn_logarithmically_and_others_on_request_or_never() -> None:
    assert [scale.is_logarithmic for scale in scales(np.array([0.01, 2.0]))] == [True, False]
    assert [scale.is_logarithmic for scale in scales(np.array([0.1, 2.0]))] == [False, True]
    assert [scale.is_logarithmic for scale in scales(np.array([1.0, 2.0]))] == [False]
    assert [scale.is_logarithmic for scale in scales(np.array([1e-15, 2.0]))] == [False, True]  # 0 but for rounding
    assert [scale.is_logarithmic for scale in scales(np.array([0.0, 2.0]))] == [False]
    (logarithmic, _) = scales(np.array([0.001, 10.0]))
    assert [text for _, text in logarithmic.ticks()] == ["0.001", "0.01", "0.1", "1", "10"]
    assert logarithmic.share(0.1) == pytest.approx(0.5)  # equal factors are equally far apart


def test_a_chart_over_decades_has_both_drawings_and_a_button() -> None:
    rows = [{"step": t, "loss": 10.0 ** -(t / 10)} for t in range(40)]
    html, _ = chart_html(LOSS, {"run": rows})
    assert re.findall(r'data-scale="(\w+)"( hidden)?', html) == [("log", ""), ("linear", " hidden")]
    assert '<button type="button" class="log" aria-pressed="true">' in html
    flat, _ = chart_html(LOSS, {"run": [{"step": t, "loss": 1.0 + t} for t in range(5)]})
    assert "<button" not in flat


def test_several_runs_are_told_apart_by_colour_once_and_their_metrics_by_dash() -> None:
    rows = [{"step": t, "loss": 1.0, "nll": 2.0} for t in range(3)]
    html, data = chart_html(Panel("both", ("loss", "nll")), {"a": rows, "b": rows})
    assert re.findall(r'<span class="key ([^"]*)">(\w+)</span>', html) == [("d0", "loss"), ("d1", "nll")]
    assert [curve["label"] for curve in data["curves"]] == ["a: loss", "a: nll", "b: loss", "b: nll"]
    alone, _ = chart_html(Panel("both", ("loss", "nll")), {"a": rows})
    assert re.findall(r'<span class="key ([^"]*)">(\w+)</span>', alone) == [("c0 d0", "loss"), ("c1 d0", "nll")]
    assert 'class="key' not in chart_html(LOSS, {"a": rows, "b": rows})[0]


def test_a_long_curve_is_thinned_and_a_single_point_is_drawn() -> None:
    rows = [{"step": t, "loss": float(t)} for t in range(5000)]
    _, data = chart_html(LOSS, {"run": rows})
    assert len(data["curves"][0]["steps"]) == MOST_POINTS
    assert data["curves"][0]["steps"][-1] == 4999
    html_of_one, _ = chart_html(LOSS, {"run": rows[:1]})
    assert html_of_one.count("<circle") == 1
    assert "nan" not in html_of_one
    assert chart_html(LOSS, {"run": [{"step": 1, "loss": float("nan")}]}) == ("", {})
