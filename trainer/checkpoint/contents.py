"""What a client's checkpoint must hold: its part of the manifest, and tensors that a model, an optimizer and torch can take.

The hashes of a checkpoint show that nobody changed it by accident. Whoever writes one can write anything, so all of it is
checked before a client takes any of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from ...datums.errors import CheckpointError
from .folder import Checkpoint
from .manifest import MANIFEST_NAME

Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class AdapterPart(_Part):
    """The arguments of `add_lora` that make the same adapter."""

    rank: Annotated[int, Field(ge=1, le=2**31)]
    alpha: Annotated[float, Field(gt=0)]
    train_mlp: bool
    train_attn: bool
    train_unembed: bool
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    targets: list[Name] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def arguments(self) -> dict[str, Any]:
        """The arguments themselves."""
        return self.model_dump()


class OptimizerPart(_Part):
    """How often the optimizer has stepped, and for which parameters it has moments."""

    optimizer: Literal["adamw"]
    steps: Count
    parameters: list[Name]
    with_moments: list[Name]


class AccumulatedPart(_Part):
    """What was added to the gradients since the last step."""

    calls: Count
    tokens: Count
    sequences: Count
    means: list[Name]


class Contents(_Part):
    """The manifest of a checkpoint of `save_state` ("training") or of weights alone ("weights")."""

    kind: Literal["training", "weights"]
    base_model: Name
    vocab_size: Annotated[int, Field(ge=1)]
    lora: AdapterPart | None
    value_head: Literal[True] | None = None  # absent in older checkpoints, which had none
    projection_head_dim: Annotated[int, Field(ge=2)] | None = None  # absent where a value head gives one number
    base_weights: Literal["4bit"] | None = None  # absent where the base weights are full
    masked_lm_head: Literal[True] | None = None  # absent where there is none
    optimizer: OptimizerPart | None = None
    accumulated: AccumulatedPart | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in ("optimizer", "accumulated"):
            given = getattr(self, name) is not None
            if given != (self.kind == "training"):
                raise ValueError(f"a checkpoint of kind {self.kind!r} {'has' if given else 'lacks'} {name!r}")
        return self


def contents_of(checkpoint: Checkpoint) -> Contents:
    """The manifest, checked. Raises CheckpointError naming the file and the first key that is wrong."""
    try:
        return Contents.model_validate(checkpoint.manifest)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("manifest", *first["loc"])))
        raise CheckpointError(
            f"{checkpoint.path / MANIFEST_NAME}: {key}: {first['msg']}. It was written by lossbook "
            f"{checkpoint.versions.get('lossbook')}; read it with that version, or use another checkpoint"
        ) from None


def check_groups(checkpoint: Checkpoint, contents: Contents) -> None:
    """Raise CheckpointError for a file of tensors that is missing, or that is not known."""
    needed = ["weights", "optimizer", "random"] if contents.kind == "training" else ["weights"]
    allowed = [*needed, "gradients"] if contents.kind == "training" else needed
    for group in needed:
        if group not in checkpoint.tensors:
            raise CheckpointError(
                f"{checkpoint.path} lacks {group}.safetensors, which a {contents.kind} checkpoint has"
            )
    for group in checkpoint.tensors:
        if group not in allowed:
            raise CheckpointError(
                f"{checkpoint.path} holds {checkpoint.file(group).name}, which this lossbook does not know and would not restore"
            )
    calls = 0 if contents.accumulated is None else contents.accumulated.calls
    if checkpoint.tensors.get("gradients") and not calls:
        raise CheckpointError(f"{checkpoint.path / MANIFEST_NAME}: accumulated.calls is 0, but there are gradients")


def check_like(
    file: Path, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], *, complete: bool = True
) -> None:
    """Raise CheckpointError unless the tensors have the names, shapes and dtypes of the parameters, and are finite.

    file: where the tensors came from. complete: whether each parameter needs one.
    """
    if complete and (missing := [key for key in parameters if key not in tensors]):
        raise CheckpointError(f"{file} has no {missing[0]!r}")
    for key, tensor in tensors.items():
        if key not in parameters:
            raise CheckpointError(f"{file} has {key!r}, which is not trained here")
        parameter = parameters[key]
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise CheckpointError(
                f"{file}: {key!r} is {list(tensor.shape)} {tensor.dtype}, but the model's is "
                f"{list(parameter.shape)} {parameter.dtype}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{file}: {key!r} holds NaN or infinite numbers")


def check_random(file: Path, states: Mapping[str, Tensor], device: torch.device) -> None:
    """Raise CheckpointError unless scratch generators take the states, and draw finite numbers with them."""
    for key, state in states.items():
        if key not in ("cpu", "cuda"):
            raise CheckpointError(f"{file}: {key!r} is no device whose random state is known")
        if state.dtype != torch.uint8 or state.ndim != 1:
            raise CheckpointError(f"{file}: {key!r} is {list(state.shape)} {state.dtype}, and no random state")
        if key == "cpu" or device.type == "cuda":
            _try_random(file, key, state, torch.device("cpu") if key == "cpu" else device)
    if "cpu" not in states:
        raise CheckpointError(f"{file} has no 'cpu'")


def _try_random(file: Path, key: str, state: Tensor, device: torch.device) -> None:
    scratch = torch.Generator(device)
    try:
        scratch.set_state(state)
        same = torch.equal(scratch.get_state(), state)
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{file}: {key!r} is no random state of this torch: {reason}") from None
    wide, usual = (torch.randn(2, generator=scratch, device=device, dtype=d) for d in (torch.float64, torch.float32))
    if not same or not bool(torch.isfinite(wide).all() and torch.isfinite(usual).all()):
        raise CheckpointError(f"{file}: {key!r} is no random state that torch writes")


def plain_accumulated(contents: Contents) -> dict[str, Any]:
    """What had accumulated, as the client keeps it; nothing where the checkpoint holds weights alone."""
    return {} if contents.accumulated is None else copy.deepcopy(contents.accumulated.model_dump())
