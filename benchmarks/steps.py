"""Shared by the benchmarks of whole optimizer steps: optimizer settings, lossbook's step, checks and timing."""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import measuring
import torch
import transformers
import workloads
from workloads import MODELS

import lossbook as lb

#: AdamW settings of every step, in torch's names; gradients are clipped to norm CLIP.
ADAM: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
CLIP = 1.0
#: The largest relative difference between losses before timing; bfloat16 has three decimal digits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
#: The hand-written loop with weights and moments in `--dtype`: faster, and the update is rounded.
NARROW = "hand-written, narrow weights"
Step = Callable[[], float]
T = TypeVar("T")


@runtime_checkable
class Closable(Protocol):
    """A step that holds resources until it is closed."""

    def close(self) -> None: ...


def adam_params() -> lb.AdamParams:
    """ADAM for `optim_step`."""
    beta1, beta2 = ADAM["betas"]
    return lb.AdamParams(
        learning_rate=ADAM["lr"],
        beta1=beta1,
        beta2=beta2,
        eps=ADAM["eps"],
        weight_decay=ADAM["weight_decay"],
        grad_clip_norm=CLIP,
    )


def train(training: lb.TrainingClient, datums: Sequence[lb.Datum], loss: str, settings: Mapping[str, Any]) -> float:
    """One step of ours; returns the loss."""
    output = training.forward_backward(datums, loss, settings)
    training.optim_step(adam_params()).result()
    return output.result().metrics["loss:sum"]


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What the hand-written loops do after the backward: clip, step, clear."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()


def parser(description: str, models: Sequence[str]) -> argparse.ArgumentParser:
    """The options that every benchmark of steps takes."""
    command_line = argparse.ArgumentParser(description=description)
    command_line.add_argument(
        "--model", action="append", help=f"of {', '.join(MODELS)}, or a folder. Default: {models}"
    )
    command_line.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    command_line.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    command_line.add_argument(
        "--autocast", action="store_true", help="in all ways float32 weights, and products in --dtype as ours has them"
    )
    command_line.add_argument(
        "--tolerance", type=float, help="largest relative difference between losses before timing"
    )
    command_line.add_argument("--fresh", action="store_true", help="other sequences in each step, as in training")
    command_line.add_argument("--rounds", type=int, default=3, help="timed rounds")
    command_line.add_argument("--ways", nargs="+", help="only these ways to compute the step; ours is always included")
    command_line.add_argument("--quick", action="store_true", help="the tiny model, one round")
    command_line.add_argument("--out", type=Path, help="folder for the results")
    command_line.add_argument("--name", help="of the result files")
    return command_line


def parse(
    command_line: argparse.ArgumentParser, arguments: Sequence[str] | None, models: Sequence[str]
) -> argparse.Namespace:
    """The options, with the effects of `--quick`."""
    options = command_line.parse_args(arguments)
    options.model = options.model or (["tiny"] if options.quick else list(models))
    if options.quick:
        options.rounds = 1
    options.dtype = getattr(torch, options.dtype)
    options.tolerance = options.tolerance or TOLERANCE[options.dtype]
    quiet()
    return options


def batches_of(make: Callable[[int], T], options: argparse.Namespace) -> list[T]:
    """What the steps get, from a function of the seed: one batch that is repeated, or with `--fresh` one for each step."""
    return [make(seed) for seed in range(options.rounds + 3 if options.fresh else 1)]


def narrow(options: argparse.Namespace) -> argparse.Namespace:
    """The options of NARROW: weights and moments in `--dtype`, too."""
    return argparse.Namespace(**{**vars(options), "autocast": False})


def peer_module(folder: str, options: argparse.Namespace) -> Any:
    """The model of the hand-written loops."""
    module = workloads.load_module(folder, options.device, torch.float32 if options.autocast else options.dtype)
    if options.autocast:
        kind = torch.device(options.device).type
        module.forward = torch.autocast(kind, dtype=options.dtype)(module.forward)
    return module


def wanted(makers: Mapping[str, Callable[[], Step]], chosen: Sequence[str] | None) -> dict[str, Step]:
    """Ours and the steps that were asked for, by default all but NARROW, made. Raises ValueError for an unknown name."""
    unknown = set(chosen or ()) - set(makers)
    if unknown:
        raise ValueError(f"--ways {' '.join(sorted(unknown))}: there are {', '.join(makers)}")
    names = {"ours", *(set(makers) - {NARROW} if chosen is None else chosen)}
    return {label: make() for label, make in makers.items() if label in names}


def compare(
    steps: Mapping[str, Step],
    rounds: int,
    tokens: int,
    about: Mapping[str, Any],
    *,
    tolerance: float,
    looser: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """One row per way: median seconds, tokens/s, how many times as long as ours, peak memory beyond weights and moments.

    First two steps of each, untimed, whose losses have to agree (see `check_same_losses`).
    """
    first: dict[str, float] = {}
    for label, step in steps.items():
        taken = measuring.seconds(lambda label=label, step=step: first.update({label: step()}))
        print(f"{label}: loss {first[label]:.6f}, first step {taken:.1f} s", file=sys.stderr, flush=True)
    second: dict[str, float] = {}
    peaks: dict[str, int] = {}
    for label, step in steps.items():
        peaks[label] = measuring.peak_memory(lambda label=label, step=step: second.update({label: step()}))
    for losses in (first, second):
        check_same_losses(losses, tolerance, looser or {})
    times = measuring.interleaved(steps, rounds, warm_ups=0)
    for step in steps.values():
        if isinstance(step, Closable):
            step.close()
    rows = []
    for label in steps:
        median = statistics.median(times[label])
        row = {**about, "way": label, "seconds": median, "tokens/s": tokens / median}
        row["time / ours"] = measuring.ratio(times, label, "ours")
        row["peak memory MB"] = peaks[label] / 1e6
        rows.append({**row, "rounds": rounds})
    return rows


def check_same_losses(losses: Mapping[str, float], tolerance: float, looser: Mapping[str, float]) -> None:
    """Raise AssertionError unless all agree with ours, relative to 1 or to the loss where that is larger.

    After a second step this shows that gradients and optimizer agree too. looser: other tolerances for some ways.
    """
    ours = losses["ours"]
    for label, loss in losses.items():
        if not abs(ours - loss) <= looser.get(label, tolerance) * max(1.0, abs(ours)):
            raise AssertionError(f"{label} does not compute the loss that lossbook computes: {dict(losses)}")


def quiet() -> None:
    """No progress bars, and none of the warnings that TRL's use of transformers causes."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ["TQDM_DISABLE"] = "1"
    transformers.utils.logging.disable_progress_bar()
    if importlib.util.find_spec("datasets") is not None:
        import datasets

        datasets.disable_progress_bars()
