"""State: a loss changes nothing that outlives its call, keeps nothing, and draws nothing from shared generators."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....datums.errors import LossCheckError
from ....datums.types import Datum
from ...batch.seqs import Seqs
from ...loss.loss import Loss, Mixture
from ..checks import Check, ordinary
from ..evaluation import evaluate, leaves, same, terms
from ..loss_under_test import LossUnderTest, OutputLists
from ..outside import own_parameters, own_state, restored, shared_state

#: A state that no loss leaves behind: were it the one before, a loss that seeds a generator would change nothing.
UNLIKELY_SEED = 20_260_728


def pure(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """The loss changes none of its arguments and nothing of its own, and gives the same result for the same data."""
    before = [{key: value.to_numpy().copy() for key, value in datum.loss_fn_inputs.items()} for datum in data]
    kept = {name: [tensor.clone() for tensor in tensors] for name, tensors in outputs.items()}
    own = {name: tensor.detach().clone() for name, tensor in own_state(loss.wrapped).items()}
    changed: list[str] = []
    watched = loss.with_wrapped(_watched(loss.wrapped, changed))
    first = evaluate(watched, data, outputs)
    if changed:
        raise LossCheckError(f"the loss changes its {changed[0]} in place: other losses read the same tensor")
    for i, (datum, arrays) in enumerate(zip(data, before, strict=True)):
        for key, array in arrays.items():
            if not (datum.loss_fn_inputs[key].to_numpy() == array).all():
                raise LossCheckError(f"the loss changed {key!r} of datum {i}")
    if any(not torch.equal(a, b) for name in kept for a, b in zip(kept[name], outputs[name], strict=True)):
        raise LossCheckError(f"the loss changed its {' or '.join(outputs)}")
    for name, tensor in own_state(loss.wrapped).items():
        if name in own and not _is_same(tensor, own[name]):
            raise LossCheckError(
                f"the loss changes {name}, which it keeps between calls: micro-batches would see each other"
            )
    same(first, evaluate(loss, data, outputs), "when the same was computed again", exactly=True)


def global_state(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """The loss leaves random generators and torch's settings as they were."""
    with restored():
        torch.manual_seed(UNLIKELY_SEED)
        np.random.seed(UNLIKELY_SEED)
        random.seed(UNLIKELY_SEED)
        before = shared_state()
        terms(loss.wrapped, data, leaves(outputs, loss.dtype), loss.dtype)
        after = shared_state()
    for name, value in before.items():
        if value != after[name]:
            raise LossCheckError(
                f"the loss changes {name}, which everything else in the process shares. Use a torch.Generator of its own "
                "for random numbers, and a `with` block for settings"
            )


def keeps_nothing(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """No tensor passed to the loss is alive after the call, so that memory does not grow over steps."""
    alive: list[tuple[str, weakref.ref[Tensor]]] = []
    given = loss.with_wrapped(_remembered(loss.wrapped, alive)) if loss.only else loss
    terms(given.wrapped, data, leaves(outputs, loss.dtype), loss.dtype)
    if any(reference() is not None for _, reference in alive):
        gc.collect(1)  # what the call itself made; older objects take long, and are not its own
    names = [name for name, reference in alive if reference() is not None]
    if names:
        raise LossCheckError(
            f"the loss keeps its {names[0]} after the call, with the graph behind it: memory grows at each step"
        )


def parameters(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, item: str) -> None:
    """Every parameter of the loss's own gets a gradient on some data."""
    parameter = own_parameters(loss.wrapped)[item]
    total, _ = terms(loss.wrapped, data, leaves(outputs, loss.dtype), loss.dtype)
    (slope,) = torch.autograd.grad(total.sum(), parameter, allow_unused=True) if total.requires_grad else (None,)
    if slope is None or not bool((slope != 0).any()):
        raise LossCheckError(
            f"{item} is a parameter of shape {list(parameter.shape)} that gets no gradient: it would never be learned. Give it "
            "requires_grad=False if it is a constant, or let the loss depend on it without .detach(), .item() or no_grad"
        )


def _watched(loss: Loss | Mixture, changed: list[str]) -> Loss | Mixture:
    """The loss; `changed` collects the name of every argument that a function changes in place, also through NumPy."""
    if isinstance(loss, Mixture):
        return Mixture([(factor, _watched_loss(part, changed)) for factor, part in loss.parts])
    return _watched_loss(loss, changed)


def _watched_loss(loss: Loss, changed: list[str]) -> Loss:
    def call(*arguments: Any, **settings: Any) -> Any:
        versions = [a._version if isinstance(a, Tensor) else 0 for a in arguments]
        before = [_copied(a) for a in arguments]
        returned = loss.spec.function(*arguments, **settings)
        for name, a, version, values in zip(loss.spec.parameters, arguments, versions, before, strict=False):
            is_same = all(_is_same(x, y) for x, y in zip(_tensors(a), values, strict=True))
            if not is_same or (isinstance(a, Tensor) and a._version != version):
                changed.append(name)
        return returned

    return loss if loss.spec.is_batch_style else Loss(replace(loss.spec, function=call), _config(loss))


def _remembered(loss: Any, alive: list[tuple[str, weakref.ref[Tensor]]]) -> Loss:
    """The loss; `alive` collects weak references to the tensors that its function is given."""

    def call(*arguments: Any, **settings: Any) -> Any:
        named = zip(_names(loss), arguments, strict=False)
        alive.extend((name, weakref.ref(tensor)) for name, a in named for tensor in _own_tensors(a))
        return loss.spec.function(*arguments, **settings)

    return Loss(replace(loss.spec, function=call), _config(loss))


def _names(loss: Loss) -> Sequence[str]:
    return ("data", *loss.spec.outputs) if loss.spec.is_batch_style else loss.spec.parameters


def _own_tensors(argument: Any) -> list[Tensor]:
    """Tensors with a graph: what belongs to one call."""
    tensors = argument if isinstance(argument, list) else [argument]
    return [one for one in tensors if isinstance(one, Tensor) and one.requires_grad]


def _config(loss: Loss) -> dict[str, Any]:
    return loss.config.model_dump(exclude_none=True)


def _tensors(argument: Any) -> list[Tensor]:
    if isinstance(argument, Seqs):
        return [argument.lengths, argument.index]
    return [argument] if isinstance(argument, Tensor) else []


def _copied(argument: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(argument)]


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN included."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _skip_leaks(loss: LossUnderTest) -> str:
    return "checked on each part of a mixture, not on the mixture" if loss.only is None else ""


def _skip_parameters(loss: LossUnderTest) -> str:
    return "" if own_parameters(loss.wrapped) else "it has no parameters of its own"


CHECKS = (
    Check("pure", pure, ordinary),
    Check("global_state", global_state, ordinary),
    Check("keeps_nothing", keeps_nothing, ordinary, _skip_leaks, needs_one=True),
    Check(
        "parameters",
        parameters,
        ordinary,
        _skip_parameters,
        needs_one=True,
        items=lambda loss: list(own_parameters(loss.wrapped)),
    ),
)
