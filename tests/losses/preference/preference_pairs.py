"""What the tests of preference losses share: responses of one token whose log-ratio, or logprob, is the number in question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lossbook import Datum, get_loss

from ..cases import datum, evaluated

#: Every reference logprob, so that log-ratios up to 20 nats are ones of logprobs at most 0.
REFERENCE = -20.0


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """log(1 + e^x), which is -log σ(-x)."""
    return math.log1p(math.exp(x)) if x < 0 else x + math.log1p(math.exp(-x))


def of_ratios(loss: str, *ratios: float, inputs: dict[str, Sequence[float]] | None = None, **settings: Any) -> Any:
    """(value, gradient of each log-ratio, metrics) of responses of one token. inputs: one number per datum, by name."""
    data = [
        datum(1, weights=[1], ref_logprobs=[REFERENCE], **{key: values[i] for key, values in (inputs or {}).items()})
        for i in range(len(ratios))
    ]
    return _plain(*evaluated(get_loss(loss, **settings), data, [[REFERENCE + ratio] for ratio in ratios]))


def of_logprobs(loss: str, *logprobs: float, **settings: Any) -> Any:
    """The same for losses without a reference."""
    data = [datum(1, weights=[1]) for _ in logprobs]
    return _plain(*evaluated(get_loss(loss, **settings), data, [[logprob] for logprob in logprobs]))


def _plain(value: float, gradients: Any, metrics: dict[str, float]) -> tuple[float, list[float], dict[str, float]]:
    return value, [float(g) for g in gradients], metrics


def pair_of(chosen: Sequence[float], rejected: Sequence[float]) -> list[Datum]:
    """Two responses with these reference logprobs and weights of 1."""
    return [datum(len(row), weights=[1] * len(row), ref_logprobs=list(row)) for row in (chosen, rejected)]
