"""`fuse_layers`: a model's norms, rotations and gated MLPs in fused kernels, where these give the layers' own numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from ....datums.errors import ModelError
from ...choices import FusedLayers
from ..defaults import usual_defaults
from ..model import LoadedModel
from ..verdict import Verdict
from .check import apart, few_tokens, numbers, numbers_of_mlp, numbers_of_model, numbers_of_norm, tolerance
from .kernels import Kernels, kernels_for
from .parts import Forward, mlp_forwards, mlps, norm_forwards, norms, rotating, rotating_by, rotation, rotation_of

#: (name, module, its fused forward or why it keeps its own)
Tried = Iterator[tuple[str, Any, Forward | str]]

#: A layer's number in a module's name.
NUMBER = re.compile(r"[.][0-9]+[.]")
#: How far off a whole model may be, in units of one part's tolerance.
DEPTH = 16


@usual_defaults()
def fuse_layers(model: LoadedModel, fused_layers: FusedLayers = "auto") -> LoadedModel:
    """Give the model's layers fused forwards, in place; returns the same model.

    Each part is tried on a small random input, forward and gradient, and the whole model on a few tokens. What gives other
    numbers than its own layers, beyond rounding, keeps these, and `model.verdicts` says why ("fused norms", "fused rotations",
    "fused MLPs"). Only this model's modules change, by a `forward` of their own: classes, names and weights stay.

    Raises ModelError where "liger" is asked for and nothing can be fused.
    """
    if fused_layers == "none" or model.fused:
        return model
    kernels = kernels_for(model.device) if model.base_weights == "full" else "its base weights are 4-bit"
    if isinstance(kernels, Kernels):
        _fuse(model, kernels)
    elif model.device.type == "cuda" or fused_layers == "liger":
        model.verdicts["fused"] = Verdict(False, kernels)
    if fused_layers == "liger" and not model.fused:
        reasons = [each.reason for name, each in model.verdicts.items() if name.startswith("fused")]
        reason = "; ".join(reasons) or "it has no part that liger-kernel knows"
        raise ModelError(f"{model.name} cannot run with fused_layers='liger': {reason}. Take 'auto' or 'none'")
    return model


def _fuse(model: LoadedModel, kernels: Kernels) -> None:
    was_training = model.module.training
    model.module.eval()
    expected = numbers_of_model(model)
    changed: list[Any] = []
    for kind, tried in KINDS.items():
        kept: Counter[str] = Counter()
        for name, part, forward in tried(model, kernels):
            if isinstance(forward, str):
                kept[f"{NUMBER.sub('.*.', name)} ({forward})"] += 1
                continue
            part.forward = MethodType(forward, part)
            changed.append(part)
            model.fused[kind] = model.fused.get(kind, 0) + 1
        if kept or kind in model.fused:
            model.verdicts[f"fused {kind}"] = Verdict(not kept, ", ".join(f"{n} x {what}" for what, n in kept.items()))
    off = apart(numbers_of_model(model), expected, typical=True)
    model.module.train(was_training)
    if changed and not off <= DEPTH * tolerance(model.product_dtype):
        for part in changed:
            del part.forward
        model.fused.clear()
        model.verdicts["fused"] = Verdict(False, f"the model as a whole is off by {off:.2g} with {kernels.source}")


def _norms(model: LoadedModel, kernels: Kernels) -> Tried:
    for name, norm in norms(model.module):

        def with_forward(forward: Forward | None, norm: Any = norm) -> list[Tensor]:
            return numbers_of_norm(norm, forward, model.product_dtype)

        yield name, norm, _nearest(with_forward, norm_forwards(norm, kernels), model.product_dtype)


def _mlps(model: LoadedModel, kernels: Kernels) -> Tried:
    for name, mlp in mlps(model.module):

        def with_forward(forward: Forward | None, mlp: Any = mlp) -> list[Tensor]:
            return numbers_of_mlp(mlp, forward, model)

        yield name, mlp, _nearest(with_forward, mlp_forwards(mlp, kernels), model.product_dtype)


def _rotations(model: LoadedModel, kernels: Kernels) -> Tried:
    given = _rotations_given(model)
    for name, attention in rotating(model.module):
        if attention not in given:
            yield name, attention, "it is not called as Llama's, or not at all"
            continue
        own = rotation_of(attention)
        fused = rotation(own, kernels)
        (q, k, cos, sin) = given[attention]

        def rotated(
            forward: Forward | None, own: Any = own, tensors: Sequence[Tensor] = (q, k, cos, sin)
        ) -> list[Tensor]:
            q, k, cos, sin = tensors
            return numbers(lambda q, k: (forward or own)(q, k, cos, sin), [q, k])

        chosen = _nearest(rotated, [fused], q.dtype)
        yield name, attention, chosen if isinstance(chosen, str) else rotating_by(attention, fused)


def _rotations_given(model: LoadedModel) -> dict[Any, tuple[Tensor, ...]]:
    """What attention modules hand to their rotation, by module; those that call it in another way than Llama are left out."""
    given: dict[Any, tuple[Tensor, ...]] = {}
    parts = [attention for _, attention in rotating(model.module)]
    try:
        for attention in parts:

            def noting(*tensors: Tensor, attention: Any = attention, **named: Any) -> tuple[Tensor, Tensor]:
                if len(tensors) == 4 and not named:
                    given[attention] = tuple(tensor.detach().clone() for tensor in tensors)
                return rotation_of(attention)(*tensors, **named)

            attention.forward = MethodType(rotating_by(attention, noting), attention)
        with torch.no_grad():
            few_tokens(model)
    finally:
        for attention in parts:
            attention.__dict__.pop("forward", None)
    return given


KINDS: dict[str, Callable[[LoadedModel, Kernels], Tried]] = {"norms": _norms, "MLPs": _mlps, "rotations": _rotations}


def _nearest(
    with_forward: Callable[[Forward | None], list[Tensor]], forms: Iterable[Forward], dtype: torch.dtype
) -> Forward | str:
    """Of some forms the one whose numbers are nearest to those of a part's own forward, or why none of them is near."""
    least, nearest, reason = float("inf"), None, "its forward has another form"
    for form in forms:
        try:  # an architecture may call its part in another way, a kernel may refuse a shape
            off = apart(with_forward(form), with_forward(None))
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            continue
        if off < least:
            least, nearest, reason = off, form, f"off by {off:.2g} of its numbers"
    return nearest if nearest is not None and least <= tolerance(dtype) else reason
