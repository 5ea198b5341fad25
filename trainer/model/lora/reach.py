"""Whether an adapter on a weight would do what it should, tried in one short forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..model import LoadedModel
from ..weights.four_bit import dense_weight

#: Tokens of the forward pass.
PROBED_TOKENS = 8


def obstacles(model: LoadedModel, owners: Mapping[str, str]) -> dict[str, str]:
    """For each weight whose module is called: why it cannot have an adapter, or "". Other weights have no entry.

    owners  the module of each weight; a linear layer that is adapted as a whole is its own

    Each module's output gets a zero added, through which a gradient has to come back.
    """
    reasons: dict[str, str] = {}
    zeros: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        reasons[name] = _other_product(module, given, output) if owners[name] == name else ""
        if not isinstance(output, Tensor):
            return None
        zeros[name] = zeros.get(name, torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True))
        return output + zeros[name]

    handles = [
        model.module.get_submodule(owner).register_forward_hook(partial(watch, name)) for name, owner in owners.items()
    ]
    tokens = torch.arange(PROBED_TOKENS, device=model.device)[None] % model.vocab_size
    options = {} if model.kind == "encoder" else {"use_cache": False}
    try:
        with model.precision(), torch.enable_grad():
            hidden = model.backbone(tokens, **options).last_hidden_state
            total = model.before_head(hidden[0]).sum()
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name in zeros if not reasons[name]]
    if total.requires_grad:
        gradients = torch.autograd.grad(total, [zeros[name] for name in names], allow_unused=True)
        without = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
        reasons |= dict.fromkeys(without, "no gradient reaches it")
    return reasons


def _other_product(module: nn.Module, given: tuple[Any, ...], output: Any) -> str:
    """Why a layer that is linear by class is none: it gives something else than the product of weight and input."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward or not given:
        return ""
    with torch.no_grad():
        product = nn.functional.linear(given[0], dense_weight(module), module.bias)
    same = isinstance(output, Tensor) and product.shape == output.shape
    if same and torch.allclose(product, output, rtol=1e-2, atol=1e-3):
        return ""
    return f"its layer ({type(module).__name__}) gives something else than the product with it"
