"""All benchmarks, one after the other, each in a process of its own, and then one page of the results.

    python benchmarks/run.py                     # about 40 minutes on two cores
    python benchmarks/run.py --quick             # a few minutes: that everything works, no numbers to quote
    python benchmarks/run.py --only a c          # parts, by letter
    python benchmarks/run.py --device cuda

a custom losses, b the head and the losses' own cost, c whole steps beside TRL, d prompt-heavy data, e growth, f sampling,
g GEMM peak or MFU, i the time of `import lossbook`. A benchmark that fails is reported at the end and stops no other.
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


BENCHMARKS = (
    Benchmark("a", "custom_versus_builtin.py"),
    Benchmark(
        "a",
        "custom_versus_builtin.py",
        ("--model", "smollm2", "--rounds", "6", "--name", "custom_versus_builtin_smollm2"),
        quick=False,
    ),
    Benchmark("b", "head.py"),
    Benchmark("b", "loss_cost.py", takes_device=False),
    Benchmark("c", "steps_sft.py", ("--label-fractions", "1.0")),
    Benchmark("c", "steps_dpo.py"),
    Benchmark("c", "steps_grpo.py"),
    Benchmark("d", "steps_sft.py", ("--label-fractions", "0.25", "--name", "steps_sft_prompts")),
    Benchmark(
        "d",
        "custom_versus_builtin.py",
        (
            "--model",
            "random-llama-38m",
            "--label-fraction",
            "0.25",
            "--rounds",
            "9",
            "--name",
            "custom_versus_builtin_prompts",
        ),
        quick=False,
    ),
    Benchmark("e", "growth.py"),
    Benchmark("f", "sampling.py"),
    Benchmark("g", "gemm_peak.py"),
    Benchmark("i", "import_time.py", takes_device=False),
)


def command(benchmark: Benchmark, options: argparse.Namespace) -> list[str]:
    """What runs a benchmark in a process of its own."""
    found = [sys.executable, str(HERE / benchmark.script), "--out", str(options.out)]
    found += ["--quick"] if options.quick else benchmark.arguments
    return [*found, "--device", options.device] if options.device and benchmark.takes_device else found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and write the summary; returns the number of benchmarks that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted({b.part for b in BENCHMARKS}), help="parts, by letter")
    parser.add_argument("--quick", action="store_true", help="small models and few rounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="the best there is by default")
    parser.add_argument("--out", type=Path, help="folder for the results; a quick run has one of its own by default")
    options = parser.parse_args(arguments)
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
