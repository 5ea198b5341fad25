"""Between the host and the device: all that goes one way at one time goes in one copy, and nobody waits until it is read.

A copy of its own for each tensor costs a launch each, and one out of memory that is not pinned waits for all that was queued
before it. Here tensors of any dtype lie in one buffer of bytes, and both sides see them as views of it. On a CPU nothing is
copied.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .device import path_of


@dataclass
class Transfers:
    """How often something was copied to a device, and how often the host read what came from one."""

    uploads: int = 0
    reads: int = 0


_counting: list[Transfers] = []
_lock = threading.Lock()


@contextmanager
def counting_transfers() -> Iterator[Transfers]:
    """Inside, the copies of this module are counted, in all threads; also where a CPU takes a GPU's path."""
    counted = Transfers()
    _counting.append(counted)
    try:
        yield counted
    finally:
        _counting.remove(counted)


def _count(*, uploads: int = 0, reads: int = 0) -> None:
    with _lock:
        for counted in _counting:
            counted.uploads += uploads
            counted.reads += reads


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move CPU tensors to a device in one asynchronous copy from pinned memory."""
    if path_of(device) == "cpu" or not tensors:
        return dict(tensors)
    places, size = _laid_out(tensors)
    buffer = _host_buffer(size, device)
    flat = buffer.numpy()
    for name, (start, stop) in places.items():
        flat[start:stop] = _bytes_of(tensors[name]).numpy()
    _count(uploads=1)
    there = buffer.to(device, non_blocking=True)
    # `.data` gives each a count of its own of changes in place; views of one buffer share theirs
    return {name: _view(there, places[name], tensor).data for name, tensor in tensors.items()}


class Report:
    """Numbers on their way to the host: the copy is queued where the report is made, and awaited where it is read.

    So whatever is queued in between runs meanwhile. is_here: all tensors are on the host already.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, is_here: bool = False) -> None:
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self._away = {} if is_here else {n: one for n, one in self._tensors.items() if path_of(one.device) != "cpu"}
        self._event: torch.cuda.Event | None = None
        if not self._away:
            return
        device = next(iter(self._away.values())).device
        self._places, size = _laid_out(self._away)
        self._buffer = _host_buffer(size, device)
        together = torch.cat([_bytes_of(self._away[name]) for name in self._places])
        self._buffer.copy_(together, non_blocking=device.type == "cuda")
        if device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def read(self) -> dict[str, Tensor]:
        """The tensors on the CPU, each in its dtype and shape."""
        if not self._away:
            return self._tensors
        _count(reads=1)
        if self._event is not None:
            self._event.synchronize()
        here = self._buffer.clone()  # pinned memory is not for keeping
        return self._tensors | {name: _view(here, self._places[name], one) for name, one in self._away.items()}


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU: one copy, awaited here."""
    return Report(tensors).read()


def _laid_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, int]], int]:
    """Where each tensor's bytes begin and end in one buffer, and its size. Wide dtypes come first, so that all are aligned."""
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        places[name] = (start, end)
    return places, end


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _view(buffer: Tensor, place: tuple[int, int], like: Tensor) -> Tensor:
    return buffer[slice(*place)].view(like.dtype).view(like.shape)


def _host_buffer(size: int, device: torch.device) -> Tensor:
    """Bytes in the host's memory: pinned for CUDA, whose copies then run by themselves (torch keeps a pool of it)."""
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
