"""A full supervised fine-tuning step: ours, a hand-written transformers loop, and TRL's SFTTrainer.

    python benchmarks/steps_sft.py                                   # a random Llama and SmolLM2-135M
    python benchmarks/steps_sft.py --model smollm2 --ways "TRL tuned, padded" --rounds 2
    python benchmarks/steps_sft.py --device cuda --dtype bfloat16 --sequences 128

One step is one AdamW update from the same sequences of variable length (lognormal, median 80 tokens). It includes the step's
data preparation but not tokenisation. There are two cases: every token is trained on, or only the last quarter of each
sequence, as with long prompts. All start from the same weights; before anything is timed, two steps of each must give the same losses.

* ours: `forward_backward(datums, "cross_entropy")` and `optim_step`
* hand-written: right padding to the longest, labels -100, `model(..., labels=labels).loss`, torch's AdamW
* TRL defaults: `SFTConfig()`, which is bfloat16 autocast and gradient checkpointing, micro-batches of 8
* TRL tuned: the weights' own precision, no checkpointing, fused AdamW, no logs; all in one padded batch, in one batch
  without padding (padding_free), or in four padded micro-batches of sequences sorted by length

The aims: at least 2 times the tokens/s of TRL's fastest working configuration, 1.6 times those of the hand-written loop.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import measuring
import torch
import workloads
from steps import (
    ADAM,
    NARROW,
    TOLERANCE,
    Step,
    batches_of,
    compare,
    narrow,
    parse,
    parser,
    peer_module,
    train,
    update,
    wanted,
)
from workloads import Example

import lossbook as lb

DEFAULT_MODELS = ("random-llama-67m", "smollm2")
DEFAULTS = "TRL defaults"
PADDED, PADDING_FREE, SORTED = "TRL tuned, padded", "TRL tuned, padding-free", "TRL tuned, sorted micro-batches"


class HandWritten:
    """A straightforward hand-written loop."""

    def __init__(self, folder: str, batches: Sequence[Sequence[Example]], options: argparse.Namespace) -> None:
        self.model = peer_module(folder, options).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **ADAM)
        self.batches, self.device = itertools.cycle(batches), options.device

    def __call__(self) -> float:
        batch = next(self.batches)
        longest = max(len(example.tokens) for example in batch)
        tokens = torch.zeros(len(batch), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
        for row, example in enumerate(batch):
            start, end = len(example.prompt), len(example.tokens)
            tokens[row, :end] = torch.tensor(example.tokens)
            mask[row, :end] = 1
            labels[row, start:end] = tokens[row, start:end]
        tokens, mask, labels = (tensor.to(self.device) for tensor in (tokens, mask, labels))
        loss = self.model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        update(self.model, self.optimizer)
        return loss.item()


def ours(folder: str, batches: Sequence[Sequence[Example]], options: argparse.Namespace) -> Step:
    """The step as a user of lossbook writes it."""
    service = lb.ServiceClient(device=options.device, dtype=options.dtype)
    training = service.create_training_client(folder)
    given = itertools.cycle(batches)
    return lambda: train(training, workloads.datums(next(given)), "cross_entropy", {"reduction": "token-mean"})


def trl(folder: str, batches: Sequence[Sequence[Example]], options: argparse.Namespace, **settings: Any) -> Any:
    """SFTTrainer on the same sequences, tokenised already."""
    import transformers
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
    from trl_training import SAME_STEP, PausedTraining, repeated, trl_module

    rows = [
        {"input_ids": e.tokens, "labels": [-100] * len(e.prompt) + e.completion} for batch in batches for e in batch
    ]
    arguments = {**SAME_STEP, "use_cpu": options.device == "cpu", "output_dir": tempfile.mkdtemp(), **settings}
    trainer = SFTTrainer(
        model=trl_module(folder, options),
        args=SFTConfig(**arguments),
        train_dataset=repeated(rows, options.rounds + 8),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )
    return PausedTraining(trainer)


def ways(
    folder: str, batches: Sequence[Sequence[Example]], options: argparse.Namespace
) -> dict[str, Callable[[], Step]]:
    """By way, a function that makes its step."""
    from trl_training import tuned

    whole, defaults, fast = len(batches[0]), min(8, len(batches[0])), tuned(options)
    by_length = [sorted(batch, key=lambda example: -len(example.tokens)) for batch in batches]
    quarter = -(-whole // 4)
    free = {"padding_free": True, "max_length": None}
    return {
        "ours": lambda: ours(folder, batches, options),
        "hand-written": lambda: HandWritten(folder, batches, options),
        NARROW: lambda: HandWritten(folder, batches, narrow(options)),
        DEFAULTS: lambda: trl(folder, batches, options, gradient_accumulation_steps=whole // defaults),
        PADDED: lambda: trl(folder, batches, options, per_device_train_batch_size=whole, **fast),
        PADDING_FREE: lambda: trl(folder, batches, options, per_device_train_batch_size=whole, **fast, **free),
        SORTED: lambda: trl(
            folder,
            by_length,
            options,
            per_device_train_batch_size=quarter,
            gradient_accumulation_steps=4,
            **fast,
        ),
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Check, measure, print the table, write it; returns its rows."""
    command_line = parser((__doc__ or "").splitlines()[0], DEFAULT_MODELS)
    command_line.add_argument("--sequences", type=int, default=16, help="sequences per step, a multiple of 8")
    command_line.add_argument(
        "--label-fractions", type=float, nargs="+", default=[1.0, 0.25], help="of each sequence's tokens"
    )
    options = parse(command_line, arguments, DEFAULT_MODELS)
    if options.quick:
        options.sequences, options.label_fractions = 8, [0.25]
    rows: list[dict[str, Any]] = []
    for model in options.model:
        with workloads.model_folder(model) as folder:
            for fraction in options.label_fractions:
                rows += run(model, folder, fraction, options)
    print(measuring.markdown(rows))
    measuring.write(options.name or "steps_sft", rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


def run(model: str, folder: str, fraction: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All ways on one model and one share of labels."""
    sizes = batches_of(lambda seed: workloads.lengths(options.sequences, seed=seed), options)
    vocabulary = workloads.vocabulary(folder)
    batches = [workloads.examples(each, fraction, vocabulary, seed) for seed, each in enumerate(sizes)]
    steps = wanted(ways(folder, batches, options), options.ways)
    tokens, padded = (sum(map(count, sizes)) // len(sizes) for count in (sum, lambda each: len(each) * max(each)))
    about = {"model": model, "labels": fraction, "tokens": tokens, "padded": padded}
    looser = {DEFAULTS: TOLERANCE[torch.bfloat16]}
    return compare(steps, options.rounds, tokens, about, tolerance=options.tolerance, looser=looser)


if __name__ == "__main__":
    main()
