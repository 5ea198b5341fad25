"""A coefficient that follows the entropy: up and down by hand, within its bounds, and through a checkpoint."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums.errors import LossConfigError, NonFiniteLossInput
from lossbook.losses import AdaptiveEntropy


def test_the_coefficient_rises_at_or_below_the_target_and_falls_above_it() -> None:
    control, seen = AdaptiveEntropy(target=0.5, coefficient=0.1, step=0.03, lowest=0.02, highest=0.15), []
    for entropy in (0.4, 0.5, 0.3, 0.6, 0.7, 0.8, 2.0, 3.0, 0.5):
        control = control.after(entropy)
        seen.append((control.coefficient, control.applied))
    # .1 +.03 = .13; .16 is above .15; stays; then down by .03 each to .02, held there; and up again
    expected = [(0.13, 0.13), (0.15, 0.15), (0.15, 0.15), (0.12, 0), (0.09, 0), (0.06, 0), (0.03, 0), (0.02, 0)]
    assert seen == [pytest.approx(one) for one in [*expected, (0.05, 0.05)]]


def test_nothing_is_applied_before_an_entropy_is_known() -> None:
    control = AdaptiveEntropy(target=1.0, coefficient=0.2)
    assert control.applied == 0
    assert control.after(1.0).applied == pytest.approx(0.205)
    assert control.coefficient == 0.2  # it never changes itself


@given(st.lists(st.floats(0, 10), max_size=12), st.integers(0, 12), st.floats(0.01, 3))
def test_a_restored_control_goes_on_to_the_last_bit(entropies: list[float], stop: int, target: float) -> None:
    whole = resumed = AdaptiveEntropy(target=target, step=0.0123)
    for i, entropy in enumerate(entropies):
        if i == stop:
            resumed = AdaptiveEntropy(target=target, step=0.0123).restored(json.loads(json.dumps(resumed.state())))
        whole, resumed = whole.after(entropy), resumed.after(entropy)
        assert whole.lowest <= whole.coefficient <= whole.highest
    assert resumed == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": -1.0}, "target=-1.0 must be a finite number, 0 or more"),
        ({"target": math.inf}, "target=inf"),
        ({"target": math.nan}, "target=nan"),
        ({"step": 0.0}, "with step=0 the coefficient never changes"),
        ({"step": -0.1}, "step=-0.1 must be"),
        ({"coefficient": 2.0}, r"coefficient=2.0 must lie within \[lowest, highest\] = \[0, 1\]"),
        ({"coefficient": 0.1, "lowest": 0.2}, r"\[0.2, 1\]"),
        ({"coefficient": 0.5, "lowest": 0.6, "highest": 0.4}, r"\[0.6, 0.4\]"),
        ({"highest": math.inf}, "highest=inf"),
    ],
)
def test_numbers_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LossConfigError, match=message):
        AdaptiveEntropy(**{"target": 0.5, **settings})


@pytest.mark.parametrize("entropy", [math.nan, math.inf])
def test_an_entropy_that_is_no_number_is_refused(entropy: float) -> None:
    with pytest.raises(NonFiniteLossInput, match="the entropy is"):
        AdaptiveEntropy(target=0.5).after(entropy)
