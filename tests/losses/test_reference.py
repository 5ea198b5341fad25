"""Every loss equals its second, independent version in NumPy, value and gradient, on data that hypothesis draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import Datum, ModelInput, get_loss
from lossbook.losses import REDUCTIONS

from . import numpy_reference as reference
from .cases import assert_rows_equal, evaluated

#: prompt-mean, which reads a key more, has a NumPy version in test_prompt_mean.py
TOKEN_REDUCTIONS = [reduction for reduction in REDUCTIONS["token"] if reduction != "prompt-mean"]
TOLERANCE = 1e-9
REWARDED = ("sampling_logprobs", "advantages")
#: What each loss per token reads.
INPUTS: dict[str, tuple[str, ...]] = {
    "cross_entropy": (),
    "importance_sampling": REWARDED,
    "ppo": REWARDED,
    "grpo": (*REWARDED, "ref_logprobs"),
}


def float32s(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers that survive being stored in float32."""
    return st.floats(low, high, width=32, allow_subnormal=False)


#: Eight nats hold ratios below 3,000, so that 1e-9 is a fair tolerance for sums in float64.
LOGPROBS = st.floats(-8, 0)
WEIGHTS = st.sampled_from([0.0, 0.25, 1.0, 1.0, 3.5])


@st.composite
def sequences(draw: st.DrawFn, inputs: tuple[str, ...], *, signed: bool = False) -> list[reference.Sequence]:
    """One to four datums of one to five positions, the very first with a weight, so that a mean has a denominator."""
    weights = st.one_of(WEIGHTS, float32s(-2, 2)) if signed else WEIGHTS
    drawn = []
    for length in draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)):
        drawn.append(draw(sequence(length, inputs, weights)))
    drawn[0].weights[0] = 1.0
    return drawn


@st.composite
def sequence(
    draw: st.DrawFn, length: int, inputs: tuple[str, ...], weights: st.SearchStrategy[float]
) -> reference.Sequence:
    def row(of: st.SearchStrategy[float]) -> np.ndarray:
        return np.array(draw(st.lists(of, min_size=length, max_size=length)), dtype=np.float64)

    ranges = {"advantages": float32s(-3, 3)}
    return reference.Sequence(
        logprobs=row(LOGPROBS),
        weights=row(weights),
        inputs={key: row(ranges.get(key, float32s(-8, 0))) for key in inputs},
    )


def as_datums(drawn: list[reference.Sequence]) -> list[Datum]:
    return [
        Datum(
            ModelInput.from_ints(list(range(len(one.logprobs)))),
            {"target_tokens": np.zeros(one.logprobs.shape, dtype=np.int64), "weights": one.weights, **one.inputs},
        )
        for one in drawn
    ]


def assert_agree(
    name: str,
    drawn: list[reference.Sequence],
    expected: tuple[float, list[np.ndarray]],
    **config: Any,
) -> None:
    total, gradients, _ = evaluated(get_loss(name, **config), as_datums(drawn), [one.logprobs for one in drawn])
    assert total == pytest.approx(expected[0], rel=TOLERANCE, abs=TOLERANCE)
    assert_rows_equal(gradients, [torch.from_numpy(row) for row in expected[1]], TOLERANCE)


@pytest.mark.parametrize("reduction", TOKEN_REDUCTIONS)
@pytest.mark.parametrize("name", INPUTS)
@given(data=st.data())
@settings(max_examples=15)
def test_a_loss_per_token_equals_its_numpy_version(name: str, reduction: str, data: st.DataObject) -> None:
    drawn = data.draw(sequences(INPUTS[name], signed=reduction == "sum"))
    norm = {"norm_length": data.draw(st.integers(1, 9))} if reduction == "seq-mean-token-sum-norm" else {}
    expected = reference.token_loss(name, drawn, reduction, **norm)
    assert_agree(name, drawn, expected, reduction=reduction, **norm)


@given(drawn=sequences(REWARDED), cap=st.floats(0.125, 4))
@settings(max_examples=30)
def test_importance_sampling_caps_the_log_ratio_where_its_numpy_version_does(
    drawn: list[reference.Sequence], cap: float
) -> None:
    expected = reference.token_loss("importance_sampling", drawn, "sum", ratio_log_cap=cap)
    assert_agree("importance_sampling", drawn, expected, ratio_log_cap=cap)


@given(drawn=sequences(REWARDED), low=st.floats(0, 0.95), high=st.floats(1.05, 9))
@settings(max_examples=30)
def test_ppo_clips_at_any_bounds_as_its_numpy_version_does(
    drawn: list[reference.Sequence], low: float, high: float
) -> None:
    expected = reference.token_loss("ppo", drawn, "sum", clip_low=low, clip_high=high)
    assert_agree("ppo", drawn, expected, clip_low=low, clip_high=high)


@given(data=st.data())
@settings(max_examples=30)
def test_ppo_clips_each_token_at_its_own_bounds_as_its_numpy_version_does(data: st.DataObject) -> None:
    drawn = data.draw(sequences(REWARDED))
    for one in drawn:
        for key, of in (("clip_low_threshold", float32s(0, 0.875)), ("clip_high_threshold", float32s(1.125, 9))):
            one.inputs[key] = np.array(data.draw(st.lists(of, min_size=len(one.logprobs), max_size=len(one.logprobs))))
    assert_agree("ppo", drawn, reference.token_loss("ppo", drawn, "sum"))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@given(drawn=sequences(INPUTS["grpo"]), coefficient=st.floats(0, 2, exclude_min=True))
@settings(max_examples=15)
def test_grpo_adds_each_kl_estimate_as_its_numpy_version_does(
    estimator: str, drawn: list[reference.Sequence], coefficient: float
) -> None:
    config = {"kl_coefficient": coefficient, "kl_estimator": estimator}
    expected = reference.token_loss("grpo", drawn, "token-mean", **config)
    assert_agree("grpo", drawn, expected, **config)


@pytest.mark.parametrize("reduction", TOKEN_REDUCTIONS)
@given(data=st.data(), columns=st.integers(1, 3))
@settings(max_examples=10)
def test_cross_entropy_of_several_targets_equals_its_numpy_version(
    reduction: str, data: st.DataObject, columns: int
) -> None:
    drawn = data.draw(sequences(()))
    for one in drawn:
        shape = (len(one.logprobs), columns)
        size = shape[0] * columns
        one.logprobs = np.array(data.draw(st.lists(LOGPROBS, min_size=size, max_size=size))).reshape(shape)
        one.weights = np.array(data.draw(st.lists(WEIGHTS, min_size=size, max_size=size))).reshape(shape)
    drawn[0].weights[0, 0] = 1.0
    norm = {"norm_length": 4} if reduction == "seq-mean-token-sum-norm" else {}
    expected = reference.token_loss("cross_entropy", drawn, reduction, **norm)
    assert_agree("cross_entropy", drawn, expected, reduction=reduction, **norm)


@st.composite
def pairs(draw: st.DrawFn) -> list[reference.Sequence]:
    """One to three pairs; both sides of a pair are masked whole, or neither is."""
    drawn = []
    for i in range(draw(st.integers(1, 3))):
        masked = i > 0 and draw(st.booleans())
        for _ in range(2):
            one = draw(sequence(draw(st.integers(1, 4)), ("ref_logprobs",), WEIGHTS))
            one.weights[0] = 1.0
            one.weights *= not masked
            drawn.append(one)
    return drawn


@pytest.mark.parametrize("reduction", REDUCTIONS["pair"])
@given(drawn=pairs(), beta=st.floats(0.01, 2), smoothing=st.floats(0, 0.49))
@settings(max_examples=30)
def test_dpo_equals_its_numpy_version(
    reduction: str, drawn: list[reference.Sequence], beta: float, smoothing: float
) -> None:
    expected = reference.dpo(drawn, reduction, beta, smoothing)
    assert_agree("dpo", drawn, expected, reduction=reduction, beta=beta, label_smoothing=smoothing)


@pytest.mark.parametrize("reduction", REDUCTIONS["datum"])
@given(data=st.data(), temperature=st.floats(0.05, 5), extra=st.integers(0, 3))
@settings(max_examples=30)
def test_info_nce_equals_its_numpy_version(reduction: str, data: st.DataObject, temperature: float, extra: int) -> None:
    count = 2 * data.draw(st.integers(1, 3)) + extra
    # No component near 0: at the zero vector a direction is a convention, not a number.
    component = st.floats(0.125, 4) | st.floats(-4, -0.125)
    drawn = np.array(data.draw(st.lists(st.lists(component, min_size=3, max_size=3), min_size=count, max_size=count)))
    loss = get_loss("info_nce", temperature=temperature, num_extra_negatives=extra, reduction=reduction)
    data_only = [Datum(ModelInput.from_ints([1]))] * count
    total, gradients, _ = evaluated(loss, data_only, drawn)
    value, gradient = reference.info_nce(drawn, reduction, temperature, extra)
    assert total == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)
    assert_rows_equal(gradients, [torch.from_numpy(row) for row in gradient], TOLERANCE)
