"""Weights: weight 0 hides a position entirely, any other weight multiplies its value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from ....datums.errors import LossCheckError
from ....datums.types import Datum, TensorData
from .. import strategies
from ..checks import Check, copied
from ..evaluation import evaluate, same, shown
from ..loss_under_test import LossUnderTest, OutputLists

#: Values that masked positions are filled with, and where: in inputs, outputs or both.
POISONS = ((math.nan, "both"), (math.inf, "both"), (-math.inf, "both"), (1e30, "both"))
#: The same for ids of tokens.
POISON_ID = 2**40
#: For losses that read `weights`: NaN and infinity reach them as 0, any other number as it is.
NAN_POISONS = POISONS[:3]
FINITE_POISONS = ((-1e4, "inputs"), (-1e4, "outputs"), (-20.0, "both"))
#: A key that no loss reads.
OTHER_KEY = "other_weights"
#: Reductions under which the value stays the same when all weights are multiplied.
INVARIANT = ("token-mean", "seq-mean-token-mean", "prompt-mean")


def masked_positions(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Values at a position of weight 0 change no bit of loss, gradients or metrics."""
    whole = evaluate(loss, data, outputs)
    for poison, where in (*NAN_POISONS, *FINITE_POISONS) if loss.wants_weights else POISONS:
        poisoned_data, poisoned_outputs, hidden = _poisoned(loss, data, outputs, poison, where)
        other = evaluate(loss, poisoned_data, poisoned_outputs)
        how = f"when masked positions were filled with {poison} ({where})"
        same(whole, other, how, exactly=not loss.wants_weights)
        for name, tensors in other.gradients.items():
            for i, (gradient, mask) in enumerate(zip(tensors, hidden, strict=True)):
                masked = gradient[mask if gradient.shape == mask.shape else mask.reshape(len(mask), -1).all(1)]
                if bool((masked != 0).any()):
                    raise LossCheckError(f"masked positions of datum {i} have gradient {shown(masked)} in their {name}")


def weight_linearity(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, factor: float) -> None:
    """With all weights times c, sums and their gradients grow by c, and means by weight do not change."""
    only = loss.only
    if only is None:
        raise LossCheckError("weight_linearity is checked on each part of a mixture, not on the mixture")
    (key,) = loss.weight_keys
    scaled = [_with_weights(d, {key: d.loss_fn_inputs[key].to_numpy() * np.float32(factor)}) for d in data]
    expected = 1.0 if only.reduction in INVARIANT else factor
    whole, other = evaluate(loss, data, outputs), evaluate(loss, scaled, outputs)
    pairs = [("the loss", whole.value, other.value)]
    for name in whole.gradients:
        pairs += [
            (f"the gradient of datum {i}'s {name}", a, b)
            for i, (a, b) in enumerate(zip(whole.gradients[name], other.gradients[name], strict=True))
        ]
    for what, before, after in pairs:
        if not torch.allclose(
            before * expected, after, rtol=whole.tolerance, atol=whole.tolerance * max(1.0, abs(expected))
        ):
            raise LossCheckError(
                f"{what} went from {shown(before)} to {shown(after)} when all weights were multiplied by {factor}: under "
                f"reduction {only.reduction!r} it must be multiplied by {expected:g}"
            )


def appended_zero_weight_datum(
    loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, source: int, place: int
) -> None:
    """A datum (or pair) whose weights are all 0 changes nothing, at any position in the batch."""
    step = 2 if loss.has_pairs else 1
    copies = range(source * step, (source + 1) * step)
    at = place * step
    weights = [{key: data[i].loss_fn_inputs[key].to_numpy() for key in loss.weight_keys} for i in copies]
    zeros = [{key: np.zeros_like(array) for key, array in own.items()} for own in weights]
    masked = [_with_weights(data[i], own) for i, own in zip(copies, zeros, strict=True)]
    longer = [*data[:at], *masked, *data[at:]]
    others = {n: [*tensors[:at], *(tensors[i] for i in copies), *tensors[at:]] for n, tensors in outputs.items()}
    whole, other = evaluate(loss, data, outputs), evaluate(loss, longer, others)
    for name, gradients in other.gradients.items():
        for gradient in gradients[at : at + step]:
            if bool((gradient != 0).any()):
                raise LossCheckError(f"a datum of weight 0 has the gradient {shown(gradient)} in its {name}")
        del gradients[at : at + step]
    same(whole, other, f"when a datum of weight 0 was put at place {at}")


def _poisoned(
    loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, poison: float, where: str
) -> tuple[list[Datum], OutputLists, list[torch.Tensor]]:
    """The data and outputs with `poison` at every position of weight 0, and the masks of these positions."""
    filled = copied(outputs)
    changed: list[Datum] = []
    hidden: list[torch.Tensor] = []
    read = {key: one.per for one in loss.reads for key in one.keys}
    for i, datum in enumerate(data):
        masks = [
            datum.loss_fn_inputs[key].to_numpy().reshape(_weighed(loss, key, datum)) == 0 for key in loss.weight_keys
        ]
        widest = max(one.ndim for one in masks)
        masks = [one if one.ndim == widest else one[:, None] for one in masks]
        mask = np.all(np.broadcast_arrays(*masks), axis=0)
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
            at = torch.from_numpy(mask if tensors[i].ndim == mask.ndim else by_row)
            tensors[i][at] = poison if tensors[i].is_floating_point() else POISON_ID
    return changed, filled, hidden


def weights_by_another_key(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Weights under another key mean the same, whatever stands under the usual one."""
    only = loss.only
    if only is None:
        raise LossCheckError("weights_by_another_key is checked on each part of a mixture, not on the mixture")
    (key,) = loss.weight_keys
    moved = [
        _with_weights(d, {OTHER_KEY: (own := d.loss_fn_inputs[key].to_numpy()), key: 1 - (own != 0)}) for d in data
    ]
    renamed = type(only)(only.spec, {**only.config.model_dump(exclude_none=True), "weights": OTHER_KEY})
    other = evaluate(loss.with_wrapped(renamed), moved, outputs)
    same(evaluate(loss, data, outputs), other, f"when its weights stood under {OTHER_KEY!r}", exactly=True)


def _with_weights(datum: Datum, weights: Mapping[str, np.ndarray]) -> Datum:
    given = {key: TensorData(array.astype(np.float32)) for key, array in weights.items()}
    return Datum(datum.model_input, {**datum.loss_fn_inputs, **given})


@st.composite
def weighted(draw: Any, loss: LossUnderTest, **options: Any) -> dict[str, Any]:
    """As `batches`, always with weights."""
    data = draw(strategies.datums(loss, **options))
    for key in loss.weight_keys:
        shapes = [_weighed(loss, key, d) for d in data]
        given = [d.loss_fn_inputs.get(key) for d in data]
        weights = [np.ones(s) if w is None else w.to_numpy().reshape(s) for w, s in zip(given, shapes, strict=True)]
        data = [_with_weights(d, {key: own}) for d, own in zip(data, weights, strict=True)]
    return {"data": data, "outputs": draw(strategies.outputs(loss, data))}


def _weighed(loss: LossUnderTest, key: str, datum: Datum) -> tuple[int, ...]:
    """The shape of the weights under this key: the targets', or one per position for a loss over candidates."""
    targets = tuple(datum.loss_fn_inputs["target_tokens"].shape)
    return targets[:1] if key in loss.weight_keys_of_candidates else targets


@st.composite
def _with_factor(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    # Few digits, so that weights times c are exact in float32.
    factors = (2.0, 0.5, 3.0, -1.0, -2.5, 0.25) if loss.takes_real_weights else (2.0, 0.5, 3.0, 0.25)
    return {**draw(weighted(loss)), "factor": draw(st.sampled_from(factors))}


@st.composite
def _with_place(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    example = draw(weighted(loss))
    groups = len(example["data"]) // (2 if loss.has_pairs else 1)
    return {**example, "source": draw(st.integers(0, groups - 1)), "place": draw(st.integers(0, groups))}


def _skip_without_weights(loss: LossUnderTest) -> str:
    if loss.is_batch_style:
        return "fn(data, logprobs_list) sees every position and applies weights itself"
    if not all(part.spec.reads_tokens for part in loss.parts):
        return "it reads no tokens, so there are no weights"
    return ""


def _skip_key(loss: LossUnderTest) -> str:
    if loss.only is None:
        return "checked on each part of a mixture, not on the mixture"
    return _skip_without_weights(loss)


def _skip_nonlinear(loss: LossUnderTest) -> str:
    if loss.only is None:
        return "checked on each part of a mixture, not on the mixture"
    if loss.wants_weights:
        return "it reads `weights` and applies them itself"
    if loss.only.spec.per != "token":
        return f"it is a loss per {loss.only.spec.per}, which applies weights inside"
    return _skip_without_weights(loss)


def _skip_visible(loss: LossUnderTest) -> str:
    if loss.wants_weights:
        return "it reads `weights`, so it sees such a datum"
    if loss.is_laid_out:
        return "it knows datums by their places in the batch"
    return _skip_without_weights(loss)


CHECKS = (
    Check("masked_positions", masked_positions, weighted, _skip_without_weights),
    Check("weight_linearity", weight_linearity, _with_factor, _skip_nonlinear),
    Check("weights_by_another_key", weights_by_another_key, weighted, _skip_key),
    Check("appended_zero_weight_datum", appended_zero_weight_datum, _with_place, _skip_visible),
)
