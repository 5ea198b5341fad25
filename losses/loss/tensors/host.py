"""What the host has to know of tensors on a device: all of it in one copy, and what is wrong with them among it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....datums.errors import LossbookError


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU: those of one device in one copy, as bytes; those that are there already as they are."""
    here = {name: tensor.detach() for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in here.values() if tensor.device.type != "cpu"}:
        # wide dtypes first, so that every view of the bytes is aligned
        names = sorted((n for n, t in here.items() if t.device == device), key=lambda n: -here[n].element_size())
        flat = [here[name].contiguous().reshape(-1).view(torch.uint8) for name in names]
        parts = torch.cat(flat).cpu().split([len(one) for one in flat])
        here |= {n: part.view(here[n].dtype).view(here[n].shape) for n, part in zip(names, parts, strict=True)}
    return here


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from the CPU to CUDA out of pinned memory, which nothing waits for."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass
class Checks:
    """Questions about numbers on a device, answered by the read that the host does anyway; the first that fails is raised."""

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
