"""Logprobs of given tokens from hidden states, forward and backward: lossbook's head compared with others.

`python benchmarks/head.py [--device cuda --dtype bfloat16] [--vocabularies 32000 49152 151936] [--positions 256 512]`

One call is a forward to logprobs (or their mean, where a library gives only that) and a backward to hidden states and
weight. `torch cross_entropy` is `F.cross_entropy(h @ W.T)`, `naive` is logits, log_softmax, gather. All must agree on
loss and gradients before anything is timed. Times are medians over rounds in which the ways alternate; ratios are taken
within a round. Memory is what a call holds at its peak, gradients included.

Aims, in float32 on two CPU cores at V = 151,936 and d = 1024: `keep` at most 0.8 of torch cross_entropy's time;
`recompute` at most 1.25 of naive's time, and at 4,096 positions at most 0.1 of its memory; with labels on a quarter of
the positions at most 0.3 of naive's time over all; faster than cut-cross-entropy's compiled path and TRL's operation.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import Way, folder_for, interleaved, markdown, peak_memory, ratio, write
from torch import Tensor

from lossbook.trainer.head.logprobs import Head, linear_logprobs

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
NAIVE, TORCH = "naive", "torch cross_entropy"
TRL_CHUNK = 32_768  # columns at a time, as TRL's trainers ask for


def naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits, log_softmax, gather."""
    return -(hidden @ weight.t()).float().log_softmax(-1).gather(1, targets[:, None]).mean()


def torch_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.t()).float(), targets)


def torch_linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """torch 2.13's own, in chunks of 128 positions."""
    options = torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=128)  # type: ignore[attr-defined]
    return F.linear_cross_entropy(hidden, weight, targets, options=options)  # type: ignore[attr-defined]


def trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """TRL 1.16's, with the chunk size that its trainers use, and no other outputs."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    return -ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, TRL_CHUNK, None, 1.0, ())[0].mean()


def cut_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, targets, impl="cce" if hidden.is_cuda else "torch_compile")


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Liger's fused cross-entropy in Triton; on a CPU its chunked logprobs in plain torch."""
    if hidden.is_cuda:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(hidden, weight, targets)
    from liger_kernel.chunked_loss.fused_linear_ppo import _ChunkedSelectiveLogProbFunction

    return -_ChunkedSelectiveLogProbFunction.apply(hidden, weight, targets, None, 1.0, 4096).mean()


def liger_per_token(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Liger's loss per token, through which `head_backend="liger"` goes: one kernel on a Hopper GPU, else plain torch."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    return LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets).mean()


def ours(strategy: Any) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        # The mean's gradient is known before the forward.
        known = torch.full(targets.shape, -1 / len(targets), device=hidden.device)
        given = {"known_gradient": known} if strategy == "known-gradient" else {}
        logprobs = linear_logprobs(hidden, Head(weight), targets, head_strategy=strategy, **given).logprobs
        return (logprobs * known).sum()

    return loss


OURS: dict[str, Loss] = {f"ours, {name}": ours(name) for name in ("keep", "known-gradient", "recompute")}
THEIRS: dict[str, Loss] = {
    NAIVE: naive,
    TORCH: torch_cross_entropy,
    "TRL": trl,
    "cut-cross-entropy": cut_cross_entropy,
    "torch linear_cross_entropy": torch_linear_cross_entropy,
    "Liger": liger,
    "Liger, per token": liger_per_token,
}


class Case:
    """Leaves of one size, and calls of forward and backward over them."""

    def __init__(self, vocabulary: int, positions: int, width: int, device: str, dtype: torch.dtype, *, frozen: bool):
        random = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(positions, width, generator=random).to(device, dtype).requires_grad_()
        weight = torch.randn(vocabulary, width, generator=random).mul_(width**-0.5)
        self.weight = weight.to(device, dtype).requires_grad_(not frozen)
        self.targets = torch.randint(vocabulary, (positions,), generator=random).to(device)

    def way(self, loss: Loss, labels: int | None = None) -> Way:
        """One forward and backward, over the first `labels` positions or all."""

        def call() -> tuple[Tensor, Tensor | None, Tensor | None]:
            self.hidden.grad = self.weight.grad = None
            value = loss(self.hidden[:labels], self.weight, self.targets[:labels])
            value.backward()
            return value.detach(), self.hidden.grad, self.weight.grad

        return call

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def assert_same(self, losses: dict[str, Loss]) -> None:
        """Loss and gradients are torch's; a gradient to 0.1 % of its norm (5 % in lower precision)."""
        tolerance = 1e-3 if self.hidden.dtype == torch.float32 else 0.05
        wanted = self.way(torch_cross_entropy)()
        for label, loss in losses.items():
            for one, other in zip(self.way(loss)(), wanted, strict=True):
                if one is None or other is None:
                    assert one is other, label
                else:
                    assert (one - other).float().norm() <= tolerance * other.float().norm(), label
        self.clear()


def measure(case: Case, ways: dict[str, Way], rounds: int, about: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per way: median time, ratios, peak memory."""
    times = interleaved(ways, rounds, after=case.clear)
    rows = []
    for label, way in ways.items():
        case.clear()
        memory = peak_memory(way)
        row = {**about, "way": label, "ms": 1000 * statistics.median(times[label]), "MiB": memory / 2**20}
        row |= {f"time / {to}": ratio(times, label, to) for to in (TORCH, NAIVE) if to in ways}
        rows.append(row)
    case.clear()
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints a table, writes results/<name>.json and .csv; returns the rows."""
    parser = argparse.ArgumentParser(description="The head's logprobs, forward and backward, beside other libraries'.")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 49_152, 151_936])
    parser.add_argument("--positions", type=int, nargs="+", default=[256, 512, 4096])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--ways", nargs="+", choices=[*THEIRS, *OURS], default=[*THEIRS, *OURS])
    parser.add_argument("--quick", action="store_true", help="one small case, two rounds")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="head", help="of the files in results/")
    options = parser.parse_args(arguments)
    if options.quick:
        options.vocabularies, options.positions, options.width, options.rounds = [2000], [64], 64, 2
    rows = []
    for vocabulary in options.vocabularies:
        for positions in options.positions:
            for variant in options.variants:
                rows += VARIANTS[variant](vocabulary, positions, options)
    print(markdown(rows))
    write(options.name, rows, folder_for(options.out, quick=options.quick))
    return rows


def _all_rows(vocabulary: int, positions: int, options: argparse.Namespace, *, frozen: bool = False) -> list[dict]:
    dtype = getattr(torch, options.dtype)
    case = Case(vocabulary, positions, options.width, options.device, dtype, frozen=frozen)
    asked = {label: loss for label, loss in (THEIRS | OURS).items() if label in options.ways}
    case.assert_same(asked)
    about = {"V": vocabulary, "positions": positions, "head": "frozen" if frozen else "trained", "labels": positions}
    return measure(case, {label: case.way(loss) for label, loss in asked.items()}, options.rounds, about)


def _frozen(vocabulary: int, positions: int, options: argparse.Namespace) -> list[dict]:
    return _all_rows(vocabulary, positions, options, frozen=True)


def _quarter(vocabulary: int, positions: int, options: argparse.Namespace) -> list[dict]:
    """Labels on a quarter of the positions: naive computes all, ours the labelled ones."""
    dtype = getattr(torch, options.dtype)
    case = Case(vocabulary, positions, options.width, options.device, dtype, frozen=False)
    ways = {NAIVE: case.way(naive)}
    ways |= {label: case.way(loss, positions // 4) for label, loss in OURS.items() if label in options.ways}
    about = {"V": vocabulary, "positions": positions, "head": "trained", "labels": positions // 4}
    return measure(case, ways, options.rounds, about)


VARIANTS = {"trained": _all_rows, "frozen": _frozen, "quarter": _quarter}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
