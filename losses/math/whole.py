"""Divergences between distributions over a whole vocabulary: [T, V] log-probabilities in nats to [T] nats.

As in `divergences`, -inf is a probability of 0. Each pass over [T, V] costs as much as a part of the head's product, so there are few:
probabilities are computed once, and sums of products need no product in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expected(probabilities: Tensor, logprobs: Tensor, others: Tensor) -> Tensor:
    """Σ_v p_v (log p_v - other_v) over the v of p_v > 0: KL(p || other). probabilities: exp(logprobs)."""
    nowhere = logprobs == -torch.inf  # 0 (-inf) is NaN, also as a gradient
    return torch.linalg.vecdot(probabilities, torch.where(nowhere, 0.0, logprobs - others))


def mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """log((1 - share) first + share second) of probabilities; one that float32 holds no more is as unlikely as the least it holds."""
    mixture = torch.lerp(first, second, share)
    return mixture.clamp(min=torch.finfo(mixture.dtype).tiny).log()


def at_temperature(logprobs: Tensor, temperature: float) -> Tensor:
    """The log-probabilities of the same logits divided by a temperature."""
    return logprobs if temperature == 1 else torch.log_softmax(logprobs / temperature, -1)
