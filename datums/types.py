"""The data types of the training API: what goes in, with the field names and defaults of the Tinker SDK.

A `Datum` is one sequence: a `ModelInput` (N tokens) and `loss_fn_inputs`, tensors about its N positions.
`target_tokens[t]` is the token that position t predicts, so it is already shifted by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch

from .errors import DtypeError, LossbookError, ShapeError, TokenRangeError

TensorDtype = Literal["int64", "float32"]

#: Keys whose dtype is part of the protocol; any other key takes the dtype of what it is given.
KEY_DTYPES: dict[str, TensorDtype] = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "sampling_logprobs": "float32",
    "ref_logprobs": "float32",
    "old_values": "float32",
    "returns": "float32",
    "teacher_logprobs": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
    "sequence_ratio_mask": "float32",
}


@dataclass(frozen=True, eq=False, init=False, repr=False)
class TensorData:
    """A dense or CSR-sparse array of int64 or float32, flat and row-major in `.data`.

    data: numbers, flat or nested lists, a numpy array or a torch tensor; for CSR the listed values only.
    dtype: "int64" or "float32"; inferred from `data` when absent. Floats are never cast to integers.
    shape: inferred when absent; required for CSR (`sparse_crow_indices`, `sparse_col_indices`).

    Raises ShapeError when `shape` does not hold `len(data)` entries or the CSR indices are broken,
    DtypeError when numbers would lose their value.
    """

    dtype: TensorDtype
    shape: list[int]
    sparse_crow_indices: list[int] | None
    sparse_col_indices: list[int] | None
    _array: np.ndarray

    def __init__(
        self,
        data: Any = None,
        dtype: TensorDtype | None = None,
        shape: Sequence[int] | None = None,
        sparse_crow_indices: Sequence[int] | None = None,
        sparse_col_indices: Sequence[int] | None = None,
    ) -> None:
        array = _as_array([] if data is None else data, dtype)
        if (sparse_crow_indices is None) != (sparse_col_indices is None):
            raise ShapeError("CSR data needs both sparse_crow_indices and sparse_col_indices")
        if sparse_crow_indices is not None and sparse_col_indices is not None:
            _check_csr(array, shape, sparse_crow_indices, sparse_col_indices)
        elif shape is not None:
            if int(np.prod(list(shape), dtype=np.int64)) != array.size or any(n < 0 for n in shape):
                raise ShapeError(f"shape {list(shape)} does not hold the {array.size} numbers of `data`")
            array = array.reshape(list(shape))
        object.__setattr__(self, "dtype", "int64" if array.dtype == np.int64 else "float32")
        object.__setattr__(self, "shape", list(array.shape if shape is None else shape))
        object.__setattr__(self, "sparse_crow_indices", _ints_or_none(sparse_crow_indices))
        object.__setattr__(self, "sparse_col_indices", _ints_or_none(sparse_col_indices))
        array.flags.writeable = False  # a loss that wrote into `to_numpy()` would change the user's data unseen
        object.__setattr__(self, "_array", array)

    @property
    def data(self) -> list[int] | list[float]:
        """The numbers as a flat Python list, row-major (for CSR: the listed values)."""
        return self._array.reshape(-1).tolist()

    @classmethod
    def from_numpy(cls, array: np.ndarray) -> TensorData:
        """Keep an array's shape; float64 and float16 become float32, integers become int64."""
        return cls(data=np.asarray(array))

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> TensorData:
        """Keep a tensor's shape; floats become float32, integers become int64. The graph is left behind."""
        return cls(data=tensor)

    @classmethod
    def view(cls, array: np.ndarray) -> TensorData:
        """Of a dense int64 or float32 array that nobody will write to any more, without a copy."""
        made = cls.__new__(cls)
        array.flags.writeable = False
        dtype = "int64" if array.dtype == np.int64 else "float32"
        vars(made).update(
            dtype=dtype, shape=list(array.shape), sparse_crow_indices=None, sparse_col_indices=None, _array=array
        )
        return made

    def to_numpy(self) -> np.ndarray:
        """A numpy array of `shape`, read-only; CSR is densified with zeros, at the first call."""
        return self._array if self.sparse_crow_indices is None else self._dense

    @cached_property
    def _dense(self) -> np.ndarray:
        dense = np.zeros(self.shape, dtype=self._array.dtype)
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.sparse_crow_indices or []))
        dense[rows, self.sparse_col_indices] = self._array
        dense.flags.writeable = False
        return dense

    def to_torch(self) -> torch.Tensor:
        """A torch tensor of `shape` on the CPU; CSR is densified with zeros. Always a copy."""
        return torch.from_numpy(self.to_numpy().copy())

    def tolist(self) -> list[Any]:
        """The numbers nested as `shape` says."""
        return self.to_numpy().tolist()

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 1

    def __repr__(self) -> str:
        shown = self.data if self._array.size <= 8 else [*self.data[:6], "..."]
        sparse = ", sparse" if self.sparse_crow_indices is not None else ""
        return f"TensorData({shown}, dtype={self.dtype!r}, shape={self.shape}{sparse})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorData):
            return NotImplemented
        same = self.dtype == other.dtype and self.shape == other.shape
        return same and bool(np.array_equal(self.to_numpy(), other.to_numpy(), equal_nan=self.dtype == "float32"))

    __hash__ = None  # type: ignore[assignment]  # holds an array


@dataclass(frozen=True)
class EncodedTextChunk:
    """A run of token ids."""

    tokens: Sequence[int]
    type: Literal["encoded_text"] = "encoded_text"

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclass(frozen=True)
class ModelInput:
    """What the model reads: chunks of token ids, in order."""

    chunks: Sequence[EncodedTextChunk] = ()

    @classmethod
    def from_ints(cls, tokens: Any) -> ModelInput:
        """One chunk of token ids; lists, numpy arrays and torch tensors of integers are taken."""
        return cls(chunks=[EncodedTextChunk(tokens=token_list(tokens))])

    @classmethod
    def empty(cls) -> ModelInput:
        """No tokens; grow it with `append_int` and `append`."""
        return cls(chunks=[])

    def append(self, chunk: EncodedTextChunk) -> ModelInput:
        """A new ModelInput with one more chunk."""
        return ModelInput(chunks=[*self.chunks, chunk])

    def append_int(self, token: int) -> ModelInput:
        """A new ModelInput with one more token."""
        return self.append(EncodedTextChunk(tokens=token_list([token])))

    def to_ints(self) -> list[int]:
        """All token ids, the chunks joined."""
        return list(map(int, itertools.chain.from_iterable(chunk.tokens for chunk in self.chunks)))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return sum(chunk.length for chunk in self.chunks)


@dataclass(frozen=True)
class Datum:
    """One sequence of N tokens with what a loss reads about its N positions.

    `loss_fn_inputs` values may be lists, numpy arrays, torch tensors or TensorData (also another SDK's);
    they are converted once, here. Raises ShapeError or DtypeError naming the key.
    """

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_input", as_model_input(self.model_input))
        converted = {key: as_tensor_data(value, key) for key, value in self.loss_fn_inputs.items()}
        object.__setattr__(self, "loss_fn_inputs", converted)


@dataclass(frozen=True, kw_only=True)
class AdamParams:
    """One AdamW step (decoupled weight decay). `grad_clip_norm=0` means no clipping."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to sample. `stop=None` stops at the end-of-sequence token, `stop=[]` only at `max_tokens`."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | Sequence[int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


def token_list(tokens: Any) -> list[int]:
    """Token ids as a list of Python integers; raises as `token_array` does."""
    return token_array(tokens).tolist()


def token_array(tokens: Any) -> np.ndarray:
    """[N] int64. Raises DtypeError for floats, TokenRangeError for ids beyond 64 bits, ShapeError unless 1-D."""
    try:
        array = _as_array(tokens, "int64", "tokens")
    except _Beyond64Bits as error:
        raise TokenRangeError(f"{error}: no vocabulary reaches that far") from None
    if array.ndim != 1:
        raise ShapeError(f"tokens must be one flat list of ids, not an array of shape {list(array.shape)}")
    return array


def as_model_input(value: Any) -> ModelInput:
    """Take our ModelInput, a list of token ids, or another SDK's object with `chunks` of `tokens`."""
    if isinstance(value, ModelInput):
        return value
    chunks = getattr(value, "chunks", None)
    if chunks is None:
        return ModelInput.from_ints(value)
    for chunk in chunks:
        if not hasattr(chunk, "tokens"):
            raise DtypeError(f"model_input holds a {type(chunk).__name__}: only text tokens are supported")
    return ModelInput(chunks=[EncodedTextChunk(tokens=token_list(list(chunk.tokens))) for chunk in chunks])


def as_tensor_data(value: Any, key: str) -> TensorData:
    """Convert one value of `loss_fn_inputs`; errors name the key."""
    dtype = KEY_DTYPES.get(key)
    if isinstance(value, TensorData) and dtype in (None, value.dtype):
        return value
    try:
        if all(hasattr(value, name) for name in ("data", "shape", "dtype")) and isinstance(value.dtype, str):
            return TensorData(
                data=value.data,
                dtype=dtype or cast(TensorDtype, value.dtype),
                shape=value.shape,
                sparse_crow_indices=getattr(value, "sparse_crow_indices", None),
                sparse_col_indices=getattr(value, "sparse_col_indices", None),
            )
        return TensorData(data=value, dtype=dtype)
    except _Beyond64Bits as error:
        kind = TokenRangeError if key == "target_tokens" else DtypeError
        raise kind(f"loss_fn_inputs[{key!r}]: {error}") from None
    except LossbookError as error:
        raise type(error)(f"loss_fn_inputs[{key!r}]: {error}") from None


def as_datum(value: Any) -> Datum:
    """Take our Datum, another SDK's (by structure), or a mapping with the same two names."""
    if isinstance(value, Datum):
        return value
    if isinstance(value, Mapping):
        if "model_input" not in value:
            raise DtypeError(f"a datum needs 'model_input', but this mapping holds {', '.join(map(str, value))}")
        return Datum(model_input=value["model_input"], loss_fn_inputs=value.get("loss_fn_inputs", {}))
    if hasattr(value, "model_input"):
        return Datum(model_input=value.model_input, loss_fn_inputs=getattr(value, "loss_fn_inputs", {}))
    raise DtypeError(
        f"expected a Datum (model_input, loss_fn_inputs), got {type(value).__name__}. Build one with "
        "datum_from_tokens_weights, datum_from_messages or Datum(model_input=..., loss_fn_inputs={...})"
    )


class _Beyond64Bits(DtypeError):
    """An integer that int64 cannot hold; where it is a token id, it becomes a TokenRangeError."""


def _as_array(data: Any, dtype: TensorDtype | None, what: str = "data") -> np.ndarray:
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu()
        data = (data.float() if data.is_floating_point() else data.long()).numpy()
    try:
        array = np.array(data)
    except ValueError:
        raise ShapeError(f"{what} is a ragged nested list; every row must have the same length") from None
    if array.size == 0 and dtype is not None:
        return array.astype(np.int64 if dtype == "int64" else np.float32)
    # numpy turns such integers into objects, uint64 or, beside negative ones, into floats
    if array.dtype in (object, np.uint64) or (dtype == "int64" and array.dtype.kind == "f"):
        integers = (n for n in np.array(data, dtype=object).reshape(-1) if isinstance(n, int))
        if any(not -(2**63) <= n < 2**63 for n in integers):
            raise _Beyond64Bits(f"{what} holds an integer beyond 64 bits")
    if array.dtype.kind not in "biuf":
        raise DtypeError(f"{what} must be numbers, got {_culprit(data, array)}")
    if dtype == "int64" and array.dtype.kind == "f":
        raise DtypeError(
            f"{what} must be integers, got floats such as {float(array.reshape(-1)[0])}; they are not cast, "
            "because 2.7 would silently become token 2"
        )
    if dtype == "int64" or (dtype is None and array.dtype.kind in "iu"):
        return array.astype(np.int64, copy=False)
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _culprit(data: Any, array: np.ndarray) -> str:
    if array.dtype == object and isinstance(data, Sequence):
        odd = [type(item).__name__ for item in data if not isinstance(item, int | float)]
        return odd[0] if odd else "an integer beyond 64 bits"
    return type(data).__name__ if array.ndim == 0 else f"an array of {array.dtype}"


def _check_csr(array: np.ndarray, shape: Sequence[int] | None, crow: Sequence[int], col: Sequence[int]) -> None:
    if shape is None or len(shape) != 2:
        raise ShapeError(f"CSR data needs a 2-D `shape`, got {shape}")
    rows, columns = shape
    if len(crow) != rows + 1 or crow[0] != 0 or crow[-1] != len(col):
        raise ShapeError(
            f"sparse_crow_indices must hold {rows + 1} numbers from 0 to {len(col)} (the number of column indices)"
        )
    if any(b < a for a, b in itertools.pairwise(crow)):
        raise ShapeError("sparse_crow_indices must never decrease")
    if len(col) != array.size:
        raise ShapeError(f"{len(col)} sparse_col_indices for {array.size} numbers of `data`")
    if any(not 0 <= c < columns for c in col):
        raise ShapeError(f"sparse_col_indices must lie in [0, {columns})")


def _ints_or_none(values: Sequence[int] | None) -> list[int] | None:
    return None if values is None else [int(v) for v in values]
