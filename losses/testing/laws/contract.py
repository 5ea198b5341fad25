"""The contract: a loss depends on what it says it reads, returns what it declares, and touches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import torch
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossbookError, LossCheckError
from ....datums.key_kinds import key_kind
from ....datums.types import Datum, TensorData
from ...loss.loss import Loss
from .. import checks as protocol
from .. import strategies
from ..checks import Check
from ..evaluation import Evaluation, evaluate, leaves, same, select, shown
from ..loss_under_test import OutputLists, Subject, terms
from . import numerics

#: What a number is moved to, in turn, until the loss's own validation takes it and something changes.
#: The last is for shares, which are at most 1.
MOVES = (
    lambda x: x * 2,
    lambda x: x / 2,
    lambda x: x + 0.1,
    lambda x: x - 0.1,
    lambda x: x + 1,
    lambda x: x - 1,
    lambda x: (x + 1) / 2,
)


def depends_on_outputs(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Something can be learned: on some data the gradient with respect to the model's outputs is not zero."""
    own = leaves(outputs)
    total, _ = terms(subject.loss, data, own)
    names = " and ".join(subject.outputs)
    if not total.requires_grad:
        raise LossCheckError(
            f"the loss does not depend on its {names}: nothing would be learned. Was it built with .item(), .detach(), "
            ".data, torch.tensor(...), or under no_grad?"
        )
    whole = evaluate(subject, data, outputs)
    if not any(bool((g != 0).any()) for tensors in whole.gradients.values() for g in tensors):
        raise LossCheckError(f"the gradient with respect to {names} is zero everywhere")


def pure(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """The loss changes nothing it is given, and gives the same for the same."""
    before = [{key: value.to_numpy().copy() for key, value in datum.loss_fn_inputs.items()} for datum in data]
    kept = {name: [tensor.clone() for tensor in tensors] for name, tensors in outputs.items()}
    changed: list[str] = []
    watched = replace(subject, loss=_watched(subject.loss, changed)) if subject.only else subject
    first = evaluate(watched, data, outputs)
    if changed:
        raise LossCheckError(f"the loss changes its {changed[0]} in place: other losses read the same tensor")
    for i, (datum, arrays) in enumerate(zip(data, before, strict=True)):
        for key, array in arrays.items():
            if not (datum.loss_fn_inputs[key].to_numpy() == array).all():
                raise LossCheckError(f"the loss changed {key!r} of datum {i}")
    if any(not torch.equal(a, b) for name in kept for a, b in zip(kept[name], outputs[name], strict=True)):
        raise LossCheckError(f"the loss changed its {' or '.join(outputs)}")
    same(first, evaluate(subject, data, outputs), "when the same was computed again", exactly=True)


def unreduced(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """One value a token, datum or pair, as declared: also of one, and of none."""
    bare = _without_metrics(subject.loss) if subject.only else subject.loss
    terms(bare, data, leaves(outputs))
    if subject.couples == "batch":
        return
    terms(bare, *select(data, leaves(outputs), subject.units(data)[0]))
    terms(bare, [], {})


def live_config(subject: Subject, data: Sequence[Datum], outputs: OutputLists, item: str) -> None:
    """Every setting, and every input, changes the loss, its gradient or a metric on some data."""
    only = subject.only
    if only is None:
        raise LossCheckError("live_config is checked on each part of a mixture, not on the mixture")
    kind, _, name = item.partition(" ")
    if kind == "input":
        alive = _input_is_alive(subject, data, outputs, name)
    else:
        alive = any(
            _differs(
                _or_error(replace(subject, loss=one), data, outputs),
                _or_error(replace(subject, loss=other), data, outputs),
            )
            for one, other in _variants(only, name)
        )
    if not alive:
        tried = ", ".join(map(repr, _alternatives(only, name))) if kind == "setting" else "another value, or none"
        raise LossCheckError(
            f"{item!r} is dead: the loss, its gradients and its metrics are the same with {tried}. Is it read at all?"
        )


def linear(subject: Subject, data: Sequence[Datum], outputs: OutputLists, others: OutputLists) -> None:
    """A loss that is declared linear has one and the same gradient whatever the logprobs are, bit for bit."""
    one, other = (evaluate(subject, data, given).gradients["logprobs"] for given in (outputs, others))
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        if not torch.equal(a, b):
            raise LossCheckError(
                f"it is declared linear, but the gradient of datum {i}'s logprobs is {shown(a)} at {shown(outputs['logprobs'][i])} "
                f"and {shown(b)} at {shown(others['logprobs'][i])}: register it without linear=True"
            )


def _items(subject: Subject) -> list[str]:
    only = subject.only
    if only is None:
        return []
    return [f"setting {name}" for name in only.settings] + [f"input {one.name}" for one in only.spec.inputs]


def _input_is_alive(subject: Subject, data: Sequence[Datum], outputs: OutputLists, name: str) -> bool:
    whole = _or_error(subject, data, outputs)
    keys = next((one.keys for one in subject.reads if one.name == name), (name,))
    carried = [key for key in keys if key in data[0].loss_fn_inputs]
    if not carried:
        return False
    without = [Datum(d.model_input, {k: v for k, v in d.loss_fn_inputs.items() if k not in carried}) for d in data]
    optional = not next(one.required for one in subject.parts[0].spec.inputs if one.name == name)
    if optional and _differs(whole, _or_error(subject, without, outputs)):
        return True
    moved = [
        Datum(d.model_input, {**d.loss_fn_inputs, carried[0]: _moved(d.loss_fn_inputs[carried[0]], subject, name)})
        for d in data
    ]
    return _differs(whole, _or_error(subject, moved, outputs))


def _moved(value: TensorData, subject: Subject, name: str) -> TensorData:
    """Other numbers in the same range."""
    array = value.to_numpy()
    if name in subject.inputs:
        choices = list(subject.inputs[name])
        return TensorData(
            [choices[(choices.index(x) + 1) % len(choices)] for x in array.reshape(-1)], None, array.shape
        )
    if name == "clip_high_threshold":
        return TensorData(array + 0.5)
    if name == "clip_low_threshold":
        return TensorData(array / 2)
    if key_kind(name) == "logprob":
        return TensorData(array - 0.5)
    return TensorData(1 - array)


def _alternatives(loss: Loss, name: str) -> list[Any]:
    """Values that the setting could have instead, those that its own validation takes."""
    default = loss.settings[name]
    annotation = loss.spec.config.model_fields[name].annotation
    members = get_args(annotation) if get_origin(annotation) is Literal else ()
    candidates: list[Any] = [member for member in members if member != default]
    if isinstance(default, bool):
        candidates = [not default]
    elif isinstance(default, int | float):
        candidates = [type(default)(move(default)) for move in MOVES]
    elif not candidates:
        candidates = [0.5, 1.0, 2.0, 1, 2, True, False]
    taken: list[Any] = []
    for value in candidates:
        if value != default and value not in taken and _configured(loss, {name: value}) is not None:
            taken.append(value)
    return taken


def _variants(loss: Loss, name: str) -> Iterator[tuple[Loss, Loss]]:
    """The loss beside the loss with one setting moved; then again with another moved in both, for a setting may work
    only while another is on."""
    beside = [{other: value} for other in loss.settings if other != name for value in _alternatives(loss, other)[:2]]
    for base in [{}, *beside]:
        one = _configured(loss, base)
        for value in _alternatives(loss, name):
            other = _configured(loss, {**base, name: value})
            if one is not None and other is not None:
                yield one, other


def _configured(loss: Loss, settings: Mapping[str, Any]) -> Loss | None:
    try:
        return Loss(loss.spec, {**loss.config.model_dump(exclude_none=True), **settings})
    except LossbookError:
        return None


def _or_error(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> Evaluation | str:
    """The evaluation, or the refusal: a setting that makes a loss refuse its data is alive too."""
    try:
        return evaluate(subject, data, outputs)
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


def _watched(loss: Any, changed: list[str]) -> Loss:
    """The loss, noting every argument that its function changes in place."""

    def call(*arguments: Any, **settings: Any) -> Any:
        versions = [a._version if isinstance(a, Tensor) else 0 for a in arguments]
        returned = loss.spec.function(*arguments, **settings)
        named = zip(loss.spec.parameters, arguments, versions, strict=False)
        changed.extend(name for name, a, version in named if isinstance(a, Tensor) and a._version != version)
        return returned

    return _with_function(loss, call)


def _without_metrics(loss: Any) -> Loss:
    """The loss with its values alone, so that what is wrong with its metrics is not said of them."""

    def call(*arguments: Any, **settings: Any) -> Any:
        returned = loss.spec.function(*arguments, **settings)
        return (returned[0], {}) if isinstance(returned, tuple) and len(returned) == 2 else returned

    return _with_function(loss, call)


def _with_function(loss: Loss, function: Any) -> Loss:
    return Loss(replace(loss.spec, function=function), loss.config.model_dump(exclude_none=True))


@st.composite
def _wide(draw: Any, subject: Subject) -> dict[str, Any]:
    """Ordinary data, or data with one extreme log-ratio: a cap is alive only there."""
    if not subject.reads_tokens or draw(st.booleans()):
        return draw(protocol.batches(subject))
    example = draw(numerics.with_size(subject))
    data, outputs, _ = numerics.with_extreme(subject, **example)
    return {"data": data, "outputs": outputs}


@st.composite
def _at_two_points(draw: Any, subject: Subject) -> dict[str, Any]:
    example = draw(protocol.batches(subject))
    return {**example, "others": draw(strategies.outputs(subject, example["data"]))}


def _skip_linear(subject: Subject) -> str:
    return _skip_mixture(subject) or (
        "" if subject.parts[0].spec.linear else "it is not declared linear in the logprobs"
    )


def _skip_mixture(subject: Subject) -> str:
    return "checked on each part of a mixture, not on the mixture" if subject.only is None else ""


def _skip_live(subject: Subject) -> str:
    return _skip_mixture(subject) or ("" if _items(subject) else "it has no settings and reads no inputs")


CHECKS = (
    Check("depends_on_outputs", depends_on_outputs, protocol.ordinary, needs_one=True),
    Check("pure", pure, protocol.ordinary),
    Check("live_config", live_config, _wide, _skip_live, needs_one=True, items=_items),
    Check("linear", linear, _at_two_points, _skip_linear),
)
UNREDUCED = Check("unreduced", unreduced, protocol.ordinary)
