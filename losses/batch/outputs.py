"""The model's outputs for some datums, as a loss receives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...datums.errors import (
    DtypeError,
    InvalidLogprobError,
    LengthMismatchError,
    LossContractError,
    NonFiniteLossInput,
    ShapeError,
)
from ...datums.inputs import MAX_LOGPROB, key_kind
from ...datums.types import Datum
from ..spec.layers import DATUM_OUTPUTS
from ..spec.spec import OUTPUT_NAMES
from ..spec.top import TOP_LOGPROBS, TOP_OUTPUTS, TOP_TOKENS
from ..spec.vocabulary import TOKEN_EMBEDDINGS, VOCABULARY_OUTPUTS, WIDE_OUTPUTS
from .checks import locate
from .packed import Packed
from .positions import positions_of, weighted_positions, width_of
from .vocabulary import Distributions


@dataclass
class Outputs:
    """Packed model outputs. S counts the positions that were computed, datum after datum.

    logprobs: [S] or [S, K] nats. Of the whole vocabulary's distribution at a position: entropy [S] nats, logsumexp [S] of
    the logits, mean_logprobs [S] nats, unweighted over all tokens. values: [S], from a scalar head; projection: [S, P], from a
    head of P numbers. topk_tokens [S, k] ids and topk_logprobs [S, k] nats: the likeliest tokens, likeliest first.
    embeddings: [N, D], one row per datum; layer_embeddings: [N, L, D], of L layers, in the order in which the loss names them; token_embeddings: [S, D], hidden states. vocab_logprobs [S, V] nats, and a teacher's teacher_vocab_logprobs: as tensors, or as
    `Distributions`, which are never [S, V] in memory.
    active: [positions of all datums] bool, which of them the S rows are; None for all.
    numbers: each datum's index in the caller's batch, for error messages; None where it is its index here.
    is_unchecked: the caller checks these numbers later, by `BoundLoss.check_outputs`, since to look at them is to wait for
    the device.
    """

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    logsumexp: Tensor | None = None
    mean_logprobs: Tensor | None = None
    values: Tensor | None = None
    projection: Tensor | None = None
    topk_tokens: Tensor | None = None
    topk_logprobs: Tensor | None = None
    embeddings: Tensor | None = None
    layer_embeddings: Tensor | None = None
    token_embeddings: Tensor | None = None
    vocab_logprobs: Tensor | Distributions | None = None
    teacher_vocab_logprobs: Tensor | Distributions | None = None
    active: Tensor | None = None
    numbers: Sequence[int] | None = None
    is_unchecked: bool = False

    def number(self, datum: int) -> int:
        """A datum's index in the caller's batch."""
        return datum if self.numbers is None else self.numbers[datum]

    def rows(self, name: str, packed: Packed) -> Any:
        """Output `name` at the active positions (or datums) of `packed`."""
        values = getattr(self, name)
        if values is None:
            raise LossContractError(f"the loss reads {name!r}, which these outputs do not hold")
        places = (
            packed.places(None if self.active is None else self.active.cpu()) if packed.rows is None else packed.rows
        )
        rows = places["datums" if name in DATUM_OUTPUTS else "positions"]
        if rows is None:
            return values
        return values[rows.to(values.device if isinstance(values, Tensor) else values.tensors[0].device)]


#: Every output of a model: those that a loss may name, one that functions over whole datums read, and those that are only returned.
ALL_OUTPUTS = (*OUTPUT_NAMES, "projection")
#: Outputs that the hosted APIs pass to a custom loss: a bare list of tensors is one of these.
LISTED = ("logprobs", "embeddings")


def as_outputs(value: Any, data: Sequence[Datum], kind: str, *, is_named: bool = False) -> Outputs:
    """Take Outputs as they are; join a list of per-datum tensors, checking each length against its datum.

    value: Outputs, {"logprobs": [...], "entropy": [...]}, or one bare list, which is `kind`. is_named: it stood in a dict.
    """
    if isinstance(value, Outputs):
        return value
    if isinstance(value, Mapping):
        joined = {
            name: getattr(as_outputs(list(tensors), data, name, is_named=True), name) for name, tensors in value.items()
        }
        return Outputs(**joined)
    if not isinstance(value, Sequence):
        raise LossContractError(f"expected a list with one tensor of {kind} per datum, got {type(value).__name__}")
    if len(value) != len(data):
        raise LengthMismatchError(f"{len(value)} tensors of {kind} for {len(data)} datums")
    if not is_named and kind not in LISTED:
        raise LossContractError(
            f"the loss reads {kind}, and a bare list is taken for {' or '.join(LISTED)}: pass it by name, "
            f'{{"{kind}": [...]}}. A service that returns only logprobs cannot run this loss'
            + ("; a topk_ loss over a teacher's candidates it can" if kind in VOCABULARY_OUTPUTS else "")
        )
    tensors = [real(tensor, kind, i) for i, tensor in enumerate(value)]
    if kind in DATUM_OUTPUTS:
        if len({tuple(tensor.shape) for tensor in tensors}) > 1:
            raise ShapeError(f"{kind} differ in shape: {[list(tensor.shape) for tensor in tensors]}")
        empty = torch.zeros(0, 1, dtype=torch.float32, device="cpu")
        return replace(Outputs(), **{kind: torch.stack(tensors) if tensors else empty})
    if kind in WIDE_OUTPUTS:
        return replace(Outputs(), **{kind: _joined_rows(tensors, data, kind)})
    if kind in TOP_OUTPUTS:
        return replace(Outputs(), **{kind: _joined_top(tensors, data, kind)})
    width = width_of(data) if kind == "logprobs" else None
    if width is not None or [tensor.shape for tensor in tensors] != [(positions_of(datum),) for datum in data]:
        for i, (tensor, datum) in enumerate(zip(tensors, data, strict=True)):
            _check_output_shape(tensor, datum, kind, i, len(data))
            if width is not None:
                columns = tensor.unsqueeze(1) if tensor.ndim == 1 else tensor
                tensors[i] = torch.nn.functional.pad(columns, (0, width - columns.shape[1]))
    empty = torch.zeros(0, dtype=torch.float32, device="cpu")
    joined_outputs = Outputs()
    setattr(joined_outputs, kind, torch.cat(tensors) if tensors else empty)
    return joined_outputs


def _joined_rows(tensors: Sequence[Tensor], data: Sequence[Datum], kind: str) -> Tensor:
    """[S, V] of one [N, V] per datum, V the size of the vocabulary or of vectors. Raises LengthMismatchError, ShapeError."""
    for i, (tensor, datum) in enumerate(zip(tensors, data, strict=True)):
        _check_length(tensor, datum, kind, i, len(data))
        if tensor.ndim != 2 or tensor.shape[1] != tensors[0].shape[-1]:
            raise ShapeError(
                f"datum {i} of {len(data)}: {kind} is {list(tensor.shape)}: "
                f"{'one vector' if kind == TOKEN_EMBEDDINGS else 'one number for each token of the vocabulary'} at each position, "
                "as many numbers for all datums"
            )
    return torch.cat(list(tensors)) if tensors else torch.zeros(0, 1, dtype=torch.float32, device="cpu")


def _joined_top(tensors: Sequence[Tensor], data: Sequence[Datum], kind: str) -> Tensor:
    """[S, k] of one [N, k] per datum. Raises LengthMismatchError, ShapeError, DtypeError."""
    for i, (tensor, datum) in enumerate(zip(tensors, data, strict=True)):
        _check_length(tensor, datum, kind, i, len(data))
        if tensor.ndim != 2 or tensor.shape[1] != tensors[0].shape[-1]:
            raise ShapeError(
                f"datum {i} of {len(data)}: {kind} is {list(tensor.shape)}: one number for each of the k likeliest tokens at each "
                "position, as many for all datums"
            )
        if kind == TOP_TOKENS and tensor.is_floating_point():
            raise DtypeError(f"datum {i} of {len(data)}: {kind} is {tensor.dtype}: token ids are integers")
    dtype = torch.float32 if kind == TOP_LOGPROBS else torch.int64
    return torch.cat(list(tensors)) if tensors else torch.zeros(0, 1, dtype=dtype, device="cpu")


def check_finite_output(output: str, values: Tensor, packed: Packed, outputs: Outputs, name: str) -> None:
    """Raise naming datum and position where an output of the model is NaN or infinite, or a log-probability above 0.

    output: which one it is. All embeddings count: they have no positions.
    """
    if not values.is_floating_point():  # ids
        return
    values = values.detach()
    limits = torch.finfo(values.dtype)
    is_logprob = key_kind(output) == "logprob" and not (
        output in VOCABULARY_OUTPUTS and values.ndim == 1
    )  # sizes of them
    highest = MAX_LOGPROB if is_logprob else float("inf")
    wrong = values.clamp(limits.min, min(highest, limits.max)) != values  # NaN is not itself either
    if output in VOCABULARY_OUTPUTS:  # a token may be ruled out
        wrong &= values != -torch.inf
    if output in DATUM_OUTPUTS:
        if bool(wrong.any()):
            row = int(wrong.flatten(1).any(1).nonzero()[0])
            raise not_finite(
                name, output, outputs.number(int(packed.active_datums[row])), None, float(values[row].sum())
            )
        return
    if packed.spec.wants_weights:  # any other loss is handed nothing that does not count
        wrong &= weighted_positions(packed.weights, values)
    if output == "logprobs" and packed.absent is not None:
        wrong &= ~packed.absent.to(values.device)
    if not bool(wrong.any()):
        return
    where = wrong.nonzero()[0].tolist()
    value = float(values[tuple(where)])
    datum, position = locate(where[0], packed.active.cpu().numpy(), packed.lengths)
    if highest < value < float("inf"):
        raise InvalidLogprobError(
            f"{name}: the model's {output} of datum {outputs.number(datum)} are {value:g} at position {position}: a "
            "log-probability is at most 0. Are these probabilities?"
        )
    raise not_finite(name, output, outputs.number(datum), position, value)


def not_finite(name: str, output: str, datum: int, position: int | None, value: float) -> NonFiniteLossInput:
    """The error for an output of the model that is NaN or infinite where it counts."""
    cause = {
        "logprobs": ", or is the target a token it cannot produce",
        "mean_logprobs": ", or does it rule tokens out",
    }
    where = "" if position is None else f" at position {position}, where the weight is not 0"
    return NonFiniteLossInput(
        f"{name}: the model's {output} of datum {datum} are {value:g}{where}. Has the model diverged{cause.get(output, '')}?"
    )


def real(value: Any, kind: str, index: int) -> Tensor:
    """Datum `index`'s output as a tensor. Raises DtypeError for complex numbers."""
    if isinstance(value, Tensor):
        tensor = value
    else:  # lists of numbers are float32 whatever the script's default is; arrays keep their own dtype
        tensor = torch.as_tensor(value, device="cpu")
        if tensor.is_floating_point() and not hasattr(value, "dtype"):
            tensor = torch.as_tensor(value, dtype=torch.float32, device="cpu")
    if tensor.is_complex():
        raise DtypeError(f"{kind} of datum {index} are {tensor.dtype}: a loss reads real numbers")
    return tensor


def _check_output_shape(tensor: Tensor, datum: Datum, kind: str, index: int, total: int) -> None:
    """One output per position; logprobs in the shape of their targets."""
    positions = _check_length(tensor, datum, kind, index, total)
    targets = datum.loss_fn_inputs.get("target_tokens")
    expected = [positions] if kind != "logprobs" or targets is None else targets.shape
    if list(tensor.shape) != list(expected):
        raise ShapeError(
            f"datum {index} of {total}: {kind} is {list(tensor.shape)} but its targets ask for {list(expected)}"
        )


def _check_length(tensor: Tensor, datum: Datum, kind: str, index: int, total: int) -> int:
    """One row per position; returns how many there are."""
    positions = positions_of(datum)
    if tensor.ndim == 0 or len(tensor) != positions:
        given = "a single number of" if tensor.ndim == 0 else len(tensor)
        raise LengthMismatchError(f"datum {index} of {total} has {positions} positions but {given} {kind}")
    return positions
