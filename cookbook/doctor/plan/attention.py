"""Attention as a fused kernel keeps it for the backward, for counting: queries, keys, values, outputs, a number per query.

That is what flash attention saves (Dao 2023, arXiv:2307.08691): no [tokens, tokens] matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: The name of `attend` among transformers' attention functions.
NAME = "lossbook_counted"


class _Attention(torch.autograd.Function):
    """Empty outputs of the right shape, and the tensors that a kernel saves."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """query [B, H, T, D], key and value [B, G, T, D] to [B, T, H, D], as transformers calls attention."""
    output: Any = _Attention.apply(query, key, value)
    return output.transpose(1, 2), None


def register() -> None:
    """Put `attend` among transformers' attention functions."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
