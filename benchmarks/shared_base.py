"""What N LoRA clients of one base model hold in memory, sharing its weights and each with its own, on a CPU or a GPU.

    python benchmarks/shared_base.py                     # 1, 2 and 4 clients of SmolLM2-135M
    python benchmarks/shared_base.py --clients 1 8 --model tiny

Each number of clients has a process of its own. Clients of one service share the frozen weights; with a service for each client
they do not. Every client has made a step, so that gradients and moments of its adapters count. On a CPU resident memory is
what the system counts for the process, less what it was before the first client; on a GPU it is what the allocator counts.
Seconds are of making the last client.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import torch

from lossbook import AdamParams, ServiceClient, datum_from_tokens_weights
from lossbook.cookbook.quickstart import find_smollm2


def held() -> int:
    """Bytes of the device that are in use; on a CPU resident bytes of this process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(model: str, clients: int, rank: int, *, apart: bool, folder: str) -> dict[str, Any]:
    """Memory of `clients` clients that have made a step, in MiB, and the seconds that the last one took to make."""
    datums = [datum_from_tokens_weights(list(range(1, 18)), [1.0] * 17)]
    services = [ServiceClient(checkpoint_dir=folder) for _ in range(clients if apart else 1)]
    warm = ServiceClient(checkpoint_dir=folder).create_lora_training_client("tiny", rank=2)
    warm.forward_backward(datums, "cross_entropy").result()  # what libraries take at first is not the model's
    before, made, seconds = held(), [], 0.0
    for number in range(clients):
        start = time.perf_counter()
        client = services[number % len(services)].create_lora_training_client(model, rank=rank, seed=number)
        seconds = time.perf_counter() - start
        client.forward_backward(datums, "cross_entropy").result()
        client.optim_step(AdamParams(learning_rate=1e-4)).result()
        made.append(client)
    weights = "own" if apart else "shared"
    return {
        "clients": clients,
        "weights": weights,
        "MiB": (held() - before) / 2**20,
        "seconds to make the last": seconds,
    }


def in_a_process(options: argparse.Namespace, clients: int, *, apart: bool) -> dict[str, Any]:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--model", options.model, "--rank", str(options.rank), "--one", str(clients)]
    done = subprocess.run(command + ["--apart"] * apart, stdout=subprocess.PIPE, text=True, check=True, timeout=1200)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table and write it; returns the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", help="SmolLM2-135M by default")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--quick", action="store_true", help="2 clients of tiny")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="shared_base", help="of the result files")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.model = options.model or ("tiny" if options.quick else find_smollm2())
    if options.one is not None:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(options.model, options.one, options.rank, apart=options.apart, folder=folder)
            print(json.dumps(row), flush=True)
        return []
    counts = [2] if options.quick else options.clients
    rows = [in_a_process(options, count, apart=apart) for count in counts for apart in (False, True)]
    print(measuring.markdown(rows), flush=True)
    measuring.write(options.name, rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
