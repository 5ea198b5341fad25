"""Laws of preference losses: what they are at the reference, and what leaves them as they are."""

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
from ..checks import batches
from ..evaluation import Evaluation, evaluate, same, shown
from ..loss_under_test import OutputLists, Subject, datum_of, rows
from .law import claim

#: Inputs of one number a position.
PER_POSITION = ("target_tokens", "weights", "ref_logprobs")


def value_at_reference(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """While policy and reference agree, every pair's (or datum's) loss is `{"value": ...}`, such as ln 2."""
    rounded = [t.float().double() for t in outputs["logprobs"]]
    agreeing = [
        Datum(d.model_input, {**d.loss_fn_inputs, "ref_logprobs": TensorData(t.float().numpy())})
        for d, t in zip(data, rounded, strict=True)
    ]
    expected = _setting(subject, "value_at_reference", "value")
    whole = evaluate(subject, agreeing, {**outputs, "logprobs": rounded})
    units = float(whole.count) if whole.count.values[0] is not None else None
    found = float(whole.value) if units is not None else float(whole.total) / max(1, len(data) // 2)
    if not math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9):
        raise LossCheckError(
            f"while policy and reference agree the loss is {found:.12g} a {_unit(subject)}, not {expected:.12g}"
        )


def swap_symmetry(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Exchanging chosen and rejected negates the metric `margin`, and where `{"slope": s}` is given costs s x margin."""
    turned = [i ^ 1 for i in range(len(data))]
    margins = [i for i in subject.reads if i.name == "margin"]
    data = [_without(d, "margin") for d in data] if margins and not margins[0].required else list(data)
    whole = evaluate(subject, data, outputs)
    other = evaluate(subject, [data[i] for i in turned], {n: [ts[i] for i in turned] for n, ts in outputs.items()})
    margin, negated = whole.metrics["margin"].total, other.metrics["margin"].total
    if not torch.allclose(margin, -negated, rtol=1e-9, atol=1e-9):
        raise LossCheckError(
            f"the margins add up to {shown(margin)}, and to {shown(negated)} with chosen and rejected exchanged"
        )
    if "slope" not in subject.claims["swap_symmetry"]:
        return
    cost, expected = other.total - whole.total, _setting(subject, "swap_symmetry", "slope") * margin
    if not torch.allclose(cost, expected.to(cost), rtol=1e-9, atol=1e-9):
        raise LossCheckError(
            f"exchanging chosen and rejected costs {shown(cost)}, but the slope times the margin is {shown(expected)}"
        )


def shared_prefix_cancels(
    subject: Subject, data: Sequence[Datum], outputs: OutputLists, logprobs: Sequence[float]
) -> None:
    """A token that both responses of a pair begin with, equally likely in both, changes nothing else."""
    longer = [_with_token(d, 0, ref_logprobs=logprobs[i // 2 * 2]) for i, d in enumerate(data)]
    added = [logprobs[i // 2 * 2 + 1] for i in range(len(data))]
    _same_but_for(subject, data, outputs, longer, added, 0, "when both responses of each pair got the same first token")


def agreeing_tokens_are_silent(
    subject: Subject, data: Sequence[Datum], outputs: OutputLists, logprobs: Sequence[float]
) -> None:
    """A token on which policy and reference agree, at the end of a response, changes nothing else."""
    longer = [_with_token(d, rows(d), ref_logprobs=logprobs[i]) for i, d in enumerate(data)]
    where = "when each response got one more token, on which policy and reference agree"
    _same_but_for(subject, data, outputs, longer, logprobs[: len(data)], -1, where)


def repetition_changes_nothing(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """A response whose every token stands there twice is worth what it is worth: its loss is one of means over tokens."""
    twice = [
        datum_of(
            2 * rows(d),
            {k: np.repeat(v.to_numpy(), 2) if k in PER_POSITION else v for k, v in d.loss_fn_inputs.items()},
        )
        for d in data
    ]
    whole = evaluate(subject, data, outputs)
    other = evaluate(subject, twice, {n: [t.repeat_interleave(2) for t in ts] for n, ts in outputs.items()})
    merged = {n: [g.reshape(-1, 2).sum(1) for g in gradients] for n, gradients in other.gradients.items()}
    how = "when every token was repeated"
    same(_bare(whole), _bare(replace(other, gradients=merged)), how)


def _setting(subject: Subject, law: str, name: str) -> Any:
    """A number that a law claims, or what its function makes of the loss's settings."""
    given = subject.claims[law][name]
    return given(**subject.loss.settings) if callable(given) and subject.only else given  # type: ignore[union-attr]


def _unit(subject: Subject) -> str:
    return "pair" if subject.has_pairs else "datum"


def _without(datum: Datum, key: str) -> Datum:
    return Datum(datum.model_input, {k: v for k, v in datum.loss_fn_inputs.items() if k != key})


def _bare(evaluation: Evaluation) -> Evaluation:
    """Without metrics, which may count tokens."""
    return replace(evaluation, metrics={})


def _with_token(datum: Datum, place: int, **numbers: float) -> Datum:
    """One more position of weight 1 (0 where the datum has no other), put at `place`; `numbers` are what it holds."""
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    added = {"target_tokens": 0, "weights": float(weights.any()), **numbers}
    carried = {
        k: np.insert(v.to_numpy(), place, added.get(k, 0.0)) if k in PER_POSITION else v
        for k, v in datum.loss_fn_inputs.items()
    }
    return datum_of(rows(datum) + 1, carried)


def _same_but_for(
    subject: Subject,
    data: Sequence[Datum],
    outputs: OutputLists,
    longer: Sequence[Datum],
    added: Sequence[float],
    place: int,
    how: str,
) -> None:
    """The loss, and its gradient at all tokens but the added ones, are what they were."""
    whole = evaluate(subject, data, outputs)
    ends = [torch.tensor([a], dtype=torch.float64) for a in added]
    parts = zip(ends, outputs["logprobs"], strict=True)
    joined = [torch.cat([end, t] if place == 0 else [t, end]) for end, t in parts]
    other = evaluate(subject, longer, {**outputs, "logprobs": joined})
    kept = [g[1:] if place == 0 else g[:-1] for g in other.gradients["logprobs"]]
    same(_bare(whole), _bare(replace(other, gradients={**other.gradients, "logprobs": kept})), how)


@st.composite
def _weighed(draw: Any, subject: Subject, **options: Any) -> dict[str, Any]:
    """data and outputs, always with weights."""
    example = draw(batches(subject, **options))
    data = [
        d if "weights" in d.loss_fn_inputs else Datum(d.model_input, {**d.loss_fn_inputs, "weights": [1.0] * rows(d)})
        for d in example["data"]
    ]
    return {**example, "data": data}


@st.composite
def _with_logprobs(draw: Any, subject: Subject) -> dict[str, Any]:
    example = draw(_weighed(subject))
    count = len(example["data"]) + len(example["data"]) % 2
    drawn = draw(st.binary(min_size=count, max_size=count))
    return {**example, "logprobs": [-byte / 32 for byte in drawn]}


CHECKS = (
    claim(value_at_reference),
    claim(swap_symmetry),
    claim(shared_prefix_cancels, _with_logprobs),
    claim(agreeing_tokens_are_silent, _with_logprobs),
    claim(repetition_changes_nothing, _weighed),
)
