"""Weights: a weight of 0 hides a position altogether, any other weight multiplies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from ....datums.errors import LossCheckError
from ....datums.types import Datum, TensorData
from .. import strategies
from ..checks import Check, copied
from ..evaluation import evaluate, same, shown
from ..loss_under_test import OutputLists, Subject

#: What masked entries may hold, and which entries are filled.
POISONS = ((math.nan, "both"), (math.inf, "both"), (-math.inf, "both"), (1e30, "both"))
#: For losses that ask for `weights`: they are called only when every position is finite.
FINITE_POISONS = ((-1e4, "inputs"), (-1e4, "outputs"), (-20.0, "both"))
#: By what the value of a loss per token grows when all weights grow by c, where that is not c.
INVARIANT = ("token-mean", "seq-mean-token-mean")


def masked_positions(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Whatever stands at a position of weight 0 changes no bit of loss, gradients or metrics."""
    whole = evaluate(subject, data, outputs)
    for poison, where in FINITE_POISONS if subject.wants_weights else POISONS:
        poisoned_data, poisoned_outputs, hidden = _poisoned(subject, data, outputs, poison, where)
        other = evaluate(subject, poisoned_data, poisoned_outputs)
        how = f"when masked positions were filled with {poison} ({where})"
        same(whole, other, how, exactly=not subject.wants_weights)
        for name, tensors in other.gradients.items():
            for i, (gradient, mask) in enumerate(zip(tensors, hidden, strict=True)):
                masked = gradient[mask if gradient.shape == mask.shape else mask.reshape(len(mask), -1).all(1)]
                if bool((masked != 0).any()):
                    raise LossCheckError(f"masked positions of datum {i} have gradient {shown(masked)} in their {name}")


def weight_linearity(subject: Subject, data: Sequence[Datum], outputs: OutputLists, factor: float) -> None:
    """All weights times c: sums and their gradients grow by c, means per unit of weight stay as they are."""
    only = subject.only
    if only is None:
        raise LossCheckError("weight_linearity is checked on each part of a mixture, not on the mixture")
    scaled = [_with_weights(d, d.loss_fn_inputs["weights"].to_numpy() * np.float32(factor)) for d in data]
    expected = 1.0 if only.reduction in INVARIANT else factor
    whole, other = evaluate(subject, data, outputs), evaluate(subject, scaled, outputs)
    pairs = [("the loss", whole.value, other.value)]
    for name in whole.gradients:
        pairs += [
            (f"the gradient of datum {i}'s {name}", a, b)
            for i, (a, b) in enumerate(zip(whole.gradients[name], other.gradients[name], strict=True))
        ]
    for what, before, after in pairs:
        if not torch.allclose(before * expected, after, rtol=1e-10, atol=1e-10 * max(1.0, abs(expected))):
            raise LossCheckError(
                f"{what} went from {shown(before)} to {shown(after)} when all weights were multiplied by {factor}: under "
                f"reduction {only.reduction!r} it must be multiplied by {expected:g}"
            )


def appended_zero_weight_datum(
    subject: Subject, data: Sequence[Datum], outputs: OutputLists, source: int, place: int
) -> None:
    """A datum (or pair) all of whose weights are 0 changes nothing, wherever it stands."""
    step = 2 if subject.has_pairs else 1
    copies = range(source * step, (source + 1) * step)
    at = place * step
    dead = [_with_weights(data[i], np.zeros_like(data[i].loss_fn_inputs["weights"].to_numpy())) for i in copies]
    longer = [*data[:at], *dead, *data[at:]]
    others = {n: [*tensors[:at], *(tensors[i] for i in copies), *tensors[at:]] for n, tensors in outputs.items()}
    whole, other = evaluate(subject, data, outputs), evaluate(subject, longer, others)
    for name, gradients in other.gradients.items():
        for gradient in gradients[at : at + step]:
            if bool((gradient != 0).any()):
                raise LossCheckError(f"a datum of weight 0 has the gradient {shown(gradient)} in its {name}")
        del gradients[at : at + step]
    same(whole, other, f"when a datum of weight 0 was put at place {at}")


def _poisoned(
    subject: Subject, data: Sequence[Datum], outputs: OutputLists, poison: float, where: str
) -> tuple[list[Datum], OutputLists, list[torch.Tensor]]:
    """The same with `poison` wherever the weight is 0 in the inputs, the outputs or both; and where that is."""
    filled = copied(outputs)
    changed: list[Datum] = []
    hidden: list[torch.Tensor] = []
    read = {key: one.per for one in subject.reads for key in one.keys}
    for i, datum in enumerate(data):
        weights = datum.loss_fn_inputs["weights"].to_numpy()
        if subject.candidates is None:
            weights = weights.reshape(datum.loss_fn_inputs["target_tokens"].shape)
        mask = weights == 0
        by_row = mask.reshape(len(mask), -1).all(1)
        carried = dict(datum.loss_fn_inputs)
        for key, value in carried.items():
            array = value.to_numpy().copy()
            if where == "outputs" or key not in read or array.dtype.kind != "f" or (array.ndim == 0 and not mask.all()):
                continue
            array[... if array.ndim == 0 else by_row if array.ndim == 1 else mask] = poison
            carried[key] = TensorData(array)
        changed.append(Datum(datum.model_input, carried))
        hidden.append(torch.from_numpy(mask))
        for tensors in filled.values() if where != "inputs" else ():
            tensors[i][torch.from_numpy(mask if tensors[i].ndim == mask.ndim else by_row)] = poison
    return changed, filled, hidden


def _with_weights(datum: Datum, weights: np.ndarray) -> Datum:
    return Datum(datum.model_input, {**datum.loss_fn_inputs, "weights": TensorData(weights.astype(np.float32))})


@st.composite
def _weighted(draw: Any, subject: Subject, **options: Any) -> dict[str, Any]:
    """As `batches`, always with weights."""
    data = draw(strategies.datums(subject, **options))
    ones = (lambda d: np.ones(_targets(d)[0])) if subject.candidates else (lambda d: np.ones(_targets(d)))
    data = [d if "weights" in d.loss_fn_inputs else _with_weights(d, ones(d)) for d in data]
    if subject.candidates is None:
        data = [_with_weights(d, d.loss_fn_inputs["weights"].to_numpy().reshape(_targets(d))) for d in data]
    return {"data": data, "outputs": draw(strategies.outputs(subject, data))}


def _targets(datum: Datum) -> tuple[int, ...]:
    return tuple(datum.loss_fn_inputs["target_tokens"].shape)


@st.composite
def _with_factor(draw: Any, subject: Subject) -> dict[str, Any]:
    # Few digits, so that weights times c are exact in float32.
    factors = (2.0, 0.5, 3.0, -1.0, -2.5, 0.25) if subject.takes_real_weights else (2.0, 0.5, 3.0, 0.25)
    return {**draw(_weighted(subject)), "factor": draw(st.sampled_from(factors))}


@st.composite
def _with_place(draw: Any, subject: Subject) -> dict[str, Any]:
    example = draw(_weighted(subject))
    units = len(example["data"]) // (2 if subject.has_pairs else 1)
    return {**example, "source": draw(st.integers(0, units - 1)), "place": draw(st.integers(0, units))}


def _skip_without_weights(subject: Subject) -> str:
    if subject.is_batch_style:
        return "fn(data, logprobs_list) sees every position and weighs on its own"
    if not all(part.spec.reads_tokens for part in subject.parts):
        return "it reads no tokens, so there are no weights"
    return ""


def _skip_nonlinear(subject: Subject) -> str:
    if subject.only is None:
        return "checked on each part of a mixture, not on the mixture"
    if subject.wants_weights:
        return "it asks for `weights` and weighs on its own"
    if subject.only.spec.per != "token":
        return f"it is per {subject.only.spec.per}: weights enter inside it"
    return _skip_without_weights(subject)


def _skip_visible(subject: Subject) -> str:
    if subject.wants_weights:
        return "it asks for `weights`, so it sees such a datum"
    return _skip_without_weights(subject)


CHECKS = (
    Check("masked_positions", masked_positions, _weighted, _skip_without_weights),
    Check("weight_linearity", weight_linearity, _with_factor, _skip_nonlinear),
    Check("appended_zero_weight_datum", appended_zero_weight_datum, _with_place, _skip_visible),
)
