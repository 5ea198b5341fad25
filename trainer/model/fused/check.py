"""Numbers of a part with its own forward and with a fused one, outputs and gradients, and how far they lie apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..model import LoadedModel

#: Sizes of a norm's inputs: one for which the number added to the mean square counts, and large ones.
SCALES = (1e-3, 0.1, 1.0, 30.0)
#: Sequences and tokens on which a model is tried as a whole.
TRIED = (2, 8)


def tolerance(dtype: torch.dtype) -> float:
    """How far apart the same numbers may lie, relative to their size: 64 roundings, or 2 of a type narrower than float32."""
    eps = torch.finfo(dtype).eps
    return (64 if eps <= torch.finfo(torch.float32).eps else 2) * eps


def apart(ours: Sequence[Tensor], theirs: Sequence[Tensor], *, typical: bool = False) -> float:
    """By how much of its size a row differs at most, or, where `typical`, in the median over rows; infinite for NaN."""
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape:
            return float("inf")
        one, other = (each.reshape(-1, each.shape[-1]).double() for each in (one, other))
        rows = (one - other).norm(dim=-1) / other.norm(dim=-1).clamp(min=1e-12)
        worst = max(worst, float((rows.median() if typical else rows.max()).nan_to_num(nan=float("inf"))))
    return worst


@contextmanager
def having(part: Any, forward: Callable[..., Any] | None) -> Iterator[None]:
    """Inside, a module has another forward; None for its class's."""
    if forward is not None:
        part.forward = MethodType(forward, part)
    try:
        yield
    finally:
        part.__dict__.pop("forward", None)


def numbers(run: Callable[..., Any], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a function of tensors, and their gradient by each, for one random gradient of the outputs."""
    with torch.enable_grad():
        inputs = [leaf.detach().requires_grad_() for leaf in leaves]
        # An operation may write over its inputs, but not over leaves, nor over those of the next that is tried.
        outputs = run(*(leaf * 1 for leaf in inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        upstream = [random_like(output, seed) for seed, output in enumerate(outputs)]
        gradients = torch.autograd.grad(outputs, inputs, upstream)
    return [*(output.detach() for output in outputs), *gradients]


def numbers_of_norm(norm: nn.Module, forward: Callable[..., Any] | None, dtype: torch.dtype) -> list[Tensor]:
    """A norm's [rows, d], and the gradients of input and weight."""
    weight: Any = norm.weight
    x = random_like(weight.new_empty(len(SCALES), len(weight)), 7) * weight.new_tensor(SCALES)[:, None]
    with having(norm, forward):
        return numbers(
            lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, (x,)),
            [x.to(dtype), weight.to(dtype)],
        )


def numbers_of_mlp(mlp: nn.Module, forward: Callable[..., Any] | None, model: LoadedModel) -> list[Tensor]:
    """An MLP's [1, rows, d], and the gradient of its input."""
    first: Any = getattr(mlp, "gate_proj", None) or mlp.gate_up_proj
    x = random_like(embeddings_of(model).weight.new_empty(1, len(SCALES), first.in_features), 7)
    with having(mlp, forward), model.precision():
        return numbers(mlp, [x])


def numbers_of_model(model: LoadedModel) -> list[Tensor]:
    """Hidden states [tokens, d] of a few tokens, and the gradient of their embeddings."""
    embeddings = embeddings_of(model)

    def run(offset: Tensor) -> Tensor:
        hook = embeddings.register_forward_hook(lambda _module, _given, output: output + offset)
        try:
            return few_tokens(model)
        finally:
            hook.remove()

    return numbers(run, [embeddings.weight.new_zeros(*TRIED, embeddings.weight.shape[1])])


def few_tokens(model: LoadedModel) -> Tensor:
    """Hidden states [2, 8, d] of two short sequences."""
    tokens = (torch.arange(TRIED[0] * TRIED[1], device=model.device).view(TRIED) * 7 + 3) % model.vocab_size
    options = {} if model.kind == "encoder" else {"use_cache": False}
    with model.precision():
        return model.backbone(tokens, **options).last_hidden_state


def embeddings_of(model: LoadedModel) -> Any:
    """The layer that makes vectors of tokens."""
    module: Any = model.module
    return module.get_input_embeddings()


def random_like(tensor: Tensor, seed: int) -> Tensor:
    """Normal numbers like a tensor's; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)
