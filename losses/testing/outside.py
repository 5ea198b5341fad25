"""What lies outside a loss's arguments: what it keeps of its own, and what it shares with all code of the process."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..loss.loss import Loss, Mixture


def own_state(loss: Loss | Mixture) -> dict[str, Tensor]:
    """{name: tensor}: parameters and buffers of modules, and tensors, that a loss's functions keep."""
    kept: dict[str, Tensor] = {}
    for _, part in loss.parts:
        for name, value in _reached(part.spec.function, "the loss"):
            if isinstance(value, torch.nn.Module):
                kept.update({f"{name}.{key}": tensor for key, tensor in value.state_dict(keep_vars=True).items()})
            elif isinstance(value, Tensor):
                kept[name] = value
    return kept


def own_parameters(loss: Loss | Mixture) -> dict[str, Tensor]:
    """Those of `own_state` that are to be learned."""
    return {name: tensor for name, tensor in own_state(loss).items() if tensor.requires_grad and tensor.is_leaf}


def _reached(function: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(name, value): what a function is, is bound to, closes over, has as defaults and reads of its module."""
    if isinstance(function, torch.nn.Module | Tensor):
        yield name, function
    elif depth > 3:
        return
    elif isinstance(function, functools.partial):
        for value in (function.func, *function.args, *function.keywords.values()):
            yield from _reached(value, name, depth + 1)
    elif isinstance(function, MethodType):
        yield from _reached(function.__self__, type(function.__self__).__name__, depth + 1)
        yield from _reached(function.__func__, name, depth + 1)
    elif isinstance(function, FunctionType):
        for key, value in _names_of(function).items():
            yield from _reached(value, key, depth + 1)
    elif hasattr(function, "__dict__") and not isinstance(function, type) and callable(function):
        for key, value in vars(function).items():
            yield from _reached(value, key, depth + 1)


def _names_of(function: FunctionType) -> Mapping[str, Any]:
    code = function.__code__
    names = {key: function.__globals__[key] for key in code.co_names if key in function.__globals__}
    names = {key: value for key, value in names.items() if isinstance(value, torch.nn.Module | Tensor)}
    names.update(function.__kwdefaults__ or {})
    for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[key] = cell.cell_contents
        except ValueError:  # a name that is not bound yet
            continue
    if (inner := getattr(function, "__wrapped__", None)) is not None:
        names["__wrapped__"] = inner
    return names


def shared_state() -> dict[str, Any]:
    """What all code in a process shares, by a name for messages."""
    state = np.random.get_state(legacy=True)
    return {
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "NumPy's random state": (state[0], state[1].tobytes(), *state[2:]),  # type: ignore[union-attr]
        "Python's random state": random.getstate(),
        "whether gradients are on": torch.is_grad_enabled(),
        "torch's default dtype": torch.get_default_dtype(),
        "whether torch's algorithms must be deterministic": torch.are_deterministic_algorithms_enabled(),
        "the number of torch's threads": torch.get_num_threads(),
        "whether autocast is on": torch.is_autocast_enabled("cpu"),
        "whether anomalies are detected": torch.is_anomaly_enabled(),
    }


@contextmanager
def restored() -> Iterator[None]:
    """Restores shared state at the end, so that a loss that changes it does not affect other checks."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    before = shared_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        torch.set_grad_enabled(before["whether gradients are on"])
        torch.set_default_dtype(before["torch's default dtype"])
        torch.use_deterministic_algorithms(before["whether torch's algorithms must be deterministic"])
        torch.set_num_threads(before["the number of torch's threads"])
        torch.set_autocast_enabled("cpu", before["whether autocast is on"])
        torch.autograd.set_detect_anomaly(before["whether anomalies are detected"])
