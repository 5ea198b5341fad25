"""Rejection in the data: weights of 0 where `rollout_rejection` gives a loss of 0, so that the denominator leaves them out too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...datums.types import Datum, TensorData, as_datums
from ..batch.positions import target_shape
from .rollout_rejection import Divergence, Over, rollout_rejection


def without_rejected(
    data: Sequence[Datum],
    divergence: Divergence = "k3",
    *,
    over: Over = "token",
    low: float | None = None,
    high: float | None = None,
) -> list[Datum]:
    """`data` with weight 0 where the divergence from rollout to trainer leaves its bounds. Arguments as in `rollout_rejection`.

        data = without_rejected(data, "k3", over="mean", high=0.01)
        training.forward_backward(data, "ppo")

    A rejected token then is not trained on at all: it counts in no denominator and no metric, as in verl's `rollout_rs`. Of a
    response that is rejected all weights are 0. Tokens of weight 0 are not read. Raises as the loss does: EmptyLossError where
    no token had a weight, MissingInput and NonFiniteLossInput naming datum, key and position.
    """
    datums = as_datums(data)
    bound = rollout_rejection(_ones, divergence, over=over, low=low, high=high).prepare(datums)
    kept = bound.values([torch.zeros(target_shape(datum)) for datum in datums]).numpy()
    results: list[Datum] = []
    start = 0
    for datum, active in zip(datums, np.split(bound.active.numpy(), np.cumsum(bound.lengths)[:-1]), strict=True):
        shape, rows = target_shape(datum), int(active.sum())
        given = datum.loss_fn_inputs.get("weights")
        weights = np.ones(shape, dtype=np.float32) if given is None else given.to_numpy().reshape(shape).copy()
        own = kept[start : start + rows]
        weights[active] *= own if own.ndim == 1 else own[:, : weights.shape[1]]
        results.append(Datum(datum.model_input, {**datum.loss_fn_inputs, "weights": TensorData(weights)}))
        start += rows
    return results


def _ones(logprobs: Tensor) -> Tensor:
    """The loss that is rejected: 1 for each token."""
    return torch.ones_like(logprobs)
