"""Operations on shapes: views, joining and splitting, picking by index, new tensors, dtypes, and products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .kinds import MOST_TENSORS, Device, Problem
from .signature import Operation, operation


def check_places(size: int, index: Tensor, name: str, least: int | None = None) -> None:
    """Raise Problem unless all places lie in a dimension of that size: on a GPU one outside would end the process."""
    if index.numel() == 0:
        return
    low, high = int(index.min()), int(index.max())
    if low < (-size if least is None else least) or high >= size:
        raise Problem(f"{name}: place {low if high < size else high} is not in a dimension of size {size}")


def _size_along(input: Tensor, dim: int | None) -> int:
    if dim is None:
        return input.numel()
    if not -input.ndim <= dim < max(input.ndim, 1):
        raise Problem(f"dimension {dim} is not in a tensor of {input.ndim} dimensions")
    return input.shape[dim] if input.ndim else 1


def _along(input: Tensor, dim: int, index: Tensor, *rest: Any, **named: Any) -> None:
    check_places(_size_along(input, dim), index, "index", 0)


def _taken(input: Tensor, indices: Tensor, dim: int | None = None) -> None:
    check_places(_size_along(input, dim), indices, "indices", 0)


def _few(count: int) -> None:
    if count > MOST_TENSORS:
        raise Problem(f"it gives {count} tensors, and {MOST_TENSORS} are the most")


def _split(input: Tensor, split_size: int | list[int], dim: int = 0) -> tuple[Tensor, ...]:
    if isinstance(split_size, int):
        if split_size < 1:
            raise Problem(f"split_size must be 1 or more, not {split_size}")
        _few(-(-_size_along(input, dim) // split_size))
    return torch.split(input, split_size, dim)


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    _few(min(chunks, _size_along(input, dim)))
    return torch.chunk(input, chunks, dim)


def _unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    _few(_size_along(input, dim))
    return torch.unbind(input, dim)


def _to(input: Tensor, first: Any = None, second: Any = None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Only the dtype changes: every tensor of a graph is on the device of the logprobs."""
    for one in (first, second):
        if isinstance(one, Tensor):
            dtype = one.dtype
        elif not (one is None or isinstance(one, Device)):
            dtype = one
    return input if dtype is None else input.to(dtype)


def _type_as(input: Tensor, other: Tensor) -> Tensor:
    return input.to(other.dtype)


def _contiguous(input: Tensor) -> Tensor:
    return input.contiguous()


def _size(input: Tensor, dim: int | None = None) -> Any:
    return input.shape if dim is None else input.size(dim)


def _repeat_interleave(input: Tensor, repeats: int, dim: int | None = None) -> Tensor:
    return torch.repeat_interleave(input, repeats, dim)


def _arange(*numbers: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    return torch.arange(*numbers, dtype=dtype, device=device)


def _broadcast_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.broadcast_tensors(*tensors))


_NEW = "*, dtype:DT?, device:DEV?, layout:LAY?, pin_memory:OFF?, requires_grad:OFF?, out:NO?"
_LIKE = "*, dtype:DT?, device:DEV?, layout:LAY?, memory_format:LAY?, requires_grad:OFF?"
_VIEWS: tuple[Operation, ...] = (
    operation("torch.reshape", torch.reshape, "input:T, shape:S"),
    operation("", Tensor.reshape, "input:T, *shape:S", methods="reshape"),
    operation("", Tensor.view, "input:T, *shape:S", methods="view"),
    operation("", Tensor.view_as, "input:T, other:T", methods="view_as"),
    operation("", Tensor.reshape_as, "input:T, other:T", methods="reshape_as"),
    operation("torch.flatten", torch.flatten, "input:T, start_dim:D?, end_dim:D?", methods="flatten"),
    operation("torch.unflatten", torch.unflatten, "input:T, dim:D, sizes:S", methods="unflatten"),
    operation("torch.ravel", torch.ravel, "input:T", methods="ravel"),
    operation("torch.squeeze", torch.squeeze, "input:T, dim:DS?", methods="squeeze"),
    operation("torch.unsqueeze", torch.unsqueeze, "input:T, dim:D", methods="unsqueeze"),
    operation("torch.transpose", torch.transpose, "input:T, dim0:D, dim1:D", methods="transpose"),
    operation("torch.swapaxes", torch.swapaxes, "input:T, axis0:D, axis1:D", methods="swapaxes"),
    operation("torch.movedim", torch.movedim, "input:T, source:DS, destination:DS", methods="movedim"),
    operation("torch.t", torch.t, "input:T", methods="t"),
    operation("torch.permute", torch.permute, "input:T, dims:DS"),
    operation("", Tensor.permute, "input:T, *dims:DS", methods="permute"),
    operation("", Tensor.expand, "input:T, *size:S", methods="expand"),
    operation("", Tensor.expand_as, "input:T, other:T", methods="expand_as"),
    operation("torch.broadcast_to", torch.broadcast_to, "input:T, size:S", methods="broadcast_to"),
    operation("torch.broadcast_tensors torch.functional.broadcast_tensors", _broadcast_tensors, "*tensors:TS"),
    operation("torch.atleast_1d torch.functional.atleast_1d", torch.atleast_1d, "input:T"),
    operation("torch.atleast_2d torch.functional.atleast_2d", torch.atleast_2d, "input:T"),
    operation("torch.narrow", torch.narrow, "input:T, dim:D, start:I, length:I", methods="narrow"),
    operation("torch.select", torch.select, "input:T, dim:D, index:I", methods="select"),
    operation("torch.diagonal", torch.diagonal, "input:T, offset:I?, dim1:D?, dim2:D?", methods="diagonal"),
    operation("torch.detach", torch.detach, "input:T", methods="detach"),
    operation("torch.clone", torch.clone, "input:T, *, memory_format:LAY?", methods="clone"),
    operation("", _contiguous, "input:T, *, memory_format:LAY?", methods="contiguous"),
)
_JOINED: tuple[Operation, ...] = (
    operation("torch.cat", torch.cat, "tensors:TS, dim:D?, *, out:NO?"),
    operation("torch.concat", torch.concat, "tensors:TS, dim:D?, *, out:NO?"),
    operation("torch.concatenate", torch.concatenate, "tensors:TS, dim:D?, *, out:NO?"),
    operation("torch.stack", torch.stack, "tensors:TS, dim:D?, *, out:NO?"),
    operation("torch.hstack", torch.hstack, "tensors:TS, *, out:NO?"),
    operation("torch.vstack", torch.vstack, "tensors:TS, *, out:NO?"),
    operation("torch.split torch.functional.split", _split, "input:T, split_size:SI, dim:D?", methods="split"),
    operation("torch.chunk", _chunk, "input:T, chunks:C, dim:D?", methods="chunk"),
    operation("torch.unbind", _unbind, "input:T, dim:D?", methods="unbind"),
    operation("", Tensor.repeat, "input:T, *repeats:S", methods="repeat"),
    operation("torch.tile", torch.tile, "input:T, dims:S"),
    operation("", torch.tile, "input:T, *dims:S", methods="tile"),
    operation("torch.repeat_interleave", _repeat_interleave, "input:T, repeats:I, dim:D?", methods="repeat_interleave"),
    operation("torch.flip", torch.flip, "input:T, dims:DS"),
    operation("", Tensor.flip, "input:T, *dims:DS", methods="flip"),
    operation("torch.roll", torch.roll, "input:T, shifts:SI, dims:DS?", methods="roll"),
    operation("torch.triu", torch.triu, "input:T, diagonal:I?, *, out:NO?", methods="triu"),
    operation("torch.tril", torch.tril, "input:T, diagonal:I?, *, out:NO?", methods="tril"),
    operation("torch.diag", torch.diag, "input:T, diagonal:I?, *, out:NO?", methods="diag"),
)
_PICKED: tuple[Operation, ...] = (
    operation(
        "torch.gather",
        torch.gather,
        "input:T, dim:D, index:T, *, sparse_grad:OFF?, out:NO?",
        methods="gather",
        guard=_along,
    ),
    operation(
        "torch.index_select",
        torch.index_select,
        "input:T, dim:D, index:T, *, out:NO?",
        methods="index_select",
        guard=_along,
    ),
    operation("torch.scatter", torch.scatter, "input:T, dim:D, index:T, src:X", methods="scatter", guard=_along),
    operation(
        "torch.scatter_add", torch.scatter_add, "input:T, dim:D, index:T, src:T", methods="scatter_add", guard=_along
    ),
    operation(
        "torch.take_along_dim",
        torch.take_along_dim,
        "input:T, indices:T, dim:D?, *, out:NO?",
        methods="take_along_dim",
        guard=_taken,
    ),
)
_MADE: tuple[Operation, ...] = (
    operation("torch.zeros", torch.zeros, f"*size:S, {_NEW}", makes=True),
    operation("torch.ones", torch.ones, f"*size:S, {_NEW}", makes=True),
    operation("torch.full", torch.full, f"size:S, fill_value:N, {_NEW}", makes=True),
    operation("torch.arange", _arange, f"start:N, end:N?, step:N?, {_NEW}", makes=True),
    operation("torch.linspace", torch.linspace, f"start:N, end:N, steps:I, {_NEW}", makes=True),
    operation("torch.eye", torch.eye, f"n:I, m:I?, {_NEW}", makes=True),
    operation("torch.zeros_like", torch.zeros_like, f"input:T, {_LIKE}"),
    operation("torch.ones_like", torch.ones_like, f"input:T, {_LIKE}"),
    operation("torch.full_like", torch.full_like, f"input:T, fill_value:N, {_LIKE}"),
    operation("", Tensor.new_zeros, f"input:T, *size:S, {_LIKE}", methods="new_zeros"),
    operation("", Tensor.new_ones, f"input:T, *size:S, {_LIKE}", methods="new_ones"),
    operation("", Tensor.new_full, f"input:T, size:S, fill_value:N, {_LIKE}", methods="new_full"),
)
_CAST: tuple[Operation, ...] = (
    operation(
        "",
        _to,
        "input:T, first:TO?, second:TO?, *, dtype:DT?, device:DEV?, non_blocking:FLAG?, copy:OFF?, memory_format:LAY?",
        methods="to",
    ),
    operation("", _type_as, "input:T, other:T", methods="type_as"),
    operation("", Tensor.float, "input:T, *, memory_format:LAY?", methods="float"),
    operation("", Tensor.double, "input:T, *, memory_format:LAY?", methods="double"),
    operation("", Tensor.half, "input:T, *, memory_format:LAY?", methods="half"),
    operation("", Tensor.bfloat16, "input:T, *, memory_format:LAY?", methods="bfloat16"),
    operation("", Tensor.long, "input:T, *, memory_format:LAY?", methods="long"),
    operation("", Tensor.int, "input:T, *, memory_format:LAY?", methods="int"),
    operation("", Tensor.bool, "input:T, *, memory_format:LAY?", methods="bool"),
    operation("", _size, "input:T, dim:D?", methods="size"),
    operation("", Tensor.dim, "input:T", methods="dim ndimension"),
    operation("torch.numel", torch.numel, "input:T", methods="numel nelement"),
)
_PRODUCTS: tuple[Operation, ...] = (
    operation("torch.matmul", torch.matmul, "input:T, other:T, *, out:NO?", methods="matmul"),
    operation("torch.mm", torch.mm, "input:T, mat2:T, *, out:NO?", methods="mm"),
    operation("torch.bmm", torch.bmm, "input:T, mat2:T, *, out:NO?", methods="bmm"),
    operation("torch.mv", torch.mv, "input:T, vec:T, *, out:NO?", methods="mv"),
    operation("torch.dot", torch.dot, "input:T, tensor:T, *, out:NO?", methods="dot"),
    operation("torch.inner", torch.inner, "input:T, other:T, *, out:NO?", methods="inner"),
    operation("torch.outer", torch.outer, "input:T, vec2:T, *, out:NO?", methods="outer"),
    operation("torch.einsum torch.functional.einsum", torch.einsum, "equation:EQ, *operands:TS"),
)
OPERATIONS = (*_VIEWS, *_JOINED, *_PICKED, *_MADE, *_CAST, *_PRODUCTS)
