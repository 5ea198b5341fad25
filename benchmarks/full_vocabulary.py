"""Distillation over the whole vocabulary from hidden states: lossbook's full_gkd beside TRL's and Liger's own computation.

`python benchmarks/full_vocabulary.py [--vocabularies 32000 128000 256000] [--positions 512] [--beta 0.5]`

One call is a forward from the hidden states of student and teacher to the generalised Jensen-Shannon divergence, a mean over
positions, and a backward to the student's hidden states and head. `TRL, logits` is the GKD trainer's loss on logits of both;
`TRL, chunked` the distillation trainer's, which takes hidden states since 1.16; `Liger` its chunked JSD without cross-entropy, not
compiled. All must agree on loss and gradients before anything is timed. Times are medians over rounds in which the ways alternate;
ratios are taken within a round. `MiB` is what a call holds at its peak, the gradient of the head included, which is
V x width x 4 bytes in every way; `MiB, frozen head` is the same where only hidden states get a gradient.

Aims: memory with a frozen head that does not grow with V or positions; time at most that of the faster of TRL and Liger.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import Way, folder_for, interleaved, markdown, peak_memory, ratio, write
from torch import Tensor

from lossbook import get_loss

OURS, DENSE, CHUNKED, LIGER = "lossbook", "TRL, logits", "TRL, chunked", "Liger"


class Case:
    """Hidden states and heads of a student and a teacher of one size, and calls of forward and backward over them."""

    def __init__(self, vocabulary: int, positions: int, width: int, beta: float, device: str, dtype: torch.dtype):
        random = torch.Generator().manual_seed(0)

        def normal(rows: int, scale: float = 1.0) -> Tensor:
            return torch.randn(rows, width, generator=random).mul_(scale).to(device, dtype)

        self.beta = beta
        self.hidden, self.teacher = normal(positions).requires_grad_(), normal(positions)
        self.weight, self.teacher_weight = (normal(vocabulary, 2 * width**-0.5) for _ in range(2))
        self.weight.requires_grad_()
        self.labels = torch.randint(vocabulary, (positions,), generator=random).to(device)
        self.mask = torch.ones(positions, device=device)

    def ours(self) -> Tensor:
        loss = get_loss("full_gkd", beta=self.beta)
        teacher = {"teacher_hidden": self.teacher, "teacher_head": self.teacher_weight}
        return loss.on_hidden(self.hidden, self.weight, self.labels, mask=self.mask, **teacher)[0]

    def dense(self) -> Tensor:
        from trl.experimental.gkd.gkd_trainer import GKDTrainer

        with torch.no_grad():
            teacher = self.teacher @ self.teacher_weight.t()
        student = self.hidden @ self.weight.t()
        total = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=self.beta, reduction="sum")
        return total / len(self.hidden)

    def chunked(self) -> Tensor:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        states = (self.hidden[None], self.teacher[None], self.weight, self.teacher_weight)
        return _chunked_divergence_loss(*states, self.mask[None], self.beta)[0]

    def liger(self) -> Tensor:
        from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=self.beta, compiled=False)
        return loss(self.hidden, self.weight, self.teacher, self.teacher_weight, self.labels)

    def way(self, name: str, *, frozen: bool = False) -> Way:
        """One forward and backward; frozen: to the hidden states alone."""
        function: Callable[[], Tensor] = {
            OURS: self.ours,
            DENSE: self.dense,
            CHUNKED: self.chunked,
            LIGER: self.liger,
        }[name]

        def call() -> tuple[Tensor, Tensor | None, Tensor | None]:
            self.clear()
            self.weight.requires_grad_(not frozen)
            value = function()
            value.backward()
            self.weight.requires_grad_()
            return value.detach(), self.hidden.grad, self.weight.grad

        return call

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def assert_same(self, names: Sequence[str]) -> None:
        """Loss and gradients are the dense ones; a gradient to 0.1 % of its norm (5 % in lower precision)."""
        tolerance = 1e-3 if self.hidden.dtype == torch.float32 else 0.05
        wanted = self.way(DENSE)()
        for name in names:
            for one, other in zip(self.way(name)(), wanted, strict=True):
                assert one is not None, name
                assert other is not None, name
                assert (one - other).float().norm() <= tolerance * other.float().norm(), name
        self.clear()


def measure(case: Case, names: Sequence[str], rounds: int, about: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per way: median time, ratios to the other libraries, peak memory."""
    times = interleaved({name: case.way(name) for name in names}, rounds, after=case.clear)
    rows = []
    for name in names:
        row: dict[str, Any] = {**about, "way": name, "ms": 1000 * statistics.median(times[name])}
        for key, frozen in (("MiB", False), ("MiB, frozen head", True)):
            case.clear()
            row[key] = peak_memory(case.way(name, frozen=frozen)) / 2**20
        row |= {f"time / {to}": ratio(times, name, to) for to in (DENSE, CHUNKED, LIGER) if to in names}
        rows.append(row)
    case.clear()
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints a table, writes results/<name>.json and .csv; returns the rows."""
    parser = argparse.ArgumentParser(description="Distillation over the whole vocabulary, beside TRL and Liger.")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_000, 256_000])
    parser.add_argument("--positions", type=int, nargs="+", default=[512])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--ways", nargs="+", choices=[OURS, DENSE, CHUNKED, LIGER], default=[OURS, DENSE, CHUNKED, LIGER]
    )
    parser.add_argument("--quick", action="store_true", help="one small case, two rounds")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="full_vocabulary", help="of the files in results/")
    options = parser.parse_args(arguments)
    if options.quick:
        options.vocabularies, options.positions, options.width, options.rounds = [2000], [64], 64, 2
    rows = []
    for vocabulary in options.vocabularies:
        for positions in options.positions:
            dtype = getattr(torch, options.dtype)
            case = Case(vocabulary, positions, options.width, options.beta, options.device, dtype)
            case.assert_same(options.ways)
            about = {"V": vocabulary, "positions": positions, "beta": options.beta}
            rows += measure(case, options.ways, options.rounds, about)
    print(markdown(rows))
    write(options.name, rows, folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
