"""Laws of preference losses: their value at the reference, and changes of the data that do not change them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from ....datums.errors import LossCheckError
from ....datums.types import Datum, TensorData
from ..checks import batches, family_law
from ..evaluation import Evaluation, evaluate, same, shown
from ..loss_under_test import LossUnderTest, OutputLists, datum_of, rows

#: Inputs with one number per position.
PER_POSITION = ("target_tokens", "weights", "ref_logprobs")


def value_at_reference(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """While policy and reference agree, the loss of every pair (or datum) is `{"value": ...}`, such as ln 2."""
    rounded = [t.float().double() for t in outputs["logprobs"]]
    agreeing = [
        Datum(d.model_input, {**d.loss_fn_inputs, "ref_logprobs": TensorData(t.float().numpy())})
        for d, t in zip(data, rounded, strict=True)
    ]
    expected = _setting(loss, "value_at_reference", "value")
    whole = evaluate(loss, agreeing, {**outputs, "logprobs": rounded})
    is_mean = whole.count.values[0] is not None
    value = float(whole.value) if is_mean else float(whole.total) / max(1, len(data) // 2)
    if not math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9):
        per = "pair" if loss.has_pairs else "datum"
        raise LossCheckError(
            f"while policy and reference agree the loss is {value:.12g} per {per}, not {expected:.12g}"
        )


def swap_symmetry(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Swapping chosen and rejected negates the metric `margin`; with `{"slope": s}` it adds s x margin to the loss."""
    swapped = [i ^ 1 for i in range(len(data))]
    margins = [i for i in loss.reads if i.name == "margin"]
    data = [_without(d, "margin") for d in data] if margins and not margins[0].required else list(data)
    whole = evaluate(loss, data, outputs)
    other = evaluate(loss, [data[i] for i in swapped], {n: [ts[i] for i in swapped] for n, ts in outputs.items()})
    margin, negated = whole.metrics["margin"].total, other.metrics["margin"].total
    if not torch.allclose(margin, -negated, rtol=1e-9, atol=1e-9):
        raise LossCheckError(
            f"the margins add up to {shown(margin)}, and to {shown(negated)} with chosen and rejected exchanged"
        )
    if "slope" not in loss.laws["swap_symmetry"]:
        return
    cost, expected = other.total - whole.total, _setting(loss, "swap_symmetry", "slope") * margin
    if not torch.allclose(cost, expected.to(cost), rtol=1e-9, atol=1e-9):
        raise LossCheckError(
            f"exchanging chosen and rejected costs {shown(cost)}, but the slope times the margin is {shown(expected)}"
        )


def shared_prefix_cancels(
    loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, logprobs: Sequence[float]
) -> None:
    """A first token that both responses of a pair share, equally likely in both, changes nothing else."""
    longer = [_with_token(d, 0, ref_logprobs=logprobs[i // 2 * 2]) for i, d in enumerate(data)]
    added = [logprobs[i // 2 * 2 + 1] for i in range(len(data))]
    _same_but_for(loss, data, outputs, longer, added, 0, "when both responses of each pair got the same first token")


def agreeing_tokens_are_silent(
    loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, logprobs: Sequence[float]
) -> None:
    """A last token on which policy and reference agree changes nothing else."""
    longer = [_with_token(d, rows(d), ref_logprobs=logprobs[i]) for i, d in enumerate(data)]
    where = "when each response got one more token, on which policy and reference agree"
    _same_but_for(loss, data, outputs, longer, logprobs[: len(data)], -1, where)


def repetition_changes_nothing(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Repeating every token of a response changes nothing, because the loss takes means over tokens."""
    twice = [
        datum_of(
            2 * rows(d),
            {k: np.repeat(v.to_numpy(), 2) if k in PER_POSITION else v for k, v in d.loss_fn_inputs.items()},
        )
        for d in data
    ]
    whole = evaluate(loss, data, outputs)
    other = evaluate(loss, twice, {n: [t.repeat_interleave(2) for t in ts] for n, ts in outputs.items()})
    merged = {n: [g.reshape(-1, 2).sum(1) for g in gradients] for n, gradients in other.gradients.items()}
    how = "when every token was repeated"
    same(_bare(whole), _bare(replace(other, gradients=merged)), how)


def _setting(loss: LossUnderTest, law: str, name: str) -> Any:
    """A number in the law's settings, or its function applied to the loss's settings."""
    given = loss.laws[law][name]
    return given(**loss.wrapped.settings) if callable(given) and loss.only else given  # type: ignore[union-attr]


def _without(datum: Datum, key: str) -> Datum:
    return Datum(datum.model_input, {k: v for k, v in datum.loss_fn_inputs.items() if k != key})


def _bare(evaluation: Evaluation) -> Evaluation:
    """The evaluation without metrics, which may count tokens."""
    return replace(evaluation, metrics={})


def _with_token(datum: Datum, place: int, **numbers: float) -> Datum:
    """The datum with one more position at `place`, which holds `numbers` and has weight 1 (0 if all other weights are 0)."""
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    added = {"target_tokens": 0, "weights": float(weights.any()), **numbers}
    carried = {
        k: np.insert(v.to_numpy(), place, added.get(k, 0.0)) if k in PER_POSITION else v
        for k, v in datum.loss_fn_inputs.items()
    }
    return datum_of(rows(datum) + 1, carried)


def _same_but_for(
    loss: LossUnderTest,
    data: Sequence[Datum],
    outputs: OutputLists,
    longer: Sequence[Datum],
    added: Sequence[float],
    place: int,
    how: str,
) -> None:
    """Raise LossCheckError unless the loss, and its gradient at all but the added tokens, stay the same."""
    whole = evaluate(loss, data, outputs)
    ends = [torch.tensor([a], dtype=torch.float64) for a in added]
    parts = zip(ends, outputs["logprobs"], strict=True)
    joined = [torch.cat([end, t] if place == 0 else [t, end]) for end, t in parts]
    other = evaluate(loss, longer, {**outputs, "logprobs": joined})
    trimmed = [g[1:] if place == 0 else g[:-1] for g in other.gradients["logprobs"]]
    same(_bare(whole), _bare(replace(other, gradients={**other.gradients, "logprobs": trimmed})), how)


@st.composite
def _weighted(draw: Any, loss: LossUnderTest, **options: Any) -> dict[str, Any]:
    """As `batches`, always with weights."""
    example = draw(batches(loss, **options))
    data = [
        d if "weights" in d.loss_fn_inputs else Datum(d.model_input, {**d.loss_fn_inputs, "weights": [1.0] * rows(d)})
        for d in example["data"]
    ]
    return {**example, "data": data}


@st.composite
def _with_logprobs(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    example = draw(_weighted(loss))
    count = len(example["data"]) + len(example["data"]) % 2
    drawn = draw(st.binary(min_size=count, max_size=count))
    return {**example, "logprobs": [-byte / 32 for byte in drawn]}


CHECKS = (
    family_law(value_at_reference),
    family_law(swap_symmetry),
    family_law(shared_prefix_cancels, _with_logprobs),
    family_law(agreeing_tokens_are_silent, _with_logprobs),
    family_law(repetition_changes_nothing, _weighted),
)
