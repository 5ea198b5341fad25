"""The fraction of this machine's measured GEMM peak that a supervised fine-tuning step reaches.

    python benchmarks/gemm_peak.py                          # a random Llama, float32 on this CPU
    python benchmarks/gemm_peak.py --model smollm2 --tokens 1024
    python benchmarks/gemm_peak.py --device cuda            # Qwen3-0.6B's shape, bfloat16, packs of 8,192 tokens: MFU

The peak is the best of several nearly square matrix products, measured in the same rounds as the steps. A step is one
`forward_backward` and one `optim_step` over sequences of lognormal length, packed to `--tokens` tokens. Its floating-point
operations are counted by hand, for necessary work only: 6 for each weight of a linear layer and token, 12
times width and mean number of keys for each layer, head and query of attention (4 forward and 8 backward, causal: half the
length), and 6 for each weight of the head and token with a label. The hand-written loop does the same step with padding; its
useful operations are the same number. Model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) is this
over the peak.

The aim: at least 45 % on an H100 with the default of `--device cuda`. There `--peak-tflops` compares with the data sheet too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import torch
import transformers
import workloads
from steps import TOLERANCE, batches_of, check_same_losses
from steps_sft import HandWritten, ours
from workloads import Example

#: Rows, columns and inner size of the products; the largest is too long on a CPU.
PRODUCTS = {
    "cpu": [(1024, 1024, 1024), (2048, 2048, 2048), (2048, 1536, 768)],
    "cuda": [(4096,) * 3, (8192,) * 3, (8192, 4096, 8192)],
}
DEFAULT_MODEL = {"cpu": "random-llama-67m", "cuda": "random-qwen3-0.6b"}


def operations(model: Any, batch: Sequence[Example]) -> float:
    """Floating-point operations of a forward and a backward over these sequences."""
    config = model.config.get_text_config()
    head = config.vocab_size * config.hidden_size
    linear = sum(module.weight.numel() for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    linear -= head
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    tokens = [len(example.tokens) for example in batch]
    labels = sum(len(example.completion) for example in batch)
    attention = 12 * config.num_hidden_layers * width * sum(n * n / 2 for n in tokens)
    return 6.0 * linear * sum(tokens) + 6.0 * head * labels + attention


def products(device: str, dtype: torch.dtype, repeats: int) -> dict[str, tuple[float, Any]]:
    """By label: operations of `repeats` products of one shape, and the call that makes them."""
    calls = {}
    for rows, columns, inner in PRODUCTS[device]:
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(inner, columns, device=device, dtype=dtype)
        target = torch.empty(rows, columns, device=device, dtype=dtype)

        def way(left: torch.Tensor = left, right: torch.Tensor = right, target: torch.Tensor = target) -> None:
            for _ in range(repeats):
                torch.mm(left, right, out=target)

        calls[f"GEMM {rows} x {inner} x {columns}"] = (2.0 * rows * columns * inner * repeats, way)
    return calls


def pack(tokens: int, vocabulary: int, seed: int = 0) -> list[Example]:
    """Sequences of lognormal length, as many as have just `tokens` tokens; the last is cut."""
    sizes: list[int] = []
    for size in workloads.lengths(tokens // 16, seed=seed):
        if sum(sizes) < tokens:
            sizes.append(min(size, tokens - sum(sizes)))
    return workloads.examples([size for size in sizes if size > 1], 1.0, vocabulary, seed)


def measure(folder: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per product and per step."""
    vocabulary = workloads.vocabulary(folder)
    batches = batches_of(lambda seed: pack(options.tokens, vocabulary, seed), options)
    steps = {"ours": ours(folder, batches, options)}
    if not options.alone:
        steps["hand-written"] = HandWritten(folder, batches, options)
    check_same_losses({label: step() for label, step in steps.items()}, TOLERANCE[options.dtype], {})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    needed = [operations(model, batch) for batch in batches]
    work: dict[str, float] = dict.fromkeys(steps, sum(needed) / len(needed))
    ways: dict[str, measuring.Way] = dict(steps)
    for label, (count, way) in products(options.device, options.dtype, options.repeats).items():
        work[label], ways[label] = count, way
    times = measuring.interleaved(ways, options.rounds)
    rates = {label: work[label] / statistics.median(times[label]) for label in ways}
    peak = max(rate for label, rate in rates.items() if label not in steps)
    rows = []
    for label, rate in rates.items():
        row = {
            "device": options.device,
            "model": options.model,
            "tokens": sum(len(e.tokens) for e in batches[0]),
            "what": label,
        }
        row |= {"seconds": statistics.median(times[label]), "TFLOP/s": rate / 1e12, "of the measured peak": rate / peak}
        if options.peak_tflops:
            row["of the data sheet"] = rate / 1e12 / options.peak_tflops
        rows.append({**row, "rounds": options.rounds})
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table, write it; returns its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help=f"of {', '.join(workloads.MODELS)}, or a folder")
    parser.add_argument("--tokens", type=int, help="tokens per step; by default 2048, and 8192 on a GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="by default float32, and bfloat16 on a GPU")
    parser.add_argument(
        "--alone", action="store_true", help="without the hand-written step, whose logits take much memory"
    )
    parser.add_argument(
        "--autocast", action="store_true", help="the hand-written step in float32 weights, as ours has them"
    )
    parser.add_argument("--fresh", action="store_true", help="another pack in each step")
    parser.add_argument("--peak-tflops", type=float, help="peak from the data sheet: 989 for bfloat16 on an H100 SXM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="products timed together")
    parser.add_argument("--quick", action="store_true", help="the tiny model, one round")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="gemm_peak", help="of the result files")
    options = parser.parse_args(arguments)
    options.model = options.model or ("tiny" if options.quick else DEFAULT_MODEL[options.device])
    options.tokens = options.tokens or (256 if options.quick else {"cpu": 2048, "cuda": 8192}[options.device])
    options.dtype = getattr(torch, options.dtype or {"cpu": "float32", "cuda": "bfloat16"}[options.device])
    if options.quick:
        options.rounds, options.repeats = 1, 1
    transformers.utils.logging.disable_progress_bar()
    with workloads.model_folder(options.model) as folder:
        rows = measure(folder, options)
    print(measuring.markdown(rows))
    measuring.write(options.name, rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
