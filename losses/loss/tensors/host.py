"""What the host has to know of tensors on a device: all of it in one copy, and what is wrong with them among it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....datums.errors import LossbookError


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU. Tensors of one device come in one copy; tensors on the CPU are returned unchanged."""
    here = {name: tensor.detach() for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in here.values() if tensor.device.type != "cpu"}:
        here |= in_one_copy({name: tensor for name, tensor in here.items() if tensor.device == device})
    return here


def in_one_copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one device on the CPU, joined as bytes on the way."""
    # wide dtypes first, so that every view of the bytes is aligned
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    flat = [tensors[name].contiguous().reshape(-1).view(torch.uint8) for name in names]
    parts = torch.cat(flat).cpu().split([len(one) for one in flat])
    return {n: part.view(tensors[n].dtype).view(tensors[n].shape) for n, part in zip(names, parts, strict=True)}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from the CPU to CUDA out of pinned memory, which nothing waits for."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass
class Checks:
    """Checks of numbers on a device, read together with what the host reads anyway; the first failure is raised."""

    flags: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, Callable[[], LossbookError]] = field(default_factory=dict)

    def add(self, wrong: Tensor, error: Callable[[], LossbookError]) -> None:
        """wrong: bool of any shape; where any is true, `error()`, which may read the device again, is raised."""
        name = f"flag {len(self.flags)}"
        self.flags[name], self.errors[name] = wrong.any(), error

    def clear(self) -> None:
        """Forget all questions, which were answered."""
        self.flags.clear()
        self.errors.clear()

    def raise_first(self, host: Mapping[str, Tensor]) -> None:
        """Raise for the first flag that is set. host: the flags, among other tensors, on the CPU."""
        for name in self.flags:
            if bool(host[name]):
                raise self.errors[name]()
