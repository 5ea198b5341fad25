"""What a model says about some datums, as a loss receives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..datums.errors import LengthMismatchError, LossContractError, NonFiniteLossInput
from ..datums.types import Datum
from .packing import MAX_LOGPROB, Packed, locate, positions_of, width_of


@dataclass
class Outputs:
    """Packed model outputs. S counts the positions that were computed, datum after datum.

    logprobs: [S] or [S, K] nats. entropy: [S] nats. embeddings: [N, D], one row a datum.
    covered: [all positions] bool, which positions the S rows are; None when they are all.
    """

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    embeddings: Tensor | None = None
    covered: Tensor | None = None

    def rows(self, name: str, packed: Packed) -> Tensor:
        """Output `name` at the positions (or datums) that `packed` keeps."""
        values = getattr(self, name)
        if values is None:
            raise LossContractError(f"the loss reads {name!r}, which these outputs do not hold")
        if name == "embeddings":
            return (
                values if len(packed.kept) == len(values) else values[torch.tensor(packed.kept, device=values.device)]
            )
        active = packed.active.to(values.device)
        if self.covered is not None:
            active = active[self.covered.to(values.device)]
        return values if bool(active.all()) else values[active]


def as_outputs(value: Any, data: Sequence[Datum], kind: str) -> Outputs:
    """Take Outputs as they are; join a list of per-datum tensors, checking each length against its datum."""
    if isinstance(value, Outputs):
        return value
    if isinstance(value, Mapping):
        joined = {name: getattr(as_outputs(list(tensors), data, name), name) for name, tensors in value.items()}
        return Outputs(**joined)
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise LossContractError(f"expected a list with one tensor of {kind} a datum, got {type(value).__name__}")
    if len(value) != len(data):
        raise LengthMismatchError(f"{len(value)} tensors of {kind} for {len(data)} datums")
    tensors = [tensor if isinstance(tensor, Tensor) else torch.as_tensor(tensor) for tensor in value]
    if kind == "embeddings":
        return Outputs(embeddings=torch.stack(tensors) if tensors else torch.zeros(0, 1))
    width = width_of(data) if kind == "logprobs" else None
    for i, (tensor, datum) in enumerate(zip(tensors, data, strict=True)):
        if len(tensor) != positions_of(datum):
            raise LengthMismatchError(
                f"datum {i} of {len(data)} has {positions_of(datum)} positions but {len(tensor)} {kind}"
            )
        if width is not None:
            columns = tensor.reshape(len(tensor), -1)
            tensors[i] = torch.nn.functional.pad(columns, (0, width - columns.shape[1]))
    empty = torch.zeros((0,) if width is None else (0, width))
    return Outputs(**{kind: torch.cat(tensors) if tensors else empty})


def check_logprobs(logprobs: Tensor, packed: Packed, name: str) -> None:
    """Raise NonFiniteLossInput naming datum and position when a model's logprob is not a finite log-probability."""
    wrong = ~torch.isfinite(logprobs.detach()) | (logprobs.detach() > MAX_LOGPROB)
    if not bool(wrong.any()):
        return
    row = int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])
    datum, position = locate(row, packed.active.cpu().numpy(), packed.lengths)
    value = logprobs.detach().reshape(len(wrong), -1)[row].tolist()
    raise NonFiniteLossInput(
        f"{name}: the model's logprobs of datum {datum} are {value[0] if len(value) == 1 else value} at position "
        f"{position}, where the weight is not 0. Has the model diverged, or is the target a token it cannot produce?"
    )
