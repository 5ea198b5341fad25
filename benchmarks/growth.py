"""How time and memory of one `forward_backward` grow with tokens, vocabulary, datums, sequence length and targets.

    python benchmarks/growth.py                                       # a random Llama of 2 layers and 256 wide
    python benchmarks/growth.py --only tokens --largest 65536 --rounds 1
    python benchmarks/growth.py --device cuda --dtype bfloat16

One quantity grows while the others are fixed: tokens per call in sequences of 128; the vocabulary; the number of datums that
share 4,096 tokens; the sequence length at 8,192 tokens; targets K per position. Calls are timed one by one, in rounds over all
sizes. The slope of log time (and log memory) over log size is fitted: 1 means proportional, 0 independent.

The aim: cost linear in tokens from 1k to 64k tokens per call, so a slope of time near 1 there and memory that stops growing
at the size of a micro-batch.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
import transformers
import workloads
from workloads import Shape

import lossbook as lb

SMALL = Shape("llama", vocabulary=4096, width=256, feed_forward=768, layers=2, heads=4, groups=2, head_width=64)
QUICK = Shape("llama", vocabulary=2048, width=32, feed_forward=64, layers=1, heads=2, groups=1, head_width=16)
Call = Callable[[], Any]


def datums(count: int, length: int, vocabulary: int, targets: int = 1) -> list[lb.Datum]:
    """`count` sequences of `length` random tokens, every position with weight 1 and `targets` targets."""
    generator = torch.Generator().manual_seed(0)
    datums = []
    for _ in range(count):
        tokens = torch.randint(0, vocabulary, (length + 1,), generator=generator)
        target, weights = tokens[1:], torch.ones(length)
        if targets > 1:
            target = torch.randint(0, vocabulary, (length, targets), generator=generator)
            weights = torch.full((length, targets), 1 / targets)
        inputs = {"target_tokens": target, "weights": weights}
        datums.append(lb.Datum(lb.ModelInput.from_ints(tokens[:-1].tolist()), inputs))
    return datums


def doubling(start: int, end: int, factor: int = 2) -> list[int]:
    """start, factor start, ... up to end."""
    return [start * factor**i for i in range(int(math.log(end / start, factor) + 1e-9) + 1)]


class Growth:
    """The calls for each quantity that grows and each of its sizes. Models are loaded on first use."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.shape = QUICK if options.quick else SMALL
        self.unit = 256 if options.quick else 4096
        self._clients: dict[int, lb.TrainingClient] = {}

    def calls(self, grown: str) -> dict[int, Call]:
        """The calls for a quantity, by size."""
        vocabulary, unit, length = self.shape.vocabulary, self.unit, min(128, self.unit // 4)
        largest = self.options.largest or 16 * unit
        if grown == "tokens":
            return {n: self.call(n // length, length) for n in doubling(unit // 4, largest, 2)}
        if grown == "vocabulary":
            sizes = doubling(vocabulary // 4, 16 * vocabulary, 4)
            return {n: self.call(unit // 4 // length, length, vocabulary=n) for n in sizes}
        if grown == "datums":
            return {n: self.call(n, unit // n) for n in doubling(unit // 1024 or 1, unit // 8, 2)}
        if grown == "sequence length":
            return {n: self.call(2 * unit // n, n) for n in doubling(unit // 64, 2 * unit, 2)}
        return {n: self.call(unit // 4 // length, length, targets=n) for n in doubling(1, 64, 4)}

    def call(self, count: int, length: int, *, vocabulary: int | None = None, targets: int = 1) -> Call:
        """One forward and backward."""
        vocabulary = vocabulary or self.shape.vocabulary
        training, batch = self.client(vocabulary), datums(count, length, vocabulary, targets)
        return lambda: training.forward_backward(batch, "cross_entropy").result()

    def client(self, vocabulary: int) -> lb.TrainingClient:
        """A client that trains the model with this vocabulary."""
        if vocabulary not in self._clients:
            service = lb.ServiceClient(device=self.options.device, dtype=self.options.dtype)
            with workloads.written(self.shape.with_vocabulary(vocabulary)) as folder:
                self._clients[vocabulary] = service.create_training_client(folder)
        return self._clients[vocabulary]

    def forget(self) -> None:
        """Discard all gradients."""
        for training in self._clients.values():
            training.discard_gradients().result()


KINDS = ("tokens", "vocabulary", "datums", "sequence length", "targets a position")


def measure(growth: Growth, grown: str, rounds: int) -> list[dict[str, Any]]:
    """A row a size: seconds (median) and peak memory of a call."""
    calls = growth.calls(grown)
    peaks: dict[int, int] = {}
    for size, call in calls.items():
        peaks[size] = measuring.peak_memory(call)
        growth.forget()
    times = measuring.interleaved(
        {str(size): call for size, call in calls.items()}, rounds, warm_ups=0, after=growth.forget
    )
    return [
        {"grows": grown, "size": n, "seconds": statistics.median(times[str(n)]), "peak memory MB": peaks[n] / 1e6}
        for n in calls
    ]


def slope(rows: Sequence[Mapping[str, Any]], column: str) -> float:
    """Of a straight line through log column over log size, by least squares over all rows but the smallest."""
    kept = rows[1:] if len(rows) > 2 else rows
    sizes, values = (np.log([max(row[key], 1e-9) for row in kept]) for key in ("size", column))
    return float(np.polyfit(sizes, values, 1)[0])


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time and memory over size on logarithmic axes, a panel for each thing that grows."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row["grows"] for row in rows))
    figure, panels = plt.subplots(1, len(kinds), figsize=(3.4 * len(kinds), 3.0), squeeze=False, layout="constrained")
    for grown, panel in zip(kinds, panels[0], strict=True):
        own = [row for row in rows if row["grows"] == grown]
        sizes = [row["size"] for row in own]
        for axes, column, color in ((panel, "seconds", "C0"), (panel.twinx(), "peak memory MB", "C1")):
            values = [max(row[column], 1e-3) for row in own]
            axes.loglog(sizes, values, "o-" if color == "C0" else "s--", color=color)
            axes.set_ylabel(column, color=color)
            middle = math.sqrt(min(values) * max(values))  # at least a factor of ten, so that flat looks flat
            axes.set_ylim(min(min(values), middle / 4) / 1.2, max(max(values), middle * 4) * 1.2)
        panel.set(title=grown, xlabel=grown)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table and the slopes, write and plot them; returns the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="what grows")
    parser.add_argument("--largest", type=int, help="tokens of the largest call when tokens grow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--quick", action="store_true", help="a smaller model and smaller sizes, one round")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="growth", help="of the result files")
    options = parser.parse_args(arguments)
    options.dtype = getattr(torch, options.dtype)
    transformers.utils.logging.disable_progress_bar()
    growth = Growth(options)
    rows: list[dict[str, Any]] = []
    for grown in options.only:
        own = measure(growth, grown, 1 if options.quick else options.rounds)
        slopes = {
            f"slope of {name}": slope(own, key) for name, key in (("time", "seconds"), ("memory", "peak memory MB"))
        }
        rows += [{**row, **slopes} for row in own]
        print(measuring.markdown([{**row, **slopes} for row in own]), flush=True)
    folder = measuring.folder_for(options.out, quick=options.quick)
    measuring.write(options.name, rows, folder)
    plot(rows, folder / f"{options.name}.png")
    return rows


if __name__ == "__main__":
    main()
