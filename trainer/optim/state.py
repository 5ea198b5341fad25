"""The state of an AdamW optimizer: what a saved one must be like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from ...datums.errors import CheckpointError

#: State of torch.optim.AdamW for a parameter: its number of steps and two running means of the gradient.
STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class PreparedState:
    """A state that an optimizer can take: its steps, and the step count and moments of each parameter."""

    steps: int
    moments: dict[torch.Tensor, Any]


def check_meta(meta: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> tuple[int, list[str]]:
    """The step count and the names with moments. Raises CheckpointError when they are of other parameters."""
    steps, known, with_moments = (meta.get(key) for key in ("steps", "parameters", "with_moments"))
    if meta.get("optimizer") != "adamw" or not isinstance(steps, int) or steps < 0:
        raise CheckpointError(
            f"this is no AdamW state: optimizer={meta.get('optimizer')!r}, steps={steps!r}. Load the weights only, "
            "or a checkpoint that was saved with its AdamW state"
        )
    if not isinstance(known, list) or not isinstance(with_moments, list):
        raise CheckpointError("this AdamW state does not list its 'parameters' and those 'with_moments'; save it again")
    for listed in (known, with_moments):
        if len(set(listed)) < len(listed):
            raise CheckpointError("the AdamW state names a parameter twice; save it again")
    for name in parameters:
        if name not in known:
            raise CheckpointError(
                f"the AdamW state has nothing about {name!r}, which is trained now. It was saved for another model, "
                f"rank or choice of layers ({len(known)} parameters there, {len(parameters)} here)"
            )
    for name in [*known, *with_moments]:
        if name not in parameters:
            raise CheckpointError(
                f"the AdamW state is about {name!r}, which is not trained here. It was saved for another model, rank "
                f"or choice of layers ({len(known)} parameters there, {len(parameters)} here)"
            )
    return steps, with_moments


def check_tensors(
    tensors: Mapping[str, torch.Tensor], with_moments: list[str], parameters: Mapping[str, Parameter], steps: int
) -> None:
    """Raise CheckpointError unless the state has exactly a step count and two valid moments for each name.

    steps: of the optimizer; no parameter has more.
    """
    expected = {f"{key}.{name}": (key, name) for name in with_moments for key in STATE_KEYS}
    for key in tensors:
        if key not in expected:
            raise CheckpointError(f"the AdamW state holds {key!r}, which its own list does not name; save it again")
    for full, (key, name) in expected.items():
        if full not in tensors:
            raise CheckpointError(f"the AdamW state of {name!r} is incomplete: {key!r} is missing; save it again")
        parameter, tensor = parameters[name], tensors[full]
        shape, dtype = ((), torch.float32) if key == "step" else (tuple(parameter.shape), parameter.dtype)
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise CheckpointError(
                f"{key!r} of {name!r} is {tensor.dtype} of shape {list(tensor.shape)}, but the parameter needs {dtype} "
                f"of shape {list(shape)}. The state was saved for a model of another size or precision"
            )
        if (why := _impossible(key, tensor, steps)) is not None:
            raise CheckpointError(
                f"{key!r} of {name!r} {why}, which no AdamW ever has. The state is damaged or was made up"
            )


def _impossible(key: str, tensor: torch.Tensor, steps: int) -> str | None:
    """What is wrong with the numbers of a step count or moment; None where nothing is."""
    if not bool(torch.isfinite(tensor).all()):
        return "holds NaN or infinite numbers"
    if key == "step" and not (float(tensor).is_integer() and 0 <= float(tensor) <= steps):
        return f"is {float(tensor):g} of {steps} steps"
    if key == "exp_avg_sq" and bool((tensor < 0).any()):
        return "holds negative numbers, though it is a mean of squares"
    return None
