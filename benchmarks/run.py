"""Run all benchmarks, each in its own process, and write one page of results.

    python benchmarks/run.py                     # about 40 minutes on two cores
    python benchmarks/run.py --quick             # a few minutes: a check that everything works, not for quoting
    python benchmarks/run.py --only a c          # parts, by letter
    python benchmarks/run.py --device cuda

a custom losses, b the head and the losses' own cost, c whole steps beside TRL, d prompt-heavy data, e growth, f sampling,
g GEMM peak or MFU, h what a step asks a GPU for, i the time of `import lossbook`, j all figures of a GPU, k steps on N
ranks, m what each of several ranks holds, n a reranker beside Sentence Transformers, p losses that clients upload as graphs. A
benchmark that fails is reported at the end; the others still run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import measuring
import summary

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Benchmark:
    """A script with its arguments. quick: also part of a quick run, with --quick instead of its arguments."""

    part: str
    script: str
    arguments: tuple[str, ...] = ()
    quick: bool = True
    takes_device: bool = True


def arguments(text: str, *ways: str, name: str = "") -> tuple[str, ...]:
    """The words of a command line, with --ways and --name if given."""
    return (*text.split(), *(("--ways", *ways) if ways else ()), *(("--name", name) if name else ()))


#: The real model is slow on a CPU, so it is compared with fewer ways and in fewer rounds than the random one.
LLAMA, SMOLLM2 = "--model random-llama-67m", "--model smollm2"
HAND, FREE, SORTED, CACHE = (
    "hand-written",
    "TRL tuned, padding-free",
    "TRL tuned, sorted micro-batches",
    "TRL tuned, dynamic cache",
)
BENCHMARKS = (
    Benchmark("a", "custom_versus_builtin.py"),
    Benchmark(
        "a",
        "custom_versus_builtin.py",
        arguments(f"{SMOLLM2} --rounds 5 --warm-ups 0", name="custom_versus_builtin_smollm2"),
        quick=False,
    ),
    Benchmark("b", "head.py", arguments("--vocabularies 151936 --positions 512 --rounds 3")),
    Benchmark("b", "full_vocabulary.py"),
    Benchmark("b", "loss_cost.py", takes_device=False),
    Benchmark("c", "steps_sft.py", arguments(f"{LLAMA} --label-fractions 1 --rounds 1")),
    Benchmark(
        "c",
        "steps_sft.py",
        arguments(
            f"{SMOLLM2} --label-fractions 1 --sequences 8 --rounds 1", HAND, FREE, SORTED, name="steps_sft_smollm2"
        ),
        quick=False,
    ),
    Benchmark("c", "steps_dpo.py", arguments(f"{LLAMA} --rounds 1", HAND, "TRL tuned, padded", SORTED)),
    Benchmark(
        "c",
        "steps_dpo.py",
        arguments(f"{SMOLLM2} --pairs 4 --rounds 1", SORTED, name="steps_dpo_smollm2"),
        quick=False,
    ),
    Benchmark(
        "c",
        "steps_grpo.py",
        arguments(f"{LLAMA} --prompt-lengths 64 --rounds 1", HAND, CACHE, "TRL tuned, static cache"),
    ),
    Benchmark(
        "c",
        "steps_grpo.py",
        arguments(f"{LLAMA} --prompt-lengths 256 --rounds 1", CACHE, name="steps_grpo_256"),
        quick=False,
    ),
    Benchmark(
        "d",
        "steps_sft.py",
        arguments(f"{LLAMA} --label-fractions 0.25 --rounds 2", HAND, FREE, SORTED, name="steps_sft_prompts"),
        quick=False,
    ),
    Benchmark(
        "d",
        "custom_versus_builtin.py",
        arguments("--model random-llama-38m --label-fraction 0.25 --rounds 9", name="custom_versus_builtin_prompts"),
        quick=False,
    ),
    Benchmark("e", "growth.py", arguments("--rounds 2")),
    Benchmark("f", "sampling.py", arguments("--rounds 3")),
    Benchmark("g", "gemm_peak.py"),
    Benchmark("h", "launches.py", takes_device=False),
    Benchmark("j", "gpu.py"),
    Benchmark("k", "scaling.py", takes_device=False),
    Benchmark("i", "import_time.py", takes_device=False),
    Benchmark("m", "rank_memory.py", takes_device=False),
    Benchmark("n", "reranker.py", takes_device=False),
    Benchmark("o", "shared_base.py", takes_device=False),
    Benchmark("p", "serve_graphs.py", arguments("--model tiny --rounds 5")),
    Benchmark("q", "serve_http.py", takes_device=False),
    Benchmark("r", "serve_pollers.py", takes_device=False),
)


def command(benchmark: Benchmark, options: argparse.Namespace) -> list[str]:
    """The command line that runs a benchmark."""
    words = [sys.executable, str(HERE / benchmark.script), "--out", str(options.out)]
    words += ["--quick"] if options.quick else benchmark.arguments
    return [*words, "--device", options.device] if options.device and benchmark.takes_device else words


def main(given: Sequence[str] | None = None) -> int:
    """Run the chosen benchmarks and write the summary; returns the number of benchmarks that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted({b.part for b in BENCHMARKS}), help="parts, by letter")
    parser.add_argument("--quick", action="store_true", help="small models and few rounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="by default the best available")
    parser.add_argument("--out", type=Path, help="folder for the results; a quick run has its own by default")
    options = parser.parse_args(given)
    options.out = measuring.folder_for(options.out, quick=options.quick)
    failed = []
    for benchmark in BENCHMARKS:
        if (options.only and benchmark.part not in options.only) or (options.quick and not benchmark.quick):
            continue
        print(f"\n# {benchmark.part}: {benchmark.script} {' '.join(benchmark.arguments)}", flush=True)
        if subprocess.run(command(benchmark, options), check=False).returncode:
            failed.append(benchmark.script)
    summary.write(options.out)
    print(f"\nwritten: {options.out / 'README.md'}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
