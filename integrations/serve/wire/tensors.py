"""Arrays on the wire: dense or CSR, from protobuf or JSON, and back to protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...tinker.types import TensorData
from ..refusals import Failed, Refused
from ..settings import Limits
from .messages import messages

_MOST_AXES = 4
#: Little-endian dtypes on the wire by their numbers in `DType`; bfloat16 is the upper half of a float32.
_FLOAT32, _INT64, _INT32, _BFLOAT16 = 1, 2, 3, 4
_DTYPES = {_FLOAT32: "<f4", _INT64: "<i8", _INT32: "<i4", _BFLOAT16: "<u2"}


def array_of(tensor: Any, where: str, limits: Limits) -> np.ndarray:
    """The numbers of a `Tensor` message: int64 or float32, CSR written out with zeros, read-only where they are the message's.

    Raises Failed, naming the place, where they are no array; Refused above a limit.
    """
    if tensor.dtype not in _DTYPES:
        raise Failed(
            f"{where} has the dtype {tensor.dtype}, which is none of float32 (1), int64 (2), int32, bfloat16", "user"
        )
    kind, shape = tensor.WhichOneof("encoding") or "dense", list(tensor.shape)
    if kind == "dense":
        values = _values(tensor.dense, tensor.dtype, where)
        return written_out(values, shape or [len(values)], None, None, where, limits)
    csr = tensor.sparse_csr
    rows, columns = (_values(part, _INT64, f"{where}, indices") for part in (csr.crow_indices, csr.col_indices))
    return written_out(_values(csr.values, tensor.dtype, where), shape, rows, columns, where, limits)


def _values(data: bytes, dtype: int, where: str) -> np.ndarray:
    """Bytes as float32 or int64."""
    kind = np.dtype(_DTYPES[dtype])
    if len(data) % kind.itemsize:
        raise Failed(
            f"{where} has {len(data)} bytes, which are no whole number of {kind.itemsize}-byte numbers", "user"
        )
    values = np.frombuffer(data, kind)
    if dtype == _BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.int64) if dtype == _INT32 else values


def written_out(
    values: np.ndarray,
    shape: Sequence[int],
    crow: np.ndarray | None,
    col: np.ndarray | None,
    where: str,
    limits: Limits,
) -> np.ndarray:
    """Flat values in their shape; CSR with zeros where nothing is listed. Errors as `array_of`."""
    size = size_of(shape, where, limits)
    if crow is None or col is None:
        if size != len(values):
            raise Failed(
                f"{where} has the shape {list(shape)}, which is {size} numbers, but holds {len(values)}", "user"
            )
        return values.reshape(shape)
    check_csr(len(values), shape, crow, col, where)
    dense = np.zeros(shape, values.dtype)
    dense[np.repeat(np.arange(shape[0]), np.diff(crow)), col] = values
    return dense


def size_of(shape: Sequence[int], where: str, limits: Limits) -> int:
    """How many numbers a shape holds. Raises Failed for what is no shape, Refused above the limits `columns` and `numbers`."""
    if len(shape) > _MOST_AXES or any(length < 0 for length in shape):
        raise Failed(
            f"{where} has the shape {str(list(shape))[:80]}: give up to {_MOST_AXES} lengths of 0 or more", "user"
        )
    if len(shape) > 1 and shape[1] > limits.columns:
        raise Refused(400, f"{where} has {shape[1]} columns, and the limit columns is {limits.columns}")
    size = 1
    for length in shape:
        size *= max(length, 1)  # an empty array has no long axes either
    if size > limits.numbers:
        raise Refused(400, f"{where} has {size} numbers, and the limit numbers is {limits.numbers}")
    return 0 if 0 in shape else size


def check_csr(count: int, shape: Sequence[int], crow: np.ndarray, col: np.ndarray, where: str) -> None:
    """Raise Failed where indices of `count` listed values do not fit a matrix of this shape."""
    if len(shape) != 2:
        raise Failed(f"{where} is sparse and has the shape {list(shape)}: CSR is for two axes", "user")
    if len(crow) != shape[0] + 1 or crow[0] != 0 or crow[-1] != len(col) or np.any(crow[1:] < crow[:-1]):
        raise Failed(
            f"{where}: crow_indices must be {shape[0] + 1} numbers that rise from 0 to {len(col)}, the number of col_indices",
            "user",
        )
    if len(col) != count:
        raise Failed(f"{where}: {len(col)} col_indices for {count} values", "user")
    if len(col) and not (int(col.min()) >= 0 and int(col.max()) < shape[1]):
        raise Failed(f"{where}: col_indices must lie from 0 to {shape[1] - 1}", "user")


def write_tensor(tensor: TensorData, message: Any, *, int32: bool = False) -> None:
    """Fill a `Tensor` message; CSR stays CSR. int32: how integers are written."""
    module = messages()
    if tensor.dtype == "float32":
        message.dtype, dtype = module.DTYPE_FLOAT32, "<f4"
    else:
        message.dtype, dtype = (module.DTYPE_INT32, "<i4") if int32 else (module.DTYPE_INT64, "<i8")
    message.shape.extend(tensor.shape)
    values = np.asarray(tensor.data, dtype).tobytes()
    if tensor.sparse_crow_indices is None:
        message.dense = values
        return
    message.sparse_csr.values = values
    message.sparse_csr.crow_indices = np.asarray(tensor.sparse_crow_indices, "<i8").tobytes()
    message.sparse_csr.col_indices = np.asarray(tensor.sparse_col_indices, "<i8").tobytes()
