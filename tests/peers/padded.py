"""Padded batches for comparing policy losses: masks with holes, a row that is masked whole, advantages of 0, and ratios that overflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput

ROWS, WIDTH = 7, 9
#: By how much the policy has moved, in nats per token: from hardly to beyond every clip; `inf`: log-ratios of up to ±40.
SPREADS = (1e-4, 0.05, 0.3, 1.0, float("inf"))
FINITE = SPREADS[:-1]


@dataclass(frozen=True)
class Batch:
    """Tensors [ROWS, WIDTH] in float64, whose numbers float32 holds exactly, except logprobs."""

    logprobs: Tensor
    sampling: Tensor
    reference: Tensor
    mask: Tensor
    advantages: Tensor

    def data(self, **more: Tensor) -> list[Datum]:
        """A datum per row. Its weights are the row's mask; `more` are inputs, [ROWS, WIDTH] each."""
        columns = {
            "weights": self.mask,
            "sampling_logprobs": self.sampling,
            "ref_logprobs": self.reference,
            "advantages": self.advantages,
            **more,
        }
        return [
            Datum(
                ModelInput.from_ints(list(range(WIDTH))),
                {"target_tokens": [0] * WIDTH, **{key: column[row].numpy() for key, column in columns.items()}},
            )
            for row in range(len(self.mask))
        ]


def batch(seed: int, spread: float, *, empty: bool = True, per_response: bool = False) -> Batch:
    """A draw. empty: one row is masked whole. per_response: one advantage per row; one row's is 0."""
    draw = torch.Generator().manual_seed(seed)
    shape = (ROWS, WIDTH)
    lengths = torch.tensor([5, 1, 9, 0 if empty else 4, 7, 2, 6])
    mask = (torch.arange(WIDTH) < lengths[:, None]).double()
    mask[2, 4] = mask[4, 0] = 0  # a tool's answer, and a prompt
    wide = spread == float("inf")
    sampling = -(0.2 + (40 if wide else 4) * torch.rand(shape, generator=draw)).float().double()
    moved = torch.randn(shape, generator=draw, dtype=torch.float64)
    logprobs = -40 * torch.rand(shape, generator=draw).double() if wide else sampling + spread * moved
    reference = sampling + 0.5 * torch.randn(shape, generator=draw)
    advantages = torch.randn(shape, generator=draw).double()
    if per_response:
        advantages = advantages[:, :1].expand(shape).clone()
    advantages[5] = 0
    return Batch(logprobs.clamp(max=-1e-3), sampling, reference.clamp(max=-1e-3).float().double(), mask, advantages)


def differences(
    ours: Any,
    peer: Callable[..., Tensor],
    *,
    spreads: Sequence[float] = SPREADS,
    data: Callable[[Batch], list[Datum]] = Batch.data,
    **kind: bool,
) -> tuple[float, float]:
    """The largest of value and gradient over two draws for each spread, relative where theirs is above 1. kind: see `batch`."""
    value, gradient = 0.0, 0.0
    for seed, spread in enumerate([*spreads, *spreads]):
        rows = batch(seed, spread, **kind)
        here, there = (rows.logprobs.clone().requires_grad_() for _ in range(2))
        mine, _ = ours(data(rows), list(here))
        theirs = peer(there, rows.sampling, rows.reference, rows.mask, rows.advantages)
        (slope,) = torch.autograd.grad(mine, here)
        (expected,) = torch.autograd.grad(theirs, there)
        value = max(value, relative(mine.detach(), theirs.detach()))
        gradient = max(gradient, relative(slope, expected))
    return value, gradient


def relative(mine: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest size; over 1 where that is smaller."""
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1))
