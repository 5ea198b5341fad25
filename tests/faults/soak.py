"""Mixed work on training clients for N minutes, and whether the process grows: `python tests/faults/soak.py --minutes 30`.

A round is a few calls of a client: several losses and custom ones, calls that fail in many ways, steps, sampling, saving and
loading; every tenth round two clients are dropped and made anew. It prints, over time, what the process holds, and exits 1 if
after the first third memory, threads, open files or Python objects grow.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import lossbook as lb
from lossbook.datums.errors import LossbookError

LOSSES = ("cross_entropy", "ppo", "importance_sampling", "cispo", "gspo", "poly1")
#: Growth from the second third of the samples to the last that is taken for chance.
ALLOWED = {"MiB": 8.0, "threads": 0, "handles": 0, "objects": 2_000, "tensors": 20}


def datums(rng: np.random.Generator, count: int = 4) -> list[lb.Datum]:
    """Datums that carry what the losses read."""
    made = []
    for _ in range(count):
        length = int(rng.integers(4, 13))
        tokens = rng.integers(0, 260, length + 1)
        inputs = {
            "target_tokens": tokens[1:],
            "weights": np.where(np.arange(length) < 2, 0.0, 1.0),
            "sampling_logprobs": rng.normal(-5.5, 0.3, length),
            "advantages": rng.normal(0, 1, length),
        }
        made.append(lb.Datum(lb.ModelInput.from_ints(tokens[:-1]), inputs))
    return made


def squares(data: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """A custom loss."""
    loss = torch.stack([(one**2).sum() for one in logprobs]).sum()
    return loss, {"longest": float(max(len(one) for one in logprobs))}


def raising(data: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """A custom loss that fails after it made a graph."""
    _ = (logprobs[0] ** 2).sum()
    raise ZeroDivisionError("of the loss")


def nan(data: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """A custom loss that is NaN."""
    return torch.stack([one.sum() for one in logprobs]).sum() * float("nan"), {}


def without_targets(data: list[lb.Datum]) -> list[lb.Datum]:
    """Datums that no loss over logprobs can read."""
    return [lb.Datum(one.model_input, {"weights": one.loss_fn_inputs["weights"]}) for one in data]


class Work:
    """Two clients of one service, and calls on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng, self.chance = np.random.default_rng(0), random.Random(0)
        self.counts: Counter[str] = Counter()
        self.renew()

    def renew(self) -> None:
        """Two new clients; nothing refers to the old ones any more."""
        service = lb.ServiceClient(device="cpu", checkpoint_dir=self.folder / "checkpoints")
        self.service = service
        self.clients = [
            service.create_lora_training_client("tiny", rank=4, seed=0),
            service.create_training_client("tiny"),
        ]
        self.counts["clients made"] += 2

    def round(self) -> None:
        """Six calls of either client, each of which may be one that fails, then a step and sometimes more."""
        client = self.chance.choice(self.clients)
        for _ in range(6):
            self.attempt(*self.chance.choice(self.calls(client, datums(self.rng))))
        self.attempt("forward_backward", lambda: client.forward_backward(datums(self.rng), "cross_entropy").result())
        self.attempt("optim_step", lambda: client.optim_step(lb.AdamParams(learning_rate=1e-4)).result())
        self.attempt("fails: no gradient", lambda: client.optim_step(lb.AdamParams(learning_rate=1e-4)).result())
        self.more(client)

    def calls(self, client: Any, data: list[lb.Datum]) -> list[tuple[str, Callable[[], Any]]]:
        """Calls by what they are, those that must fail included."""
        return [
            *((f"forward_backward {n}", lambda n=n: client.forward_backward(data, n).result()) for n in LOSSES),
            ("forward", lambda: client.forward(data, "ppo").result()),
            ("custom", lambda: client.forward_backward_custom(data, squares).result()),
            ("fails: raises", lambda: client.forward_backward_custom(data, raising).result()),
            ("fails: NaN", lambda: client.forward_backward_custom(data, nan).result()),
            ("fails: inputs", lambda: client.forward_backward(without_targets(data), "ppo").result()),
            ("fails: name", lambda: client.forward_backward(data, "no_such_loss").result()),
            ("fails: token", lambda: client.forward([lb.Datum(lb.ModelInput.from_ints([10**6]), {})]).result()),
            ("fails: path", lambda: client.load_state(str(self.folder / "nothing")).result()),
        ]

    def more(self, client: Any) -> None:
        """Sampling, saving and loading, at some rounds."""
        number = self.counts["rounds"] = self.counts["rounds"] + 1
        if number % 3 == 0:
            sampler = client.save_weights_and_get_sampling_client()
            prompt, params = lb.ModelInput.from_ints([1, 2, 3]), lb.SamplingParams(max_tokens=6, seed=number)
            self.attempt("sample", lambda: sampler.sample(prompt, 2, params).result())
            self.attempt("compute_logprobs", lambda: sampler.compute_logprobs(prompt).result())
        if number % 5 == 0:
            path = client.save_state("soak", overwrite=True).result().path
            self.attempt("load_state", lambda: client.load_state(path).result())
        if number % 10 == 0:
            self.renew()

    def attempt(self, name: str, call: Callable[[], Any]) -> None:
        """Make a call; one whose name says so must fail, all others must not."""
        try:
            call()
        except (LossbookError, ZeroDivisionError):
            if not name.startswith("fails"):
                raise
        else:
            assert not name.startswith("fails"), name
        self.counts["failed as it must" if name.startswith("fails") else name] += 1


def held() -> dict[str, float]:
    """What the process holds now."""
    gc.collect()
    objects = gc.get_objects()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "MiB": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "threads": threading.active_count(),
        "handles": len(os.listdir("/proc/self/fd")),
        "objects": len(objects),
        "tensors": sum(issubclass(type(one), torch.Tensor) for one in objects),
    }


def grown(samples: list[dict[str, float]]) -> dict[str, float]:
    """What the median of the last third exceeds that of the second by, where that is more than chance."""
    third = len(samples) // 3
    if third < 3:
        print("too short to tell")
        return {}
    second, last = samples[third : 2 * third], samples[2 * third :]
    growth = {
        name: statistics.median(s[name] for s in last) - statistics.median(s[name] for s in second) for name in ALLOWED
    }
    print("growth from the second third to the last: " + "  ".join(f"{k} {v:+g}" for k, v in growth.items()))
    return {name: more for name, more in growth.items() if more > ALLOWED[name]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, help="a JSON file for the samples, which docs/reliability.md shows")
    given = parser.parse_args()
    minutes = given.minutes
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        work, start = Work(Path(folder)), time.monotonic()
        while (passed := (time.monotonic() - start) / 60) < minutes:
            if passed >= len(samples) * minutes / 30 and work.counts["rounds"] % 10 == 0:  # the clients are new
                samples.append({"minutes": round(passed, 1), "rounds": work.counts["rounds"], **held()})
                values = "  ".join(f"{name} {value:g}" for name, value in samples[-1].items())
                print(values, flush=True)
            work.round()
    print("  ".join(f"{name} {count}" for name, count in sorted(work.counts.items())))
    growth = grown(samples)
    if given.out is not None:
        given.out.write_text(json.dumps({"calls": work.counts, "samples": samples}, indent=1) + "\n", encoding="utf-8")
    print(f"grows: {growth}" if growth else "nothing grows")
    return 1 if growth else 0


if __name__ == "__main__":
    sys.exit(main())
