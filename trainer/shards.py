"""Which part of a tensor this process holds, where a model lies sharded over ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from .ranks import ALONE, Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Part:
    """A box of a tensor: rows, and columns too where it is cut both ways.

    shape        of the whole tensor
    begin, end   of the box, by dimension; `end` is the first index after it
    is_stored    whether this process is the one that writes it; of several with the same box one is
    """

    shape: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    is_stored: bool = True

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of the box."""
        return tuple(end - begin for begin, end in zip(self.begin, self.end, strict=True))

    @property
    def is_empty(self) -> bool:
        """Whether no number lies in it."""
        return math.prod(self.size) == 0

    def shared(self, other: Part) -> Part | None:
        """The box that lies in both; None where there is none."""
        begin, end = tuple(map(max, self.begin, other.begin)), tuple(map(min, self.end, other.end))
        both = Part(self.shape, begin, end)
        return None if any(b > e for b, e in zip(begin, end, strict=True)) or both.is_empty else both

    def of(self, whole: Tensor, begin: tuple[int, ...] | None = None) -> Tensor:
        """A view of the box in a tensor. begin: where that tensor begins, if it is a box itself."""
        start = (0,) * len(self.shape) if begin is None else begin
        places = zip(self.begin, self.end, start, strict=True)
        return whole[tuple(slice(b - s, e - s) for b, e, s in places)]


def whole_part(tensor: Tensor, *, is_stored: bool = True) -> Part:
    """All of a tensor."""
    return Part(tuple(tensor.shape), (0,) * tensor.ndim, tuple(tensor.shape), is_stored)


def part_of(tensor: Tensor, ranks: Ranks = ALONE) -> Part:
    """The part of a parameter that this rank holds: of a DTensor its shard, of any other all of it, stored by the first rank.

    Mates each hold what is not split over them; the first of them stores it.
    """
    if not is_shard(tensor):
        return whole_part(tensor, is_stored=ranks.is_first)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tensor.placements
    size, begin = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    end = tuple(b + s for b, s in zip(begin, size, strict=True))
    copies = [place for place, how in zip(mesh.get_coordinate() or [], placements, strict=True) if how.is_replicate()]
    is_split = mesh.size() == ranks.size  # over mates too, each of which then holds another part
    return Part(tuple(tensor.shape), tuple(begin), end, not any(copies) and (is_split or ranks.is_counted))


def is_shard(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor lies over several ranks, so that this process holds a part of it."""
    distributed = sys.modules.get("torch.distributed.tensor")  # to import it takes long; who shards has done so
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors lies over several ranks."""
    return any(is_shard(tensor) for tensor in tensors.values())


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory; without a graph."""
    return (tensor.to_local() if is_shard(tensor) else tensor).detach()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, without a graph; gathered where it is sharded, by all ranks together."""
    return (tensor.full_tensor() if is_shard(tensor) else tensor).detach()


def placed_like(shard: Tensor, tensor: Tensor) -> Tensor:
    """A rank's shard as a tensor that lies over the ranks as `tensor` does."""
    if not is_shard(tensor):
        return shard
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def check_tiled(shape: tuple[int, ...], boxes: list[Part]) -> str | None:
    """Why these boxes do not cover a tensor exactly once; None if they do."""
    boxes = [box for box in boxes if not box.is_empty]
    ends = torch.tensor([shape for _ in boxes], dtype=torch.int64).view(len(boxes), len(shape))
    low = torch.tensor([box.begin for box in boxes], dtype=torch.int64).view_as(ends)
    high = torch.tensor([box.end for box in boxes], dtype=torch.int64).view_as(ends)
    if bool(((low < 0) | (low > high) | (high > ends)).any()):
        return "a part of it lies outside of it"
    meet = (torch.maximum(low[:, None], low[None]) < torch.minimum(high[:, None], high[None])).all(-1)
    if int(meet.sum()) > len(boxes):
        return "two files hold the same rows of it"
    if sum(math.prod(box.size) for box in boxes) < math.prod(shape):
        return "some of its rows are in no file"
    return None
