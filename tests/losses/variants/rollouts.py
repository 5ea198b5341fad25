"""Datums whose rollout and trainer disagree by given numbers of nats."""

from __future__ import annotations

import math
from typing import Any

import torch

from lossbook import Datum

#: Low enough that no drift lifts a logprob above 0.
BASE = -64.0
TWO, THREE, TEN = math.log(2), math.log(3), math.log(10)


def datum(
    drift: list[float],
    advantage: float = -1.0,
    weights: list[float] | None = None,
    trainer: list[float] | None = None,
    **inputs: Any,
) -> Datum:
    """Tokens sampled by the policy itself, `drift` nats likelier under the trainer than in the engine: ppo's loss is 1.

    trainer: their logprobs there, all BASE unless given.
    """
    trainer = trainer or [BASE] * len(drift)
    return Datum(
        list(range(len(drift))),
        {
            "target_tokens": list(range(len(drift))),
            "weights": weights or [1.0] * len(drift),
            "sampling_logprobs": trainer,
            "rollout_logprobs": [logprob - d for logprob, d in zip(trainer, drift, strict=True)],
            "advantages": [advantage] * len(drift),
            **inputs,
        },
    )


def evaluated(loss: Any, *data: Datum) -> tuple[float, list[list[float]], dict[str, float]]:
    """Value, gradients and metrics where the policy gives each token BASE."""
    leaves = [
        torch.full((len(d.loss_fn_inputs["target_tokens"]),), BASE, dtype=torch.float64, requires_grad=True)
        for d in data
    ]
    value, metrics = loss(list(data), leaves)
    return float(value.detach()), [g.tolist() for g in torch.autograd.grad(value, leaves)], metrics
