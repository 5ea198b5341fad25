"""Arrays of a datum: dense or CSR-sparse, int64 or float32, in the form of the Tinker SDK's `TensorData`."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from .display import few, one_line
from .errors import DtypeError, LossbookError, ShapeError, TokenRangeError
from .inputs import KEY_DTYPES, TensorDtype
from .keywords import explained_constructor


@explained_constructor
@dataclass(frozen=True, eq=False, init=False, repr=False)
class TensorData:
    """A dense or CSR-sparse array of int64 or float32, flat and row-major in `.data`.

    data: a number, flat or nested lists, a numpy array or a torch tensor; for CSR the listed values only.
    dtype: "int64" or "float32"; inferred from `data` when absent. Floats are never cast to integers.
    shape: inferred when absent; required for CSR (`sparse_crow_indices`, `sparse_col_indices`).

    Raises ShapeError when `shape` does not hold `len(data)` entries or the CSR indices are invalid, DtypeError when a
    conversion would change a number.
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
        if dtype not in (None, "int64", "float32"):
            raise DtypeError(f"dtype is 'int64' or 'float32', not {dtype!r}")
        array = as_array([] if data is None else data, dtype)
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
        array.flags.writeable = False  # so that a loss cannot change the user's data through `to_numpy()`
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
        """Keep a tensor's shape; floats become float32, integers become int64. The graph is dropped."""
        return cls(data=tensor)

    @classmethod
    def from_torch_sparse(cls, tensor: torch.Tensor, pad_value: int = 0) -> TensorData:
        """As `from_torch`, but a 2-D tensor as CSR without the entries equal to `pad_value`, where that holds fewer numbers."""
        dense = cls.from_torch(tensor)
        listed = dense.to_numpy() != _pad(pad_value)
        if listed.ndim != 2 or listed.shape[0] + 1 + 2 * np.count_nonzero(listed) >= listed.size:
            return dense
        ends = np.cumsum(np.count_nonzero(listed, axis=1))
        return cls(
            dense.to_numpy()[listed], dense.dtype, dense.shape, [0, *ends.tolist()], listed.nonzero()[1].tolist()
        )

    @classmethod
    def view(cls, array: np.ndarray) -> TensorData:
        """Wrap a dense int64 or float32 array without a copy. The array becomes read-only."""
        tensor = cls.__new__(cls)
        array.flags.writeable = False
        dtype = "int64" if array.dtype == np.int64 else "float32"
        vars(tensor).update(
            dtype=dtype, shape=list(array.shape), sparse_crow_indices=None, sparse_col_indices=None, _array=array
        )
        return tensor

    def copied(self) -> TensorData:
        """The same numbers, which nothing changes, with lists of its own."""
        copied = copy.copy(self)
        for name in ("shape", "sparse_crow_indices", "sparse_col_indices"):
            value = vars(self)[name]
            vars(copied)[name] = None if value is None else list(value)
        return copied

    def to_numpy(self, pad_value: int = 0) -> np.ndarray:
        """A read-only numpy array of `shape`. CSR is filled up with `pad_value`; with zeros once, at the first call."""
        if self.sparse_crow_indices is None:
            return self._array
        return self._dense if _pad(pad_value) == 0 else self._filled(pad_value)

    @cached_property
    def _dense(self) -> np.ndarray:
        return self._filled(0)

    def _filled(self, pad_value: int) -> np.ndarray:
        dense = np.full(self.shape, pad_value, dtype=self._array.dtype)
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.sparse_crow_indices or []))
        dense[rows, self.sparse_col_indices] = self._array
        dense.flags.writeable = False
        return dense

    def to_torch(self, pad_value: int = 0) -> torch.Tensor:
        """A torch tensor of `shape` on the CPU, always a copy. CSR is filled up with `pad_value`."""
        return torch.from_numpy(self.to_numpy(pad_value).copy())

    def tolist(self, pad_value: int = 0) -> list[Any]:
        """The numbers nested as `shape` says. CSR is filled up with `pad_value`."""
        return self.to_numpy(pad_value).tolist()

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 1

    def __repr__(self) -> str:
        sparse = ", sparse" if self.sparse_crow_indices is not None else ""
        return one_line(f"TensorData({few(self._array.reshape(-1))}, dtype={self.dtype!r}, shape={self.shape}{sparse})")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorData):
            return NotImplemented
        same = self.dtype == other.dtype and self.shape == other.shape
        return same and bool(np.array_equal(self.to_numpy(), other.to_numpy(), equal_nan=self.dtype == "float32"))

    __hash__ = None  # type: ignore[assignment]  # holds an array


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
    except Beyond64Bits as error:
        kind = TokenRangeError if key == "target_tokens" else DtypeError
        raise kind(f"loss_fn_inputs[{key!r}]: {error}") from None
    except LossbookError as error:
        raise type(error)(f"loss_fn_inputs[{key!r}]: {error}") from None


class Beyond64Bits(DtypeError):
    """An integer outside int64's range. For token ids it becomes a TokenRangeError."""


def as_array(data: Any, dtype: TensorDtype | None, name: str = "data") -> np.ndarray:
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu()
        data = (data.float() if data.is_floating_point() else data.long()).numpy()
    try:
        array = np.array(data)
    except ValueError:
        raise ShapeError(f"{name} is a ragged nested list; every row must have the same length") from None
    if array.size == 0 and dtype is not None:
        return array.astype(np.int64 if dtype == "int64" else np.float32)
    # numpy turns such integers into objects, uint64 or, beside negative ones, into floats
    if array.dtype in (object, np.uint64) or (dtype == "int64" and array.dtype.kind == "f"):
        integers = (n for n in np.array(data, dtype=object).reshape(-1) if isinstance(n, int))
        if any(not -(2**63) <= n < 2**63 for n in integers):
            raise Beyond64Bits(f"{name} holds an integer beyond 64 bits")
    if array.dtype.kind not in "biuf":
        raise DtypeError(f"{name} must be numbers, got {_culprit(data, array)}")
    if dtype == "int64" and array.dtype.kind == "f":
        raise DtypeError(
            f"{name} must be integers, got floats such as {float(array.reshape(-1)[0])}; they are not cast, "
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


def _pad(value: Any) -> int:
    """The number that CSR leaves out. Raises DtypeError unless it is an integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise DtypeError(f"pad_value must be an integer, got {value!r}")
    return int(value)


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
