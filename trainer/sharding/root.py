"""`RankModule`: the root of a sharded model. Whatever reads its parameters happens inside its forward."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class RankModule(nn.Module):
    """A model's module, and its value head where that is sharded too. Its forward calls a function, around which FSDP gathers.

    FSDP gathers parameters where a forward begins and frees them where it ends, so a function that reads them from outside
    sees shards, or a weight whose gradient goes nowhere. `used` names the sharded parameters that got a gradient in this process
    since it was last cleared. With tensor parallelism `copied` names those that mates hold alike, and `partial` those of them of
    whose gradient each mate has a part.
    """

    def __init__(self, module: nn.Module, value_head: nn.Module | None) -> None:
        super().__init__()
        self.module = module
        self.value_head = value_head
        self.used: set[str] = set()
        self.copied: frozenset[str] = frozenset()
        self.partial: frozenset[str] = frozenset()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As every module's, without FSDP's warning that outputs which are views must not be written in place: none is."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            return super().__call__(*args, **kwargs)

    def forward(self, function: Callable[[], T]) -> T:
        """What `function` returns: tensors, in dicts, tuples, lists or dataclasses.

        FSDP puts hooks on the tensors that it finds there, so a container that it does not know would lose the gradient:
        TypeError names it. Autocast keeps no weight in its cache, where a later forward would read one that is freed by then.
        """
        kept = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            outputs = function()
        finally:
            torch.set_autocast_cache_enabled(kept)
        _check_container(outputs)
        return outputs


def _check_container(value: object) -> None:
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif value is None or isinstance(value, Tensor | bool | int | float | str):
        parts = []
    else:
        raise TypeError(
            f"a forward of a sharded model returned a {type(value).__name__}, in which tensors would lose their gradient: return "
            "tensors in dicts, tuples, lists or dataclasses"
        )
    for part in parts:
        _check_container(part)
