"""What each of N ranks holds of a model in training, on CPUs: parameters, moments, and resident memory at rest and at its peak.

    python benchmarks/rank_memory.py                     # 1, 2 and 4 ranks, a random Llama of 37 million weights
    python benchmarks/rank_memory.py --ranks 1 2 --layers 4

All weights are trained in float32, by lossbook's own sharding and optimizer. Everything is given in multiples of the bytes of
all weights. Parameters and each of the two moments are what a rank holds, padding included, and should be 1/N. Resident memory
is what the system counts for the process, less what it was before the model was built. The peak is the system's own
high-water mark of a step (forward, backward, AdamW), which no stage escapes.

glibc keeps what it frees of all-gathered layers, so ranks are started with MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_
of 65536; --plain-malloc shows what happens without.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import measuring
import torch
import torch.distributed as dist
import transformers

from lossbook import AdamParams
from lossbook.trainer.model.load import without_weights
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.optim.adamw import AdamW
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.sharding.gradients import sum_gradients
from lossbook.trainer.sharding.shard import shard_model
from lossbook.trainer.shards import local

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
COLUMNS = ("ranks", "rank", "parameters", "each moment", "resident at rest", "resident at the peak")


def resident() -> int:
    """Bytes that the system counts for this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def built(width: int, layers: int, *, weights: bool = True) -> LoadedModel:
    """A random Llama; without weights as ranks build it that get theirs from the first."""
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    with nullcontext() if weights else without_weights():
        module = transformers.LlamaForCausalLM(config).eval()
    return LoadedModel("llama", module, build_tiny_tokenizer(), "decoder", torch.device("cpu")).train_all_weights()


def step(model: LoadedModel, optimizer: AdamW, tokens: torch.Tensor) -> None:
    """Forward, backward and AdamW on a few tokens, so that weights and not activations are what is held."""

    def loss() -> dict[str, Any]:
        hidden = model.backbone(tokens, use_cache=False).last_hidden_state
        return {"loss": (hidden @ model.head().weight.T).logsumexp(-1).mean()}

    model.inside(loss)["loss"].backward()
    sum_gradients(model)
    optimizer.step(AdamParams(learning_rate=1e-4))


def measure(ranks: Ranks, width: int, layers: int) -> dict[str, Any]:
    """This rank's memory, in multiples of the bytes of all weights."""
    tokens = torch.arange(16)[None]
    warm = shard_model(built(64, 1), ranks)
    step(warm, AdamW(warm.trainable(), ranks), tokens)  # what libraries take at first is not the model's
    before = resident()
    model = shard_model(built(width, layers, weights=ranks.is_first), ranks)
    whole = sum(p.numel() * p.element_size() for p in model.module.parameters())
    optimizer = AdamW(model.trainable(), ranks)
    step(model, optimizer, tokens)  # makes the moments
    at_rest = resident() - before
    peak = at_rest + measuring.peak_memory(lambda: step(model, optimizer, tokens))
    own = {shard.data_ptr(): shard for shard in (local(p).untyped_storage() for p in model.trainable().values())}
    moments = sum(tensor.nbytes for name, tensor in optimizer.state_tensors().items() if not name.startswith("step."))
    held = (sum(storage.nbytes() for storage in own.values()), moments / 2, at_rest, peak)
    return dict(zip(COLUMNS, (ranks.size, ranks.rank, *(number / whole for number in held)), strict=True))


def run_rank(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    ranks = ALONE
    if options.size > 1:
        meeting = f"file://{options.meeting}"
        dist.init_process_group(
            "gloo", init_method=meeting, rank=options.rank, world_size=options.size, timeout=timedelta(minutes=5)
        )
        ranks = Ranks(options.rank, options.size, dist.group.WORLD, dist.group.WORLD)
    print(json.dumps(measure(ranks, options.width, options.layers)), flush=True)


def on_ranks(size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each of `size` processes measures."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({} if options.plain_malloc else MALLOC)}
    with tempfile.TemporaryDirectory() as folder:
        common = [sys.executable, __file__, "--size", str(size), "--meeting", f"{folder}/meeting"]
        common += ["--width", str(options.width), "--layers", str(options.layers)]
        processes = [
            subprocess.Popen([*common, "--rank", str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
            for rank in range(size)
        ]
        printed = [process.communicate(timeout=1200)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"a rank of {size} failed")
    return [json.loads(text.strip().splitlines()[-1]) for text in printed]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table and write it; returns the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--plain-malloc", action="store_true", help="without the settings of glibc's malloc")
    parser.add_argument("--quick", action="store_true", help="1 and 2 ranks, a small model")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="rank_memory", help="of the result files")
    for of_ranks in ("--rank", "--size"):
        parser.add_argument(of_ranks, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.size is not None:
        run_rank(options)
        return []
    if options.quick:
        options.ranks, options.width, options.layers = [1, 2], 128, 2
    rows = [row for size in options.ranks for row in on_ranks(size, options)]
    print(measuring.markdown(rows), flush=True)
    measuring.write(options.name, rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
