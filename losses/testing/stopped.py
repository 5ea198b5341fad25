"""What a loss holds constant for autograd: recorded once, and given again while its outputs are moved by a small step."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: The code of `Function.apply`. A Function computes without a graph, though what it returns has one.
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


class StoppedValues(TorchFunctionMode):
    """Records the tensors through which no gradient flows; when entered again, gives the recorded ones.

    These are what `detach` returns, what is computed under no_grad, and what a `torch.autograd.Function` returns without a
    graph (its non-differentiable outputs, or all that it returns under no_grad). What happens inside such a Function is its
    own: its backward answers for that. Evaluate with outputs that require gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self._recorded: list[Tensor] = []
        self._next: int | None = None
        self._functions = 0  # how many calls of Function.apply are under way
        self._profile: Any = None

    def __enter__(self) -> Any:
        self._next = 0 if self._recorded else None
        self._functions = 0
        self._profile = sys.getprofile()
        # Not by replacing Function.apply: losses keep `apply = Op.apply` in a variable of their own.
        sys.setprofile(self._watch)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        sys.setprofile(self._profile)

    def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        stops = getattr(function, "__name__", "") == "detach" or not torch.is_grad_enabled()
        return self._held(result) if stops and isinstance(result, Tensor) and not self._functions else result

    def _watch(self, frame: FrameType, event: str, returned: Any) -> None:
        if frame.f_code is not _APPLY or event not in ("call", "return"):
            return
        self._functions += 1 if event == "call" else -1
        if event == "call" or self._functions:
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for output in returned if isinstance(returned, tuple) else (returned,):
                if isinstance(output, Tensor) and not output.requires_grad:
                    output.copy_(self._held(output))

    def _held(self, tensor: Tensor) -> Tensor:
        """The tensor as it was at this place the first time."""
        if self._next is None:
            self._recorded.append(tensor.clone())
            return tensor
        self._next += 1
        if self._next > len(self._recorded) or self._recorded[self._next - 1].shape != tensor.shape:
            return tensor
        return self._recorded[self._next - 1].clone()
