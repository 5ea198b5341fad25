"""Routing matrices: the experts of a mixture that each token was sent to when it was sampled, to send it there again (R3).

One text a token, as Fireworks' inference returns it (`logprobs.content[j].routing_matrix`) and `ModelInput.from_ints` takes it:
the indices [layers with experts, experts a token is sent to] as bytes, flattened, in base64. "" leaves the token to the model's
own routers. A model with more than 256 experts has two bytes for an index, the low one first; that form is lossbook's, for the
hosted API names no other than one byte. Source of the method: Ma et al. 2025, arXiv:2510.11370.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import DtypeError, LengthMismatchError, ShapeError

#: The most experts that one byte tells apart.
BYTE = 256


def checked_routing(matrices: Any, length: int) -> list[str]:
    """The matrices of `length` tokens as a list of their own.

    Raises DtypeError unless they are texts, LengthMismatchError unless there is one for each token.
    """
    if isinstance(matrices, str) or not isinstance(matrices, Sequence):
        raise DtypeError(
            f"routing_matrices is a list with one base64 text a token, not {type(matrices).__name__}; "
            "lossbook.datums.routing.encode_routing makes one of expert indices"
        )
    wrong = next((i for i, one in enumerate(matrices) if not isinstance(one, str)), None)
    if wrong is not None:
        raise DtypeError(
            f"routing_matrices[{wrong}] is a {type(matrices[wrong]).__name__}: it must be a base64 text or ''"
        )
    if len(matrices) != length:
        raise LengthMismatchError(
            f"routing_matrices has {len(matrices)} entries for {length} tokens: give one for each token that the model reads, "
            "'' where its own routers choose"
        )
    return list(matrices)


def encode_routing(experts: Any, num_experts: int = BYTE) -> list[str]:
    """Routing matrices of expert indices.

    experts      [N, layers with experts, experts a token is sent to] integers; a token of -1 alone is left to the model
    num_experts  of each layer

    Raises ShapeError for another shape or an index that is no expert's.
    """
    array = np.asarray(experts)
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.integer):
        raise ShapeError(
            f"expert indices are integers [tokens, layers, experts a token], not {array.dtype} {list(array.shape)}"
        )
    is_own = (array == -1).all(axis=(1, 2))
    if (wrong := ((array < 0) | (array >= num_experts)) & ~is_own[:, None, None]).any():
        token = int(np.flatnonzero(wrong.any(axis=(1, 2)))[0])
        raise ShapeError(f"token {token} names expert {array[wrong][0]}, but the experts are 0 to {num_experts - 1}")
    dtype = _dtype(num_experts)
    return [
        "" if own else base64.b64encode(one.astype(dtype).tobytes()).decode("ascii")
        for own, one in zip(is_own.tolist(), array, strict=True)
    ]


def decode_routing(matrices: Sequence[str], *, layers: int, width: int, num_experts: int) -> np.ndarray:
    """[N, layers, width] int32: the experts of each token, -1 for a token that is left to the model.

    width: the experts that a token is sent to. Raises DtypeError for what is not base64, ShapeError for another number of
    indices, an expert that there is not, or the same one twice in a layer.
    """
    dtype = _dtype(num_experts)
    rows = np.full((len(matrices), layers * width), -1, dtype=np.int32)
    for i, text in enumerate(matrices):
        if not text:
            continue
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise DtypeError(f"routing_matrices[{i}] is not base64: {error}") from None
        if len(content) != layers * width * dtype.itemsize:
            raise ShapeError(
                f"routing_matrices[{i}] holds {len(content)} bytes, but the model sends a token to {width} experts in each of "
                f"{layers} layers with experts, which is {layers * width * dtype.itemsize}. Is it of another model?"
            )
        rows[i] = np.frombuffer(content, dtype=dtype)
    experts = rows.reshape(-1, layers, width)
    ordered = np.sort(experts, axis=-1)
    twice = ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any(axis=-1)
    for is_wrong, what in (
        ((experts >= num_experts).any(axis=-1), f"an expert beyond {num_experts - 1}"),
        (twice, "an expert twice"),
    ):
        if is_wrong.any():
            token, layer = (int(each[0]) for each in np.nonzero(is_wrong))
            raise ShapeError(f"routing_matrices[{token}] names {what} in layer {layer} of those with experts")
    return experts


def _dtype(num_experts: int) -> np.dtype[Any]:
    return np.dtype(np.uint8 if num_experts <= BYTE else "<u2")
