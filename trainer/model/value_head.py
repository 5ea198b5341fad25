"""A value head: one number per position, a critic's estimate of the return from there on; or a projection, P numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...datums.errors import ModelError

if TYPE_CHECKING:
    from .model import LoadedModel


def add_value_head(model: LoadedModel, numbers: int = 1) -> LoadedModel:
    """Give the model a trainable linear map from hidden states to `numbers` numbers, in place; returns the same model.

    Float32 at least. It starts at zero: every value is 0 at first, and a loss over values sends no gradient into the model
    before the head's first step. Raises ModelError where there is a value head already, or for fewer than 1 number.
    """
    if numbers < 1:
        raise ModelError(f"a projection head gives 1 number per position at least, not {numbers}")
    if model.value_head is not None:
        raise ModelError(f"{model.name} has a value head already; load the model anew")
    dtype = torch.promote_types(next(model.module.parameters()).dtype, torch.float32)
    width = model.config.get_text_config().hidden_size
    # on "meta" nothing is drawn, so that the script's random state stays as it is
    head = nn.Linear(width, numbers, device="meta", dtype=dtype).to_empty(device=model.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.value_head = head
    return model


def values_of(model: LoadedModel, hidden: Tensor) -> Tensor:
    """[M, d] hidden states to [M] values. The value at position t depends on tokens 0 to t, as target t's logits do.

    Raises ModelError when the model has no value head.
    """
    return projection_of(model, hidden).squeeze(-1)


def projection_of(model: LoadedModel, hidden: Tensor) -> Tensor:
    """[M, d] hidden states to the head's [M, P] numbers. Raises ModelError when the model has no value head."""
    head = model.value_head
    if head is None:
        raise no_value_head(model)
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.to(head.weight.dtype))


def check_value_head(model: LoadedModel, names: Sequence[str]) -> None:
    """Raise ModelError where the outputs `names` need a value head that the model has not, or one number of several."""
    head = model.value_head
    if head is None and ("values" in names or "projection" in names):
        raise no_value_head(model)
    if head is not None and "values" in names and head.out_features > 1:
        raise ModelError(
            f"{model.name} has a projection head of {head.out_features} numbers, and a value is one: read it by "
            'forward_backward_custom(..., output="projection"), or make the client with value_head=True'
        )


def no_value_head(model: LoadedModel) -> ModelError:
    """The error for a loss that reads values where the model has no value head."""
    return ModelError(
        f"{model.name} has no value head, so it gives no values. Make the client with value_head=True, as in "
        f"create_training_client({model.name!r}, value_head=True) or projection_head_dim=1, or use a loss over another output, such as logprobs"
    )
