"""Which positions count, decided here for packing, reductions, metrics and traces.

A target counts where its weight is not 0, and a position where any of its targets does. A loss that reads `weights` itself
sees every position. The functions take NumPy arrays, tensors, and tensors that are being traced.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import stats
from ..spec.spec import LossSpec
from ..stats import Stat


def active_targets(weights: Any, spec: LossSpec) -> Any:
    """[T] or [T, K] bool, like `weights`: which targets the loss sees."""
    if not spec.wants_weights:
        return weights != 0
    return np.ones(weights.shape, dtype=bool) if isinstance(weights, np.ndarray) else torch.ones_like(weights).bool()


def active_positions(targets: Any) -> Any:
    """[T] bool from [T] or [T, K]: positions with any such target."""
    return targets if targets.ndim == 1 else targets.any(1)


def has_columns(weights: Tensor, spec: LossSpec) -> bool:
    """Whether the weights are [T, K] over K targets, of which a row may have fewer."""
    return weights.ndim == 2 and not spec.wants_weights


def weighted_positions(weights: Tensor, like: Tensor) -> Tensor:
    """[T] or [T, 1] bool, shaped to go with `like`: which positions have a weight, also in a loss that reads weights."""
    return active_positions(weights != 0).to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def weighted(values: Any, weights: Any, active: Any) -> Any:
    """weights x values, and 0 wherever a target does not count, even beside NaN."""
    nothing: Any = 0
    if isinstance(values, Tensor):
        nothing = torch.zeros((), dtype=values.dtype, device=values.device)
    return torch.where(active, weights * values, nothing)


def standard_metrics(spec: LossSpec, logprobs: Any) -> dict[str, Stat]:
    """{"nll": ...}: reported of every loss over the logprobs of given targets, beside its own metrics."""
    if logprobs is None or spec.wants_weights or spec.candidates:
        return {}
    return {"nll": stats.mean(-logprobs)}
