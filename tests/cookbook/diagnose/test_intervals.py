"""Means over seeds: Student's t against scipy and printed tables, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.cookbook.diagnose.intervals import mean_of, student_t


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)]
)
def test_student_t_has_the_values_of_printed_tables(degrees: int, expected: float) -> None:
    assert abs(student_t(degrees) - expected) < 5e-4


@settings(max_examples=20)
@given(st.integers(1, 60), st.floats(0.5, 0.999))
def test_student_t_is_scipys(degrees: int, level: float) -> None:
    expected = pytest.importorskip("scipy.stats").t.ppf((1 + level) / 2, degrees)
    assert abs(student_t(degrees, level) / expected - 1) < 1e-9


@settings(max_examples=20)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6))
def test_an_interval_is_scipys(values: list[float]) -> None:
    mean = mean_of(values)
    spread = np.std(values, ddof=1)
    if spread == 0:
        assert mean.half_width == 0
        return
    error = spread / np.sqrt(len(values))
    low, high = pytest.importorskip("scipy.stats").t.interval(0.95, len(values) - 1, np.mean(values), error)
    assert mean.interval is not None
    assert np.allclose(mean.interval, (low, high), rtol=1e-9, atol=1e-9 * max(map(abs, values)))


def test_one_value_has_no_interval() -> None:
    assert (mean_of([0.5]).value, mean_of([0.5]).interval, mean_of([0.5]).count) == (0.5, None, 1)
