"""The contract: a loss depends on everything it reads, and returns what it declares."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import torch
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossbookError, LossCheckError
from ....datums.inputs import key_kind
from ....datums.types import Datum, TensorData
from ...loss.loss import Loss
from ...spec.layers import LAYERS
from ...spec.top import TOP_TOKENS
from .. import strategies
from ..checks import Check, batches, ordinary
from ..evaluation import Evaluation, evaluate, leaves, same, select, shown, terms
from ..loss_under_test import LossUnderTest, OutputLists
from . import numerics

#: Changes of a number, tried in turn until the loss accepts one and something changes. The last is for shares, which are
#: at most 1.
MOVES = (
    lambda x: x * 2,
    lambda x: x / 2,
    lambda x: x + 0.1,
    lambda x: x - 0.1,
    lambda x: x + 1,
    lambda x: x - 1,
    lambda x: (x + 1) / 2,
)


def depends_on_outputs(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """On some data the gradient with respect to the model's outputs is not zero."""
    total, _ = terms(loss.wrapped, data, leaves(outputs, loss.dtype))
    names = " and ".join(loss.outputs)
    if not total.requires_grad:
        raise LossCheckError(
            f"the loss does not depend on its {names}: nothing would be learned. Was it built with .item(), .detach(), "
            ".data, torch.tensor(...), or under no_grad?"
        )
    whole = evaluate(loss, data, outputs)
    if not any(bool((g != 0).any()) for tensors in whole.gradients.values() for g in tensors):
        raise LossCheckError(f"the gradient with respect to {names} is zero everywhere")


def unreduced(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """One value per token, datum or pair, as declared; also for a single group of datums, and for no data."""
    bare = _without_metrics(loss.wrapped) if loss.only else loss.wrapped
    terms(bare, data, leaves(outputs, loss.dtype))
    if loss.couples == "batch":
        return
    terms(bare, *select(data, leaves(outputs, loss.dtype), loss.groups(data)[0]))
    terms(bare, [], {}, loss.dtype)


def live_config(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, item: str) -> None:
    """Every setting, input and model output changes the loss, its gradient or a metric on some data."""
    only = loss.only
    if only is None:
        raise LossCheckError("live_config is checked on each part of a mixture, not on the mixture")
    kind, _, name = item.partition(" ")
    if kind == "output":
        moved = {**outputs, name: [_lower(name, t) for t in outputs[name]]}
        has_effect = _differs(_or_error(loss, data, outputs), _or_error(loss, data, moved))
    elif kind == "input":
        has_effect = _input_has_effect(loss, data, outputs, name)
    else:
        has_effect = any(
            _differs(
                _or_error(loss.with_wrapped(one), data, outputs),
                _or_error(loss.with_wrapped(other), data, outputs),
            )
            for one, other in _variants(only, name)
        )
    if not has_effect:
        tried = ", ".join(map(repr, _alternatives(only, name))) if kind == "setting" else "another value, or none"
        raise LossCheckError(
            f"{item!r} is dead: the loss, its gradients and its metrics are the same with {tried}. Is it read at all?"
        )


def linear(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, others: OutputLists) -> None:
    """A loss that is declared linear has the same gradient for any logprobs, bit for bit."""
    one, other = (evaluate(loss, data, given).gradients["logprobs"] for given in (outputs, others))
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        if not torch.equal(a, b):
            raise LossCheckError(
                f"it is declared linear, but the gradient of datum {i}'s logprobs is {shown(a)} at {shown(outputs['logprobs'][i])} "
                f"and {shown(b)} at {shown(others['logprobs'][i])}: register it without linear=True"
            )


def _items(loss: LossUnderTest) -> list[str]:
    only = loss.only
    if only is None:
        return []
    outputs = [f"output {name}" for name in only.outputs] if len(only.outputs) > 1 else []
    settings = [one for one in only.settings if one != LAYERS or not only.layers]  # which says what the model gives
    return [*(f"setting {one}" for one in settings), *(f"input {one.name}" for one in only.spec.inputs), *outputs]


def _lower(name: str, output: Tensor) -> Tensor:
    """Another output in the same range, with other differences between its numbers."""
    if name == TOP_TOKENS:
        return output + 1
    return output * 1.5 - 0.25 if key_kind(name) == "logprob" else output * 1.5 + 0.25


def _input_has_effect(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, name: str) -> bool:
    whole = _or_error(loss, data, outputs)
    keys = next((one.keys for one in loss.reads if one.name == name), (name,))
    carried = [key for key in keys if key in data[0].loss_fn_inputs]
    if not carried:
        return False
    without = [Datum(d.model_input, {k: v for k, v in d.loss_fn_inputs.items() if k not in carried}) for d in data]
    optional = not next(one.required for one in loss.parts[0].spec.inputs if one.name == name)
    if optional and _differs(whole, _or_error(loss, without, outputs)):
        return True
    moved = [
        Datum(d.model_input, {**d.loss_fn_inputs, carried[0]: _moved(d.loss_fn_inputs[carried[0]], loss, name)})
        for d in data
    ]
    return _differs(whole, _or_error(loss, moved, outputs))


def _moved(value: TensorData, loss: LossUnderTest, name: str) -> TensorData:
    """Other values in the same range."""
    array = value.to_numpy()
    if name in loss.inputs:
        choices = list(loss.inputs[name])
        return TensorData(
            [choices[(choices.index(x) + 1) % len(choices)] for x in array.reshape(-1)], None, array.shape
        )
    if any(one.is_id for one in loss.reads if one.name == name):
        return TensorData(array // 2)  # which makes some equal that were not
    if name == "clip_high_threshold":
        return TensorData(array + 0.5)
    if name == "clip_low_threshold":
        return TensorData(array / 2)
    if key_kind(name) == "logprob":
        return TensorData(array - 0.5)
    return TensorData(1 - array)


def _alternatives(loss: Loss, name: str, beside: Mapping[str, Any] = types.MappingProxyType({})) -> list[Any]:
    """Other values that the setting accepts, with the settings `beside` it."""
    default = loss.settings[name]
    annotation = loss.spec.config.model_fields[name].annotation
    members = get_args(annotation) if get_origin(annotation) is Literal else ()
    candidates: list[Any] = [member for member in members if member != default]
    if isinstance(default, bool):
        candidates = [not default]
    elif isinstance(default, int | float):
        candidates = [type(default)(move(default)) for move in MOVES]
        candidates += [1, 2] if isinstance(default, int) else []  # data that is drawn has a few of anything
    elif not candidates:
        candidates = [0.5, 1.0, 2.0, 1, 2, True, False]
    accepted: list[Any] = []
    for value in candidates:
        if value != default and value not in accepted and _configured(loss, {**beside, name: value}) is not None:
            accepted.append(value)
    return accepted


def _variants(loss: Loss, name: str) -> Iterator[tuple[Loss, Loss]]:
    """Pairs of the loss that differ in one setting. Later pairs change another setting in both, because a setting may have
    an effect only while another is on."""
    beside = [{other: value} for other in loss.settings if other != name for value in _alternatives(loss, other)[:2]]
    for base in [{}, *beside]:
        one = _configured(loss, base)
        for value in _alternatives(loss, name, base):
            other = _configured(loss, {**base, name: value})
            if one is not None and other is not None:
                yield one, other


def _configured(loss: Loss, settings: Mapping[str, Any]) -> Loss | None:
    try:
        return Loss(loss.spec, {**loss.config.model_dump(exclude_none=True), **settings})
    except LossbookError:
        return None


def _or_error(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> Evaluation | str:
    """The evaluation, or the error: a setting that makes a loss raise has an effect too."""
    try:
        return evaluate(loss, data, outputs)
    except (ValueError, TypeError, RuntimeError, LookupError) as error:
        return f"{type(error).__name__}: {error}"


def _differs(a: Evaluation | str, b: Evaluation | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a is not b and a != b
    try:
        same(a, b, "", exactly=True)
    except LossCheckError:
        return True
    return False


def _without_metrics(loss: Any) -> Loss:
    """Checks only the loss value; metrics have their own check."""

    def call(*arguments: Any, **settings: Any) -> Any:
        returned = loss.spec.function(*arguments, **settings)
        return (returned[0], {}) if isinstance(returned, tuple) and len(returned) == 2 else returned

    return _with_function(loss, call)


def _with_function(loss: Loss, function: Any) -> Loss:
    return Loss(replace(loss.spec, function=function), loss.config.model_dump(exclude_none=True))


@st.composite
def _wide(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    """Ordinary data, or data with one extreme log-ratio, where alone a cap has an effect."""
    if not loss.reads_tokens or draw(st.booleans()):
        return draw(batches(loss))
    example = draw(numerics.with_size(loss))
    data, outputs, _ = numerics.with_extreme(loss, **example)
    return {"data": data, "outputs": outputs}


@st.composite
def _at_two_points(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    example = draw(batches(loss))
    return {**example, "others": draw(strategies.outputs(loss, example["data"]))}


def _skip_linear(loss: LossUnderTest) -> str:
    return _skip_mixture(loss) or ("" if loss.parts[0].spec.linear else "it is not declared linear in the logprobs")


def _skip_mixture(loss: LossUnderTest) -> str:
    return "checked on each part of a mixture, not on the mixture" if loss.only is None else ""


def _skip_live(loss: LossUnderTest) -> str:
    return _skip_mixture(loss) or ("" if _items(loss) else "it has no settings and reads no inputs")


CHECKS = (
    Check("depends_on_outputs", depends_on_outputs, ordinary, needs_one=True),
    Check("live_config", live_config, _wide, _skip_live, needs_one=True, items=_items),
    Check("linear", linear, _at_two_points, _skip_linear),
)
UNREDUCED = Check("unreduced", unreduced, ordinary)
