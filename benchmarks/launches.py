"""What a step asks a GPU for, counted on a CPU: operations launched, copies to the device, and reads that wait for it.

    python benchmarks/launches.py                      # SFT, DPO, GRPO and sampling, float32 and bfloat16 products
    python benchmarks/launches.py --steps SFT --places # and where the code uploads and reads

Small steps are bound by these numbers rather than by arithmetic, and they depend on neither width nor vocabulary: the model
is a Llama of 12 layers with random weights, narrow enough for a CPU. lossbook runs on the path that it takes on a GPU. See
`counting.py` for what counts.

* ours, packed: `forward_backward` and `optim_step`; padded: the same with `batching="padded"`; fused: packed, with each of
  liger-kernel's fused operations as one, and what its functions launch beside it
* plain loop: the hand-written loops of `steps_sft.py`, `steps_dpo.py` and `steps_grpo.py`, with torch's AdamW and clipping
* TRL tuned: one padded batch, as in those scripts
* sampling, per token of a batch of 8 rows: `sample_batch` and transformers' `generate`

bfloat16 is autocast over float32 weights in all ways. For GRPO the step is that of given answers; sampling is apart.

The aims: launches of a packed step at most 1.05 of the plain loop's, at most 0.6 with fused layers; at most 1 read and 2
uploads in a micro-batch; at most 20 launches in clipping and optimizer; a sampled token at most what `generate` takes.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import measuring
import steps_dpo
import steps_grpo
import steps_sft
import torch
import workloads
from counting import Counts, as_on_a_gpu, watched
from launch_cases import CASES, Case
from steps import quiet, train, update
from trl_training import tuned

import lossbook as lb
from lossbook.trainer.model.fused.kernels import standing_in
from lossbook.trainer.model.fused.reference import reference_kernels

#: A `torch.device` stands for the device, see `counting`.
DEVICE = torch.device("cpu")
OURS, FUSED, PADDED, PLAIN, TRL = "ours, packed", "ours, fused", "ours, padded", "plain loop", "TRL tuned"
WAYS = [OURS, FUSED, PADDED, PLAIN, TRL]
#: Parts of a step: what ours calls them, and the others.
WORK, OPTIMIZER, SAMPLING = ("forward_backward", "work"), ("optim_step", "optimizer", ""), ("sample_batch", "sampling")
#: Tokens sampled in two calls; the difference is free of what reading the prompt takes.
MANY, FEW = 32, 16
Step = Callable[[], Any]


# --- one step of each way ---------------------------------------------------------------------------------------------


def ours(case: Case, folder: str, options: argparse.Namespace, counts: Counts, batching: Any = "packed") -> Step:
    """lossbook's step; where all weights are trained, dtype is that of products."""
    service = lb.ServiceClient(device="cpu", dtype=options.dtype, batching=batching)
    training = service.create_training_client(folder)
    datums = case.datums(training)

    def step() -> None:
        with watched(training, counts):
            train(training, datums, case.loss, case.settings)

    return step


def fused(case: Case, folder: str, options: argparse.Namespace, counts: Counts) -> Step:
    """lossbook's step with fused layers."""
    with standing_in(reference_kernels()):
        return ours(case, folder, options, counts)


def plain(case: Case, options: argparse.Namespace, counts: Counts) -> Step:
    """The hand-written loop, in autocast where products are narrower than weights."""
    loop = case.plain(options)

    def step() -> None:
        with ExitStack() as stack:
            for module in (steps_sft, steps_dpo, steps_grpo):
                stack.enter_context(patch.object(module, "update", during(counts, OPTIMIZER[1], update)))
            stack.enter_context(counts)
            stack.enter_context(counts.during(WORK[1]))
            loop()

    return step


def trl(case: Case, options: argparse.Namespace, counts: Counts) -> Step:
    """TRL's own training step; what it does outside of `training_step` counts as the optimizer's."""
    step = case.trl(options, {**tuned(options), "use_cpu": True})
    trainer = step.trainer
    trainer.training_step = during(counts, WORK[1], trainer.training_step)
    if hasattr(trainer, "_generate_and_score_completions"):
        trainer._generate_and_score_completions = during(counts, SAMPLING[1], trainer._generate_and_score_completions)
    step.around = counts
    return step


def during(counts: Counts, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose launches, uploads and reads count under `phase`."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        with counts.during(phase):
            return function(*args, **kwargs)

    return counted


def count_step(make: Callable[[Counts], Step]) -> Counts:
    """The counts of a step, after one that warms up."""
    counts = Counts()
    step = make(counts)
    step()
    counts.clear()
    step()
    if hasattr(step, "close"):
        step.close()  # type: ignore[attr-defined]
    return counts


def steps(name: str, folder: str, options: argparse.Namespace) -> dict[str, Counts]:
    """The counts of each way that is asked for."""
    case = CASES[name](folder)
    makers: dict[str, Callable[[Counts], Step]] = {
        OURS: lambda counts: ours(case, folder, options, counts),
        FUSED: lambda counts: fused(case, folder, options, counts),
        PADDED: lambda counts: ours(case, folder, options, counts, "padded"),
        PLAIN: lambda counts: plain(case, options, counts),
        TRL: lambda counts: trl(case, options, counts),
    }
    return {way: count_step(make) for way, make in makers.items() if way in options.ways}


def row(step: str, way: str, counts: Counts, to: Counts | None, products: torch.dtype) -> dict[str, Any]:
    """One line of the table. to: the plain loop's counts."""
    work, optimizer = (sum(counts.by_phase[phase] for phase in part) for part in (WORK, OPTIMIZER))
    plain = None if to is None else sum(to.by_phase[phase] for phase in (*WORK, *OPTIMIZER))
    return {
        "step": step,
        "products": str(products).removeprefix("torch."),
        "way": way,
        "forward and backward": work,
        "clip and optimizer": optimizer,
        "launches / plain loop": None if plain is None else (work + optimizer) / plain,
        "uploads": sum(event.phase not in SAMPLING for event in counts.uploads),
        "reads": sum(event.phase in WORK for event in counts.reads),
        "reads of the optimizer": sum(event.phase in OPTIMIZER for event in counts.reads),
    }


# --- sampling ---------------------------------------------------------------------------------------------------------


def sampling(folder: str, options: argparse.Namespace) -> dict[str, Counts]:
    """The counts of MANY - FEW tokens of 8 rows: ours, and `generate`."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 256, (2, 16), generator=generator).tolist()
    training = lb.ServiceClient(device="cpu", dtype=options.dtype).create_training_client(folder)
    sampler = training.save_weights_and_get_sampling_client()
    module = workloads.load_module(folder, DEVICE, options.dtype).eval()  # type: ignore[arg-type]
    rows = torch.tensor(prompts).repeat_interleave(4, 0)
    never = {"eos_token_id": steps_grpo.NEVER, "pad_token_id": 0, "attention_mask": torch.ones_like(rows)}

    def sample(counts: Counts, tokens: int) -> None:
        with watched(sampler, counts):
            params = lb.SamplingParams(max_tokens=tokens, temperature=1.0, seed=0, stop=[])
            sampler.sample_batch(prompts, params, num_samples=4).result()

    def generate(counts: Counts, tokens: int) -> None:
        with counts, counts.during(SAMPLING[1]), torch.no_grad():
            module.generate(rows, max_new_tokens=tokens, do_sample=True, top_k=0, **never)

    return {OURS: difference(sample), "generate": difference(generate)}


def difference(run: Callable[[Counts, int], None]) -> Counts:
    """What MANY tokens take more than FEW."""
    counts = Counts()
    run(counts, FEW)  # warms up
    counts.clear()
    run(counts, FEW)
    few = counts.launches, counts.uploads, counts.reads
    counts.clear()
    run(counts, MANY)
    counts.launches.subtract(few[0])
    counts.uploads, counts.reads = counts.uploads[len(few[1]) :], counts.reads[len(few[2]) :]
    return counts


def sampling_row(way: str, counts: Counts, to: Counts, products: torch.dtype) -> dict[str, Any]:
    """One line of the table, per token."""
    tokens = MANY - FEW
    return {
        "step": "sampling, a token",
        "products": str(products).removeprefix("torch."),
        "way": way,
        "launches": counts.launches.total() / tokens,
        "launches / generate": counts.launches.total() / to.launches.total(),
        "uploads": len(counts.uploads) / tokens,
        "reads": len(counts.reads) / tokens,
    }


# --- the command ------------------------------------------------------------------------------------------------------


def places(title: str, counts: Counts) -> None:
    """Print where the code uploads and reads."""
    for what, events in (("uploads", counts.uploads), ("reads", counts.reads)):
        for event, number in Counter(events).most_common():
            print(f"{title}: {what} {number} in {event.phase}: {event.place}")


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of steps, and those of sampling."""
    rows, sampled = [], []
    for products in options.dtypes:
        options.dtype, options.autocast = products, products != torch.float32
        with workloads.written(options.shape) as folder, as_on_a_gpu():
            for name in options.steps:
                counted = steps(name, folder, options)
                rows += [row(name, way, counts, counted.get(PLAIN), products) for way, counts in counted.items()]
                if options.places:
                    places(f"{name}, {products}", counted[OURS])
            if options.sampling:
                counted = sampling(folder, options)
                to = counted["generate"]
                sampled += [sampling_row(way, counts, to, products) for way, counts in counted.items()]
                if options.places:
                    places(f"sampling, {products}", counted[OURS])
    return rows, sampled


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what the peers' scripts read from theirs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--no-sampling", dest="sampling", action="store_false")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--places", action="store_true", help="print where ours uploads and reads")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="two layers, SFT and sampling, float32")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="launches", help="of the result files")
    options = parser.parse_args(arguments)
    if options.quick:
        options.layers, options.steps, options.dtypes = 2, ["SFT"], ["float32"]
    options.shape = workloads.Shape("llama", 512, 48, 96, options.layers, 12, 4, 8)
    options.dtypes = [getattr(torch, name) for name in options.dtypes]
    options.device, options.rounds, options.fresh = DEVICE, 1, False
    quiet()
    return options


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Count, print the tables, write them; returns the rows."""
    options = parse(arguments)
    rows, sampled = measure(options)
    if options.json:
        print(json.dumps(rows + sampled, indent=1))
    else:
        print("\n\n".join(measuring.markdown(part) for part in (rows, sampled) if part))
    measuring.write(options.name, rows + sampled, measuring.folder_for(options.out, quick=options.quick))
    return rows + sampled


if __name__ == "__main__":
    main()
