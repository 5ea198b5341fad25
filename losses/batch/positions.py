"""Which positions there are and which count, decided here for packing, reductions, metrics, traces and the trainer.

A target counts where its weight is not 0, and a position where any of its targets does. A loss that reads `weights` itself
sees every position. The functions take NumPy arrays, tensors, and tensors that are being traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Proxy

from ...datums.types import Datum
from .. import stats
from ..spec.settings import WEIGHTS_KEY
from ..spec.spec import LossSpec
from ..stats import Stat


def target_shape(datum: Datum) -> tuple[int, ...]:
    """The shape of its target tokens, [N] or [N, K]; without any, [N] for N input tokens."""
    targets = datum.loss_fn_inputs.get("target_tokens")
    return (datum.model_input.length,) if targets is None else tuple(targets.shape) or (1,)


def positions_of(datum: Datum) -> int:
    """How many positions a datum has: one per target token, or one per input token without targets."""
    return target_shape(datum)[0]


def width_of(datums: Sequence[Datum]) -> int | None:
    """K of [N, K] targets: the largest among the datums; None when all targets are [N]."""
    return max((shape[1] for shape in map(target_shape, datums) if len(shape) == 2), default=None)


def active_targets(weights: Any, spec: LossSpec | None = None) -> Any:
    """[T] or [T, K] bool, like `weights`: which targets count, or which of them the loss sees."""
    if spec is None or not spec.wants_weights:
        return weights != 0
    return np.ones(weights.shape, dtype=bool) if isinstance(weights, np.ndarray) else torch.ones_like(weights).bool()


def active_positions(targets: Any) -> Any:
    """[T] bool from [T] or [T, K]: positions with any such target."""
    return targets if targets.ndim == 1 else targets.any(1)


def active_in(datum: Datum, keys: Sequence[str] = (WEIGHTS_KEY,)) -> np.ndarray:
    """[N] bool: at which of a datum's positions the weights under any of these keys are not 0; all where one is not there."""
    positions, active = positions_of(datum), np.zeros(positions_of(datum), dtype=bool)
    for key in keys:
        if (weights := datum.loss_fn_inputs.get(key)) is None:
            return np.ones(positions, dtype=bool)
        array = weights.to_numpy()
        array = array.reshape(-1) if array.size == positions else array.reshape(positions, -1)
        active |= active_positions(active_targets(array))
    return active


def has_columns(weights: Tensor, spec: LossSpec) -> bool:
    """Whether the weights are [T, K] over K targets, of which a row may have fewer."""
    return weights.ndim == 2 and not spec.wants_weights


def weighted_positions(weights: Any, like: Any) -> Any:
    """Bool in the shape of `like`: which targets (or positions) have a weight other than 0, also in a loss that reads
    weights itself.
    """
    is_traced = isinstance(like, Proxy)
    targets = active_targets(weights)
    if like.ndim == 0:
        targets = targets.any()
    elif like.ndim != weights.ndim or not (is_traced or like.shape == weights.shape):
        targets = active_positions(targets).reshape(-1, *[1] * (like.ndim - 1))
    return targets if is_traced else targets.to(like.device)


def harmless(values: Any, weights: Any) -> Any:
    """`values` with 0 for NaN and infinity where the weight is 0: times that weight they would be NaN, the gradient too.

    The one rule for losses that see every position: those that read `weights`, traced ones, and fn(data, logprobs_list).
    """
    return torch.where(weighted_positions(weights, values) | torch.isfinite(values), values, 0)


def weighted(values: Any, weights: Any, active: Any) -> Any:
    """weights x values, and 0 wherever a target does not count, even beside NaN."""
    nothing: Any = 0
    if isinstance(values, Tensor):
        nothing = torch.zeros((), dtype=values.dtype, device=values.device)
    return torch.where(active, weights * values, nothing)


def nll(logprobs: Any, active: Tensor | None = None) -> Stat:
    """The mean -logprob in nats, over all targets or the active ones."""
    return stats.mean(-logprobs if active is None else -logprobs[active])


def standard_metrics(spec: LossSpec, logprobs: Any) -> dict[str, Stat]:
    """{"nll": ...}: reported of every loss over the logprobs of given targets, beside its own metrics."""
    if logprobs is None or spec.wants_weights or spec.candidates:
        return {}
    return {"nll": nll(logprobs)}
