"""Numerics: gradients are derivatives, extremes stay finite, low precision is computed in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossCheckError
from ....datums.inputs import key_kind
from ....datums.types import Datum, TensorData
from ...spec.layers import DATUM_OUTPUTS
from ...spec.top import TOP_LOGPROBS, TOP_TOKENS
from ...spec.vocabulary import STUDENT, TEACHER, TOKEN_EMBEDDINGS
from ..checks import Check, active_positions, batches, copied
from ..evaluation import Evaluation, evaluate, leaves, shown, terms
from ..loss_under_test import LossUnderTest, OutputLists
from ..outside import own_parameters
from ..stopped import StoppedValues

#: Of central differences, in float64 and in float32. Drawn values are multiples of 1/32, so that both are exact.
STEPS = {torch.float64: 1e-6, torch.float32: 2.0**-7}
#: If the slopes to the left and right differ by more than this share of them, a kink lies within the step.
KINKS = {torch.float64: 1e-4, torch.float32: 0.03}
#: How many entries of a parameter of the loss's own are moved.
PARAMETER_ENTRIES = 4
#: exp(88.7) overflows float32, exp(710) float64.
LOG_RATIOS = (20.0, 88.0, 89.0, 1e4)
EXTREME_EMBEDDINGS = (0.0, 1e4)


def gradient(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """The gradient is the derivative, by central differences in float64.

    A coordinate is skipped where the slopes over ±1e-6 differ by more than 1e-4 of them, because a kink lies there. For a
    loss that computes in float32 the step is 1/128, and slopes may differ by 3 %. Tensors that the loss detaches, or
    computes under no_grad, are held constant, as autograd does; a `torch.autograd.Function` is differentiated whole.
    """
    step = STEPS[loss.precision]
    whole = evaluate(loss, data, outputs)
    stopped = StoppedValues()
    middle = _value(loss, data, outputs, stopped)
    for name, tensors in outputs.items():
        if name in (TEACHER, TOP_TOKENS):  # which no gradient reaches
            continue
        for i, tensor in enumerate(tensors):
            for at in range(tensor.numel()):
                slope = float(whole.gradients[name][i].reshape(-1)[at])
                up, down = (_moved(loss, data, outputs, name, i, at, side, stopped) for side in (step, -step))
                if key_kind(name) == "logprob" and float(tensor.reshape(-1)[at]) > -step and not math.isfinite(up):
                    continue  # a log-probability is at most 0, so the loss need not be defined above
                _compare_slopes(loss, slope, (down, middle, up), f"datum {i}'s {name} at {at}")
    _parameter_gradients(loss, data, outputs, stopped, middle)


def extreme_logprobs(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, at: int) -> None:
    """With one log-ratio of ±20, ±88, ±89 or ±1e4, loss and gradients are finite, and other tokens' gradients unchanged.

    Computed in float32. For embeddings, one vector is all 0 or all ±1e4. at: the index of the active position or embedding.
    """
    base = evaluate(loss, data, outputs, torch.float32)
    for size in LOG_RATIOS if loss.reads_tokens else EXTREME_EMBEDDINGS:
        for grows in (True, False):
            changed, filled, place = with_extreme(loss, data, outputs, at, size, grows)
            extreme = evaluate(loss, changed, filled, torch.float32)
            what = f"{place} is {'+' if grows else '-'}{size:g}"
            _check_finite(extreme, what)
            if loss.couples == "token" and loss.reads_tokens:
                _same_elsewhere(base.gradients, extreme.gradients, active_positions(loss, data)[at], what)


def dtype(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """bfloat16 and float16 outputs are computed in float32, and float32 is within 1e-5 of float64."""
    exact = evaluate(loss, data, outputs)
    single = evaluate(loss, data, outputs, torch.float32)
    # To first order float32 changes the loss by its rounding error times this scale.
    scale = max(1.0, abs(float(exact.value)))
    for name, gradients in exact.gradients.items():
        scale += sum(float((g.abs() * (1 + x.abs())).sum()) for g, x in zip(gradients, outputs[name], strict=True))
    if loss.precision == torch.float64 and not abs(float(exact.value) - float(single.value)) <= 1e-5 * scale:
        raise LossCheckError(f"the loss is {shown(single.value)} in float32, but {shown(exact.value)} in float64")
    for low in (torch.bfloat16, torch.float16):
        halves = leaves(outputs, low)
        total, _ = terms(loss.wrapped, data, halves)
        raised, _ = terms(loss.wrapped, data, {n: _raised(tensors) for n, tensors in halves.items()})
        if total.dtype in (torch.bfloat16, torch.float16) or not torch.equal(total, raised):
            raise LossCheckError(
                f"from {low} outputs the total is {shown(total)} in {total.dtype}; computed in float32 it is {shown(raised)}"
            )


def _value(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, stopped: StoppedValues) -> float:
    """The loss, with its detached tensors held at their first values."""
    own = leaves(outputs, loss.dtype)
    with stopped:
        total, _ = terms(loss.wrapped, data, own)
    return float((total / loss.wrapped.count(data)).detach())


def _parameter_gradients(
    loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, stopped: StoppedValues, middle: float
) -> None:
    """The same for the first entries of every parameter that the loss keeps itself."""
    parameters = own_parameters(loss.wrapped)
    total, _ = terms(loss.wrapped, data, leaves(outputs, loss.dtype))
    value = (total / loss.wrapped.count(data)).sum()
    slopes = torch.autograd.grad(value, list(parameters.values()), allow_unused=True) if parameters else ()
    for (name, parameter), slope in zip(parameters.items(), slopes, strict=True):
        for at in range(min(parameter.numel(), PARAMETER_ENTRIES) if slope is not None else 0):
            entry = parameter.detach().reshape(-1)[at : at + 1]  # shares memory with the parameter
            kept, values = entry.clone(), []
            for side in (-1, 1):
                entry.copy_(kept + side * STEPS[loss.precision])
                values.append(_value(loss, data, outputs, stopped))
                entry.copy_(kept)
            given = float(slope.reshape(-1)[at])
            _compare_slopes(loss, given, (values[0], middle, values[1]), f"the loss's own {name} at {at}")


def _moved(
    loss: LossUnderTest,
    data: Sequence[Datum],
    outputs: OutputLists,
    name: str,
    datum: int,
    at: int,
    step: float,
    stopped: StoppedValues,
) -> float:
    """The loss with one coordinate moved by `step`."""
    moved = copied(outputs)
    moved[name][datum].reshape(-1)[at] += step
    return _value(loss, data, moved, stopped)


def _compare_slopes(loss: LossUnderTest, slope: float, values: tuple[float, float, float], place: str) -> None:
    """values: the loss at the coordinate less a step, there, and plus a step."""
    down, middle, up = values
    step = STEPS[loss.precision]
    right, left = (up - middle) / step, (middle - down) / step
    rounding = 16 * torch.finfo(loss.precision).eps * max(map(abs, values)) / step
    tolerance = KINKS[loss.precision] * max(1.0, abs(right), abs(left)) + rounding
    if abs(right - left) > tolerance:
        return
    if not abs(slope - (right + left) / 2) <= tolerance:
        raise LossCheckError(
            f"the gradient of {place} is {slope:.9g}, but finite differences give {(right + left) / 2:.9g}"
        )


def with_extreme(
    loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, at: int, size: float, grows: bool
) -> tuple[list[Datum], OutputLists, str]:
    """The data and outputs with one log-ratio (or embedding) of ±size, and a description of its position."""
    filled = copied(outputs)
    if not loss.reads_tokens:
        for name in DATUM_OUTPUTS:
            if name in filled:
                filled[name][at].fill_(size if grows else -size)
        return list(data), filled, f"embedding {at}"
    i, t = active_positions(loss, data)[at]
    references = [key for one in loss.reads for key in one.keys if one.kind == "logprob"]
    if loss.is_batch_style:
        references = [key for key in data[i].loss_fn_inputs if key_kind(key) == "logprob"]
    carried = dict(data[i].loss_fn_inputs)
    grows = grows and (TEACHER in filled or any(key in carried for key in references))
    for key in references:
        if key in carried:
            array = carried[key].to_numpy().copy()
            array[t] = np.where(array[t] == -np.inf, -np.inf, _extreme(array[t].shape, size if grows else 0))
            carried[key] = TensorData(array)
    if TOP_LOGPROBS in filled:
        row = filled[TOP_LOGPROBS][i][t]
        row.copy_(torch.from_numpy(_extreme(row.shape, size)).flip(0))
    if STUDENT in filled:
        own = filled[TEACHER if grows and TEACHER in filled else STUDENT][i]
        own[t] = torch.from_numpy(_extreme(own[t].shape, size)).log_softmax(-1)
    if TOKEN_EMBEDDINGS in filled:
        filled[TOKEN_EMBEDDINGS][i][t].fill_(size if grows else -size)
    if "logprobs" in filled:
        own = filled["logprobs"][i]
        own[t] = torch.from_numpy(_extreme(own[t].shape, 0 if grows else size))
    changed = [Datum(d.model_input, carried) if j == i else d for j, d in enumerate(data)]
    return changed, filled, f"the log-ratio of datum {i} at position {t}"


def _extreme(shape: tuple[int, ...], size: float) -> np.ndarray:
    """-0.5 lowered by `size`. For several candidates, probabilities that add up to exp(-0.5), the first one lowered."""
    values = np.full(shape, -0.5 - np.log(max(1, int(np.prod(shape)))))
    values.reshape(-1)[0] -= size
    return values


def _check_finite(evaluation: Evaluation, what: str) -> None:
    if not math.isfinite(float(evaluation.value)):
        raise LossCheckError(f"the loss is {float(evaluation.value)} when {what}")
    for name, tensors in evaluation.gradients.items():
        for i, tensor in enumerate(tensors):
            if not bool(torch.isfinite(tensor).all()):
                raise LossCheckError(f"the gradient of datum {i}'s {name} is {shown(tensor)} when {what}")


def _same_elsewhere(before: OutputLists, after: OutputLists, place: tuple[int, int], what: str) -> None:
    for name, tensors in before.items():
        for i, (a, b) in enumerate(zip(tensors, after[name], strict=True)):
            others = torch.ones(len(a), dtype=torch.bool)
            if i == place[0]:
                others[place[1]] = False
            if not torch.allclose(a[others], b[others], rtol=1e-5, atol=1e-6):
                raise LossCheckError(
                    f"the gradient of other tokens of datum {i} went from {shown(a[others])} to {shown(b[others])} when "
                    f"{what}, though the loss couples no tokens"
                )


@st.composite
def _with_position(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    example = draw(batches(loss))
    count = len(active_positions(loss, example["data"])) if loss.reads_tokens else len(example["data"])
    return {**example, "at": draw(st.integers(0, count - 1))}


@st.composite
def with_size(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    """Arguments of `with_extreme`."""
    sizes = st.sampled_from(LOG_RATIOS if loss.reads_tokens else EXTREME_EMBEDDINGS)
    return {**draw(_with_position(loss)), "size": draw(sizes), "grows": draw(st.booleans())}


@st.composite
def _off_the_grid(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    """Outputs with more digits than bfloat16 holds."""
    example = draw(batches(loss))
    return {**example, "outputs": {n: _scaled(tensors) for n, tensors in example["outputs"].items()}}


def _raised(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [one.float() if one.is_floating_point() else one for one in tensors]


def _scaled(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [one * 0.997 if one.is_floating_point() else one for one in tensors]


def _skip_batch_style(loss: LossUnderTest) -> str:
    return "fn(data, logprobs_list) gets the tensors in their own dtype" if loss.is_batch_style else ""


CHECKS = (
    Check("gradient", gradient, lambda loss: batches(loss, max_groups=3, max_length=3)),
    Check("extreme_logprobs", extreme_logprobs, _with_position),
    Check("dtype", dtype, _off_the_grid, _skip_batch_style),
)
