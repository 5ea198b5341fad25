"""Numbers that a loss cannot use are named by datum and position; masked ones change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import get_loss
from lossbook.datums.errors import InvalidLogprobError, NonFiniteLossInput

from .cases import assert_rows_equal, datum, evaluated, rollout

ROW = [-1.2, -1.4, -2.5]


@st.composite
def places(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """A datum, a position in it, and the lengths of all datums."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    which = draw(st.integers(0, len(lengths) - 1))
    return which, draw(st.integers(0, lengths[which] - 1)), lengths


@pytest.mark.parametrize("key", ["sampling_logprobs", "advantages", "ref_logprobs"])
@given(place=places(), value=st.sampled_from([math.nan, math.inf, -math.inf]))
@settings(max_examples=15)
def test_a_number_that_is_not_finite_is_named_by_datum_and_position(
    key: str, place: tuple[int, int, list[int]], value: float
) -> None:
    which, position, lengths = place
    data = []
    for i, n in enumerate(lengths):
        inputs = {name: [-1.0] * n for name in ("sampling_logprobs", "advantages", "ref_logprobs")}
        # Some masked positions before it, so that packed places and true positions differ.
        weights = [1.0 if (i, t) == (which, position) else float((i + t) % 2) for t in range(n)]
        if i == which:
            inputs[key][position] = value
        data.append(datum(n, weights=weights, **inputs))
    with pytest.raises(NonFiniteLossInput) as caught:
        get_loss("grpo").check(data)
    assert str(caught.value) == (
        f"grpo: {key} of datum {which} is {value} at position {position}, where the weight is not 0. Give the position "
        "weight 0, or correct the value"
    )


@given(place=places(), value=st.floats(1.1e-4, 1e6))
@settings(max_examples=15)
def test_a_positive_logprob_is_named_by_datum_and_position(place: tuple[int, int, list[int]], value: float) -> None:
    which, position, lengths = place
    data = [datum(n, sampling_logprobs=[-1.0] * n, advantages=[1.0] * n) for n in lengths]
    row = [-1.0] * lengths[which]
    row[position] = value
    data[which] = datum(lengths[which], sampling_logprobs=row, advantages=[1.0] * lengths[which])
    with pytest.raises(InvalidLogprobError) as caught:
        get_loss("ppo").check(data)
    assert str(caught.value).startswith(f"ppo: sampling_logprobs of datum {which} is ")
    assert str(caught.value).endswith(
        f" at position {position}: a log-probability is at most 0. Are these probabilities, or negated log-probabilities?"
    )


@given(value=st.floats(0, 1e-4))
@settings(max_examples=15)
def test_a_logprob_above_zero_by_rounding_is_tolerated(value: float) -> None:
    data = [rollout(sampling_logprobs=[value] * 3, ref_logprobs=[value] * 3)]
    evaluated(get_loss("grpo"), data, [[value] * 3])


@pytest.mark.parametrize(
    ("value", "error", "ending"),
    [
        (-math.inf, NonFiniteLossInput, "-inf at position 2, where the weight is not 0. Has the model diverged"),
        (math.nan, NonFiniteLossInput, "nan at position 2, where the weight is not 0. Has the model diverged"),
        (math.inf, NonFiniteLossInput, "inf at position 2, where the weight is not 0. Has the model diverged"),
        (0.25, InvalidLogprobError, "0.25 at position 2: a log-probability is at most 0. Are these probabilities?"),
    ],
    ids=["an impossible token", "a model that diverged", "infinity", "a probability instead of its logarithm"],
)
def test_a_models_logprob_that_is_none_is_named_by_datum_and_position(
    value: float, error: type[Exception], ending: str
) -> None:
    data = [rollout(), rollout()]
    rows = [torch.tensor(ROW), torch.tensor([*ROW[:2], value])]
    with pytest.raises(error) as caught:
        get_loss("grpo")(data, rows)
    assert str(caught.value).startswith(f"grpo: the model's logprobs of datum 1 are {ending}")


GARBAGE = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.5])


@pytest.mark.parametrize("name", ["cross_entropy", "importance_sampling", "ppo", "grpo", "dpo"])
@given(garbage=st.lists(GARBAGE, min_size=4, max_size=4), masked=st.integers(0, 3))
@settings(max_examples=15)
def test_masked_entries_may_hold_anything_and_change_nothing(name: str, garbage: list[float], masked: int) -> None:
    keys = ("sampling_logprobs", "advantages", "ref_logprobs")
    rows = {
        "sampling_logprobs": [-1.0, -2.0, -0.5, -3.0],
        "advantages": [1.0, -1.0, 2.0, 0.5],
        "ref_logprobs": [-1.5] * 4,
    }
    weights = [1.0, 0.5, 1.0, 2.0]
    weights[masked] = 0.0
    logprobs = [-1.25, -1.75, -0.25, -2.0]
    clean = [datum(4, weights=weights, **rows)] * 2

    def soiled(row: list[float], value: float) -> list[float]:
        return [value if t == masked else x for t, x in enumerate(row)]

    dirty = [
        datum(4, weights=weights, **{key: soiled(rows[key], x) for key, x in zip(keys, garbage, strict=False)})
    ] * 2
    expected, slopes, metrics = evaluated(get_loss(name), clean, [logprobs] * 2)
    value, gradients, same = evaluated(get_loss(name), dirty, [soiled(logprobs, garbage[3])] * 2)
    assert value == expected
    assert_rows_equal(gradients, slopes, 0)
    assert [float(g[masked]) for g in gradients] == [0.0, 0.0]
    assert same == metrics
