"""A recorder for CPUs that keeps what a CUDA graph keeps: the operations on tensors and where those lie, and nothing else.

Python does not run again at a replay, so numbers that it computed stay what they were. Whatever was computed at a step lies
at the same place at the next. A number that is read from a tensor is an error, as it is while CUDA captures. And as there,
recording itself changes nothing: tensors that the step wrote to are given their values back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::nonzero", "aten::masked_select")


class Recording(TorchDispatchMode):
    """Keeps the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func._schema.name}")
        writes = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)] if func._schema.is_mutable else []
        for tensor in writes:
            storage = tensor.untyped_storage()
            self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        places = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        is_view = not writes and any(t.untyped_storage().data_ptr() in places for t in made)
        if not is_view:
            self.steps.append((func, args, kwargs, [] if writes else made))
        return out

    def replay(self) -> None:
        """Do the same to the same tensors."""
        for func, args, kwargs, results in self.steps:
            out = func(*args, **kwargs)
            for kept, new in zip(results, (t for t in tree_leaves(out) if isinstance(t, Tensor)), strict=False):
                kept.copy_(new)


def record(step: Callable[[], None]) -> Callable[[], None]:
    """What `static.graph.Recorder` promises."""
    recording = Recording()
    with recording:
        step()
    for storage, kept in recording.before.values():
        storage.copy_(kept)
    return recording.replay
