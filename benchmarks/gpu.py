"""Everything that is to be shown on a GPU, in one run of less than ten minutes.

    python benchmarks/gpu.py                       # on a GPU; --out FOLDER, --seconds 540, --only sft head
    python benchmarks/gpu.py --quick               # the same parts on the tiny model: a check that they run, also on a CPU

* sft, dpo, grpo: steps of a 67M and of a 0.6B-shaped model beside a hand-written loop and TRL tuned, all with float32 weights
  and bfloat16 products, other sequences in each step: a batch that is repeated hides what a new shape costs
* mfu: packs of 8,192 tokens of the 0.6B shape, beside the measured peak of matrix products
* head: logprobs and their gradient beside Liger, cut-cross-entropy and torch's cross_entropy
* decode: sampled tokens a second beside `generate`, with its dynamic and its static cache

Ways take turns within a part. The parts run by importance, each only while time is left, and each writes its own files; gpu.json
has the aims with what was measured, and what failed or was left out. The models are random and made here; nothing is fetched.
Packages that are not installed (trl, liger-kernel, cut-cross-entropy) are left out with their ways.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemm_peak
import head
import measuring
import sampling
import steps_dpo
import steps_grpo
import steps_sft
import torch
import workloads
from steps import NARROW

SMALL, LARGE = "random-llama-67m", "random-qwen3-0.6b"
HAND = "hand-written"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Aim:
    """What a part should show: the number of its rows, and its bound."""

    text: str
    number: Callable[[Rows], float | None]
    at_most: float = float("inf")
    at_least: float = float("-inf")


@dataclass(frozen=True)
class Part:
    """One call of a script's `main`. seconds: what it took or should take on an H200, without which it is not started."""

    name: str
    main: Callable[[Sequence[str]], Rows]
    arguments: tuple[str, ...]
    model: str | None = None
    aims: tuple[Aim, ...] = ()
    seconds: float = 30.0


def slowdown(is_peer: Callable[[str], bool]) -> Callable[[Rows], float | None]:
    """Ours over the fastest of some ways."""

    def number(rows: Rows) -> float | None:
        ratios = [
            float(getattr(row["time / ours"], "median", row["time / ours"])) for row in rows if is_peer(row["way"])
        ]
        return 1 / min(ratios) if ratios else None

    return number


def beside_heads(rows: Rows) -> float | None:
    """The fastest of ours over the fastest of Liger and cut-cross-entropy, the least favourable of the sizes."""
    ratios = []
    for positions in {row["positions"] for row in rows}:
        ms = {row["way"]: row["ms"] for row in rows if row["positions"] == positions}
        peers = [ms[way] for way in ("Liger", "cut-cross-entropy") if way in ms]
        ours = [ms[way] for way in ms if way.startswith("ours")]
        ratios += [min(ours) / min(peers)] if peers and ours else []
    return max(ratios, default=None)


def beside_generate(rows: Rows) -> float | None:
    """Tokens a second over those of `generate`."""
    return min(float(row["times as fast"].median) for row in rows)


def used(rows: Rows) -> float | None:
    """The fraction of the measured peak that our step reaches."""
    return next((float(row["of the measured peak"]) for row in rows if row["what"] == "ours"), None)


STEP_AIMS = (
    Aim("ours / hand-written <= 0.8", slowdown(HAND.__eq__), at_most=0.8),
    Aim("ours / TRL tuned <= 0.8", slowdown(lambda way: way.startswith("TRL")), at_most=0.8),
)
PADDED, FREE, CACHE = "TRL tuned, padded", "TRL tuned, padding-free", "TRL tuned, dynamic cache"
PRODUCTS = ("--dtype", "bfloat16", "--autocast", "--fresh")
#: Wide enough for loops that take a softmax in bfloat16; a check that fails would cost the part's figures.
STEPS = (*PRODUCTS, "--tolerance", "0.1")
SFT, DPO = ("--ways", HAND, NARROW, PADDED, FREE), ("--ways", HAND, NARROW, PADDED)
GRPO = ("--prompt-lengths", "64", "--ways", HAND, NARROW, CACHE)
HEADS = ("torch cross_entropy", "cut-cross-entropy", "Liger", "ours, keep", "ours, known-gradient", "ours, recompute")
HEAD = ("--dtype", "bfloat16", "--vocabularies", "151936", "--positions", "2048", "8192", "--variants", "trained")
DECODE = ("--weights", "all", "--length", "64", "--tokens", "128", "--rounds", "3")
PARTS = (
    Part("sft-67m", steps_sft.main, (*STEPS, *SFT, "--label-fractions", "1", "--rounds", "20"), SMALL, STEP_AIMS),
    Part("dpo-67m", steps_dpo.main, (*STEPS, *DPO, "--rounds", "20"), SMALL, STEP_AIMS),
    Part("grpo-67m", steps_grpo.main, (*STEPS, *GRPO, "--rounds", "5"), SMALL, STEP_AIMS, 40),
    Part(
        "mfu",
        gemm_peak.main,
        (*PRODUCTS, "--tokens", "8192", "--alone", "--rounds", "5", "--peak-tflops", "989"),
        LARGE,
        (Aim("MFU at 8k-token packs >= 0.45 of the measured peak", used, at_least=0.45),),
        60,
    ),
    Part(
        "head",
        head.main,
        (*HEAD, "--rounds", "10"),
        None,
        (Aim("head: ours / the faster of Liger and cut-cross-entropy <= 1.1", beside_heads, at_most=1.1),),
        40,
    ),
    Part(
        "decode-67m",
        sampling.main,
        DECODE,
        SMALL,
        (Aim("decode: ours / generate >= 3", beside_generate, at_least=3.0),),
        40,
    ),
    Part("sft-0.6b", steps_sft.main, (*STEPS, *SFT, "--label-fractions", "1", "--rounds", "8"), LARGE, STEP_AIMS, 60),
    Part("dpo-0.6b", steps_dpo.main, (*STEPS, *DPO, "--rounds", "8"), LARGE, STEP_AIMS, 60),
    Part("grpo-0.6b", steps_grpo.main, (*STEPS, *GRPO, "--rounds", "3"), LARGE, STEP_AIMS, 90),
    Part(
        "decode-0.6b",
        sampling.main,
        DECODE,
        LARGE,
        (Aim("decode: ours / generate >= 3", beside_generate, at_least=3.0),),
        60,
    ),
    Part(
        "decode-67m-static",
        sampling.main,
        (*DECODE, "--static"),
        SMALL,
        (Aim("decode: ours / generate with a static cache >= 3", beside_generate, at_least=3.0),),
        40,
    ),
    Part(
        "sft-67m-64",
        steps_sft.main,
        (*STEPS, *SFT, "--label-fractions", "1", "--sequences", "64", "--rounds", "10"),
        SMALL,
        STEP_AIMS,
    ),
)
#: Packages of the peers, and the words that ways of theirs begin with.
NEEDED = {"trl": "TRL", "datasets": "TRL", "liger_kernel": "Liger", "cut_cross_entropy": "cut-cross-entropy"}


def arguments(part: Part, folder: str | None, options: argparse.Namespace) -> list[str]:
    """The part's command line: where it runs, what it is called, and only the ways whose packages are there."""
    missing = tuple({word for package, word in NEEDED.items() if importlib.util.find_spec(package) is None})
    words = [word for word in part.arguments if not (missing and word.startswith(missing))]
    if part.main is head.main:
        words += ["--ways", *(way for way in HEADS if not (missing and way.startswith(missing)))]
    if folder is not None:
        words += ["--model", folder]
    if options.quick:
        words += ["--quick"]
    return [*words, "--device", options.device, "--out", str(options.out), "--name", f"gpu_{part.name}"]


def run(part: Part, folder: str | None, options: argparse.Namespace) -> Rows:
    """The part's aims with what was measured; one row that says why, where it fails."""
    print(f"\n# {part.name}: {' '.join(arguments(part, folder, options))}", flush=True)
    try:
        rows = part.main(arguments(part, folder, options))
    except Exception as error:  # the others are to run nevertheless
        traceback.print_exc()
        return [
            {
                "part": part.name,
                "aim": None,
                "measured": None,
                "holds": f"failed: {type(error).__name__}: {error}"[:300],
            }
        ]
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return [verdict(part, aim, rows) for aim in part.aims]


def verdict(part: Part, aim: Aim, rows: Rows) -> dict[str, Any]:
    """One line: the aim, the number, and whether it holds."""
    number = aim.number(rows)
    holds = "not measured" if number is None else "yes" if aim.at_least <= number <= aim.at_most else "no"
    return {"part": part.name, "aim": aim.text, "measured": number, "holds": holds}


def chosen(options: argparse.Namespace) -> list[Part]:
    """The parts that were asked for; in a quick run one for each script."""
    parts = [part for part in PARTS if not options.only or part.name.startswith(tuple(options.only))]
    firsts: dict[Any, Part] = {}
    for part in parts:
        firsts.setdefault(part.main, part)
    return list(firsts.values()) if options.quick else parts


def main(given: Sequence[str] | None = None) -> Rows:
    """Run the parts, print and write the aims; returns them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help=f"parts whose names begin so, of {', '.join(p.name for p in PARTS)}")
    parser.add_argument("--seconds", type=float, default=540.0, help="a part that would not end in time is left out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="the tiny model")
    parser.add_argument("--out", type=Path, help="folder for the results")
    options = parser.parse_args(given)
    options.out = measuring.folder_for(options.out, quick=options.quick)
    if options.device == "cpu" and not options.quick:
        print("no GPU here, and nothing measured: --quick runs the same parts on the tiny model")
        return []
    start, verdicts = time.perf_counter(), []
    with ExitStack() as stack:
        folders: dict[str, str] = {}
        for part in chosen(options):
            left = options.seconds - (time.perf_counter() - start)
            if not options.quick and left < part.seconds:
                verdicts.append({"part": part.name, "aim": None, "measured": None, "holds": "left out: no time"})
                continue
            model = "tiny" if options.quick else part.model
            if part.model is not None and model not in folders:
                folders[model] = stack.enter_context(workloads.model_folder(model))
            verdicts += run(part, folders[model] if part.model else None, options)
            measuring.write("gpu", verdicts, options.out)  # after each part: a run that is cut off leaves what it has
            print(f"{time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n{json.dumps(measuring.environment())}\n\n{measuring.markdown(verdicts)}")
    return verdicts


if __name__ == "__main__":
    main()
