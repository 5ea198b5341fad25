"""What a call changes for its own time, and what is put back when it fails: modes, gradients, random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...model.linear import set_adapter_dropout
from ...model.model import LoadedModel
from ...model.weights.narrow import narrow_weights
from ...sharding.gradients import abandon

#: The random state of the CPU and, where the model is on one, of its GPU.
RandomState = list[Tensor]


@contextmanager
def mode(model: LoadedModel, *, training: bool, adapters: bool = False) -> Iterator[None]:
    """Inside, the model drops what its own dropout says, and the adapters what theirs says."""
    module, lora = model.module, model.lora
    before, drops = module.training, adapters and lora is not None and lora.dropout > 0
    if before != training:  # either walks all modules, which takes as long as launching a layer
        module.train(training)
    if drops:
        set_adapter_dropout(module, on=True)
    model.adapters_drop = drops
    try:
        with narrow_weights(model):
            yield
    finally:
        if before != training:
            module.train(before)
        if drops:
            set_adapter_dropout(module, on=False)
        model.adapters_drop = False


@contextmanager
def all_or_nothing(model: LoadedModel, state: RandomState | None = None) -> Iterator[None]:
    """Accumulate into fresh gradients and add them to the old ones at the end; on an error put the old ones back.

    state: the random state to put back on an error; by default that of now.
    """
    parameters = list(model.trainable().values())
    before = [p.grad for p in parameters]
    state = random_state(model.device) if state is None else state
    for p in parameters:
        p.grad = None
    try:
        yield
    except BaseException:
        for p, old in zip(parameters, before, strict=True):
            p.grad = old
        set_random_state(state, model.device)
        abandon(model)
        raise
    both = [(old, p.grad) for p, old in zip(parameters, before, strict=True) if old is not None and p.grad is not None]
    if both:
        olds, news = zip(*both, strict=True)
        torch._foreach_add_(olds, news)  # type: ignore[attr-defined]
    for p, old in zip(parameters, before, strict=True):
        if old is not None:
            p.grad = old


def random_state(device: torch.device) -> RandomState:
    """The state from which the next random numbers come."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_state(states: RandomState, device: torch.device) -> None:
    """Go on from another state."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def restoring_random_state(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the state at the end is that of the beginning."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
