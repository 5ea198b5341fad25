"""The parts of a model that have a fused form, and their forwards in it: norms, rotations, gated MLPs.

What a part computes is not read from its class: each form is tried on it, and kept where it gives the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from .kernels import Kernels

#: By what attributes an RMSNorm names the number that it adds to the mean square.
EPSILONS = ("variance_epsilon", "eps", "epsilon")
#: (offset of the weight, where a narrow input is rounded): Llama's, Gemma's, and the two others.
NORM_FORMS = ((0.0, "llama"), (1.0, "gemma"), (0.0, "gemma"), (1.0, "llama"))
#: The function by which transformers' attention rotates queries and keys, a global of each architecture's module.
ROTATION = "apply_rotary_pos_emb"

Forward = Callable[..., Any]


def norms(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Norms by the root mean square whose forward is their architecture's own; torch's is one operation already."""
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        is_one = "RMSNorm" in type(part).__name__ and not isinstance(part, nn.RMSNorm)
        if is_one and isinstance(weight, nn.Parameter) and weight.ndim == 1:
            yield name, part


def norm_forwards(norm: Any, kernels: Kernels) -> Iterator[Forward]:
    """The forms that a norm's forward may have."""
    own = type(norm).forward
    eps = next((getattr(norm, name) for name in EPSILONS if isinstance(getattr(norm, name, None), float)), None)
    if eps is None or len(inspect.signature(own).parameters) != 2:
        return
    for offset, casting in NORM_FORMS:

        def forward(self: Any, x: Tensor, offset: float = offset, casting: str = casting) -> Tensor:
            if x.dtype != self.weight.dtype or not x.numel():  # of two dtypes its own forward makes the wider
                return own(self, x)
            return kernels.rms_norm(x, self.weight, eps, offset, casting)

        yield forward


def mlps(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """MLPs that multiply an activation of one projection with another projection, and hold nothing else."""
    for name, part in module.named_modules():
        projections = {label for label, child in part.named_children() if sum(1 for _ in child.parameters())}
        if projections in ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"}):
            yield name, part


def mlp_forwards(mlp: Any, kernels: Kernels) -> Iterator[Forward]:
    """The forms that an MLP's forward may have. None for one that drops: in eval mode that would not show."""
    own: Any = inspect.unwrap(type(mlp).forward)
    drops = any(isinstance(child, nn.Dropout) for child in mlp.modules())
    if drops or "dropout" in own.__code__.co_names or len(inspect.signature(own).parameters) != 2:
        return
    if hasattr(mlp, "gate_up_proj"):
        for halves in kernels.halves.values():

            def forward_of_halves(self: Any, x: Tensor, halves: Callable[[Tensor], Tensor] = halves) -> Tensor:
                return self.down_proj(halves(self.gate_up_proj(x))) if x.numel() else own(self, x)

            yield forward_of_halves
        return
    for gated in kernels.gated.values():

        def forward(self: Any, x: Tensor, gated: Callable[[Tensor, Tensor], Tensor] = gated) -> Tensor:
            return self.down_proj(gated(self.gate_proj(x), self.up_proj(x))) if x.numel() else own(self, x)

        yield forward


def rotating(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attention modules that rotate queries and keys by their architecture's function."""
    for name, part in module.named_modules():
        own = type(part).forward
        if isinstance(own, FunctionType) and ROTATION in own.__code__.co_names and ROTATION in own.__globals__:
            yield name, part


def rotation_of(attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function that an attention module rotates by."""
    own: Any = type(attention).forward
    return own.__globals__[ROTATION]


def rotating_by(attention: nn.Module, rotate: Callable[..., tuple[Tensor, Tensor]]) -> Forward:
    """An attention module's own forward, with another function for the rotation: a copy of it with other globals."""
    own: Any = type(attention).forward
    copy = FunctionType(
        own.__code__, own.__globals__ | {ROTATION: rotate}, own.__name__, own.__defaults__, own.__closure__
    )
    copy.__kwdefaults__ = own.__kwdefaults__
    return copy


def rotation(own: Callable[..., tuple[Tensor, Tensor]], kernels: Kernels) -> Callable[..., tuple[Tensor, Tensor]]:
    """The fused rotation, where it is called as Llama calls it."""

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if more or named or q.ndim != 4 or q.dtype != k.dtype or not q.numel():
            return own(q, k, cos, sin, *more, **named)
        return kernels.rotate(q, k, cos, sin)

    return rotate
