"""Weak scaling: N ranks with N times the data, beside one rank: `python benchmarks/scaling.py [--ranks 1 2]`.

One rank a core, one thread each, all ways side by side in every round. `efficiency` is one rank's time over N ranks' for the same
tokens on each. Where the rest goes: `N apart` are N processes that know nothing of each other, which shows what cores and memory
that are shared cost; `ranks` adds what they tell each other; `client` adds ServiceClient(workers=N), which is Ray. `computing` is the
share of its time that a rank's own thread computes, `waiting` the rest (for others, or for a core), and `beside` what its other threads take, such as
gloo's. For lengths that differ, `fullest / mean` is how many tokens the rank with most has of the mean, and `empty` how many
micro-batches a rank ran for company alone.

On GPUs (`--backend nccl`, a GPU for each rank) memory is measured too, in multiples of all weights, with few tokens, beside what
`lossbook doctor plan` says; on CPUs rank_memory.py does that. Several hosts: with RAY_ADDRESS, `--only-clients --ranks 16`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from scaling_ranks import RankGroup, Taken, Work, datums_of

import lossbook as lb
from lossbook.cookbook.doctor.plan.memory import Setup, memory_of
from lossbook.cookbook.doctor.plan.outline import outline, trained
from lossbook.cookbook.doctor.plan.shape import shape_of
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.packing.shares import plan_shares

#: Width, layers, heads and MLP of the random Llama: 20 million parameters; with --quick as `tiny`.
SIZES, QUICK = (384, 8, 6, 1024), (64, 2, 4, 192)
VOCABULARY = 8192
#: Sequences of each rank, their tokens, and those of a micro-batch.
SEQUENCES, LENGTH, MICRO_BATCH = 4, 256, 512


def model_folder(folder: Path, *, quick: bool) -> str:
    """A Llama of random weights on the disk."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads, mlp = QUICK if quick else SIZES
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        intermediate_size=mlp,
        vocab_size=260 if quick else VOCABULARY,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def lengths_for(ranks: int, *, equal: bool) -> list[int]:
    """SEQUENCES for each rank; as many tokens in all, in sequences that differ by up to a factor of seven."""
    count = SEQUENCES * ranks
    if equal:
        return [LENGTH] * count
    drawn = np.random.default_rng(0).uniform(0.25, 1.75, count)
    return [int(n) for n in np.maximum(1, drawn * LENGTH * count / drawn.sum())]


class Ways:
    """Steps by name; each keeps what its ranks took."""

    def __init__(self, work: Work, ranks: Sequence[int], folder: Path, *, clients: bool, only_clients: bool) -> None:
        own = [] if only_clients else list(ranks)
        self.groups = {n: RankGroup(n, work, folder / f"meeting-{n}") for n in own}
        self._apart = [RankGroup(1, work, folder / "none", device=k) for k in range(max(own, default=0))]
        self.taken: dict[tuple[str, int, str], list[list[Taken]]] = {}
        self.calls: dict[tuple[str, int, str], Callable[[], Any]] = {}
        for n in own:
            self.calls["ranks", n, "equal"] = self._step("ranks", n, equal=True)
        for n in own[1:]:
            self.calls["apart", n, "equal"] = self._step_apart(n)
            self.calls["ranks", n, "unequal"] = self._step("ranks", n, equal=False)
        self.training: dict[int, Any] = {}
        for n in ranks if clients else ():
            self.training[n] = self._client(work, n)
            self.calls["client", n, "equal"] = self._client_step(n)

    def _step(self, way: str, n: int, *, equal: bool) -> Callable[[], None]:
        key, lengths = (way, n, "equal" if equal else "unequal"), lengths_for(n, equal=equal)
        return lambda: self.taken.setdefault(key, []).append(self.groups[n].step(lengths))

    def _step_apart(self, n: int) -> Callable[[], None]:
        lengths = lengths_for(1, equal=True)

        def run() -> None:
            for group in self._apart[:n]:
                group.begin(lengths)
            ends = [group.end()[0] for group in self._apart[:n]]
            self.taken.setdefault(("apart", n, "equal"), []).append(ends)

        return run

    def _client(self, work: Work, n: int) -> Any:
        device = "cuda" if work.backend == "nccl" else "cpu"
        service = lb.ServiceClient(device=device, workers=n, tokens_per_micro_batch=work.tokens)
        if work.all_weights:
            return service.create_training_client(work.folder)
        return service.create_lora_training_client(work.folder, rank=16, seed=0)

    def _client_step(self, n: int) -> Callable[[], None]:
        datums = datums_of(lengths_for(n, equal=True))

        def run() -> None:
            self.training[n].forward_backward(datums, "cross_entropy", {"reduction": "token-mean"}).result()
            self.training[n].optim_step(lb.AdamParams(learning_rate=1e-4)).result()

        return run

    def close(self) -> None:
        for group in (*self.groups.values(), *self._apart):
            group.close()


def step_rows(ways: Ways, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each way, against one rank of the same round."""
    rows, first = [], label(*next(iter(ways.calls)))
    for way, n, data in ways.calls:
        longer = measuring.ratio(times, label(way, n, data), first)
        row: dict[str, Any] = {"ranks": n, "way": "N apart" if way == "apart" else way, "lengths": data}
        row |= {"time / one rank's": longer, "efficiency": inverse(longer)}
        if taken := ways.taken.get((way, n, data)):
            row |= shares([one for step in taken[-len(times[label(way, n, data)]) :] for one in step])
        if data == "unequal":
            row |= dealing(n)
        rows.append(row)
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def label(way: str, n: int, data: str) -> str:
    """The name of a way in a table of times."""
    return f"{way} {n} {data}"


def inverse(ratio: measuring.Ratio) -> measuring.Ratio:
    """1 / a ratio."""
    return measuring.Ratio(1 / ratio.median, 1 / ratio.high, 1 / ratio.low)


def shares(taken: Sequence[Taken]) -> dict[str, float]:
    """Medians over ranks and rounds of the shares of a step."""
    computing = statistics.median(one.computing / one.seconds for one in taken)
    beside = statistics.median(one.beside / one.seconds for one in taken)
    return {"computing": computing, "waiting": max(0.0, 1 - computing), "beside": max(0.0, beside)}


def dealing(n: int) -> dict[str, float]:
    """How evenly the lengths that differ are dealt to ranks."""
    lengths = lengths_for(n, equal=False)
    plan = plan_shares(lengths, ranks=n, tokens=MICRO_BATCH, pairs=False, padded=False)
    rounds = [[sum(lengths[i] for i in cut) for cut in cuts] for cuts in zip(*plan, strict=True)]
    return {
        "fullest / mean": sum(map(max, rounds)) / (sum(map(sum, rounds)) / n),
        "empty": sum(not tokens for cuts in rounds for tokens in cuts),
    }


def memory_rows(work: Work, ranks: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Bytes of the rank with most, with few tokens, in multiples of all weights."""
    dtype = torch.bfloat16 if work.backend == "nccl" else torch.float32
    shape = shape_of(trained(outline(work.folder, dtype), None if work.all_weights else 16))
    whole, tokens, rows = shape.sharded * shape.weight_bytes, 32, []
    for n in ranks:
        group = RankGroup(n, replace(work, tokens=tokens), folder / f"memory-{n}")
        taken = [group.step([tokens] * n) for _ in range(3)][-1]  # the first makes the optimizer's moments
        group.close()
        plan = memory_of(shape, Setup(n, tokens, on_gpu=work.backend == "nccl"))
        peak, rest = max(one.peak for one in taken), max(one.rest for one in taken)
        rows.append({"ranks": n, "after a step / weights": rest / whole, "at most / weights": peak / whole})
        rows[-1] |= {
            "planned at rest / weights": plan.at_rest / whole,
            "planned at most / weights": plan.training / whole,
        }
    return rows


def call_rows(ways: Ways, times: dict[str, list[float]], rounds: int) -> list[dict[str, Any]]:
    """What the client's side and Ray cost: a call that does nothing, and a step against the ranks' own."""
    rows = []
    for n, training in ways.training.items():
        training.get_info()
        empty = [measuring.seconds(training.get_info) for _ in range(3 * rounds)]
        step = statistics.median(times[label("client", n, "equal")])
        row: dict[str, Any] = {"workers": n, "a call without work / a step": statistics.median(empty) / step}
        if n in ways.groups:
            row["client / ranks"] = measuring.ratio(times, label("client", n, "equal"), label("ranks", n, "equal"))
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the tables, write them; returns the rows of steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks to time; 1 comes first")
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo", help="nccl: a GPU for each rank")
    parser.add_argument("--adapters", action="store_true", help="train adapters instead of all weights")
    parser.add_argument(
        "--only-clients", action="store_true", help="ServiceClient(workers=N) alone, as on several hosts"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round, without Ray")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="scaling", help="of the result files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rounds = 1 if options.quick else options.rounds
    ranks = sorted({1, *options.ranks})
    out = measuring.folder_for(options.out, quick=options.quick)
    with tempfile.TemporaryDirectory(prefix="lossbook-scaling-") as temporary:
        folder = Path(temporary)
        work = Work(
            model_folder(folder / "model", quick=options.quick), not options.adapters, MICRO_BATCH, options.backend
        )
        ways = Ways(work, ranks, folder, clients=not options.quick, only_clients=options.only_clients)
        try:
            named = {label(*key): call for key, call in ways.calls.items()}
            times = measuring.interleaved(named, rounds, warm_ups=1 if options.quick else 2)
            tables = {"steps": step_rows(ways, times), "calls": call_rows(ways, times, rounds)}
        finally:
            ways.close()
        if options.backend == "nccl" and not options.only_clients:
            tables["memory"] = memory_rows(work, ranks, folder)
    for table, rows in tables.items():
        if rows:
            print(f"\n{measuring.markdown(rows)}")
            measuring.write(options.name if table == "steps" else f"{table}_of_{options.name}", rows, out)
    return tables["steps"]


if __name__ == "__main__":
    main()
