"""`Sender`: the first rank's parameters and buffers, sent to ranks that were built without weights, or with others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ...datums.errors import ModelError
from ..ranks import Ranks


class Sender:
    """Sends the first rank's tensors to the others, one after the other; whoever has one on "meta" gets memory for it.

    A rank that was built on "meta" thus holds its shards and no more of the model than the part that is sent. Buffers are sent
    with the parameters: those that no file holds, such as rotary frequencies, would be whatever lay in their memory.

    Raises ModelError on every rank where the ranks' tensors have other names or shapes.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, device: torch.device) -> None:
        self._ranks, self._device = ranks, device
        self._names = {id(part): name for name, part in model.named_modules()}
        own, alike = self._described(model)
        described = ranks.gather((own, alike))
        self._first, self._alike = described[0]
        with ranks.agree():
            for name in [*self._first, *own]:
                here, there = own.get(name), self._first.get(name)
                if here is None or there is None or here[0] != there[0]:
                    raise ModelError(
                        f"ranks hold different models: {name} is {here} on rank {ranks.rank} and {there} on rank 0"
                    )
        self._tie(model)

    def _described(self, model: nn.Module) -> tuple[dict[str, tuple[tuple[int, ...], torch.dtype]], dict[str, str]]:
        """Shape and dtype of each tensor by name; and the first name of those that have several."""
        described, names = {}, dict[int, str]()
        alike = {}
        for name, _, _, tensor in self._places(model):
            described[name] = tuple(tensor.shape), tensor.dtype
            alike[name] = names.setdefault(id(tensor), name)
        return described, alike

    def _tie(self, model: nn.Module) -> None:
        """Let the tensors without numbers be one where they are one on the first rank."""
        tensors = {name: tensor for name, _, _, tensor in self._places(model)}
        for name, holder, key, tensor in self._places(model):
            if tensor.is_meta:
                holder[key] = tensors[self._alike[name]]

    def send(self, module: nn.Module) -> None:
        """Send a part of the model, except for what is sharded already."""
        sent: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor that had the id; a tied one is sent once
        for name, holder, key, tensor in self._places(module):
            if id(tensor) not in sent:
                sent[id(tensor)] = tensor, self._sent(name, tensor)
            holder[key] = sent[id(tensor)][1]

    def _sent(self, name: str, tensor: Tensor) -> Tensor:
        """The first rank's tensor: the same object with its numbers, or one in its place where that has no memory."""
        if tensor.is_meta:
            memory = torch.empty(tensor.shape, dtype=self._first[name][1], device=self._device)
        else:
            memory = tensor.detach().to(self._device, self._first[name][1]).contiguous()
        if memory.numel():
            dist.broadcast(memory.view(-1).view(torch.uint8), group=self._ranks.data, group_src=0)
        if tensor.is_meta:
            return nn.Parameter(memory, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else memory
        tensor.data = memory
        return tensor

    def _places(self, module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, Tensor]]:
        """Where a module's tensors are held, those that are sharded aside: name, dictionary, key, tensor."""
        for part in _unsharded(module):
            for holder in (part._parameters, part._buffers, vars(part)):  # some keep tensors that are not registered
                for key, tensor in list(holder.items()):
                    if isinstance(tensor, Tensor):
                        yield f"{self._names[id(part)]}.{key}", holder, key, tensor


def _unsharded(module: nn.Module) -> Iterator[nn.Module]:
    """A module and those inside it, without the ones that are sharded."""
    yield module
    for child in module.children():
        if not isinstance(child, FSDPModule):
            yield from _unsharded(child)
