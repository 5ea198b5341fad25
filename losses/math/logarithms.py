"""Logarithms that need care where their argument is nearly 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: A log-probability above this counts as this one, so that 1 - p is 1e-6 at least.
MAX_LOGPROB_OF_COMPLEMENT = -1e-6


def log1mexp(logprobs: Tensor, highest: float = MAX_LOGPROB_OF_COMPLEMENT) -> Tensor:
    """log(1 - exp(logprobs)): the log-probability of the complementary event.

    logprobs are at most 0; above `highest` they are held there and have no gradient. Either branch is exact where the other
    loses digits (Mächler 2012, "Accurately computing log(1 - exp(-|a|))", eq. 7).
    """
    held = logprobs.clamp(max=highest)
    return torch.where(held > -math.log(2), torch.log(-torch.expm1(held)), torch.log1p(-torch.exp(held)))
