"""A full DPO step: ours, a hand-written transformers loop, and TRL's DPOTrainer.

    python benchmarks/steps_dpo.py                                  # a random Llama and SmolLM2-135M
    python benchmarks/steps_dpo.py --model smollm2 --ways "TRL tuned" --rounds 2

One step is one AdamW update from the same pairs: a prompt of lognormal length (median 80 tokens) with two answers (median
48). The reference logprobs are computed once beforehand, except where TRL's defaults compute them in each step. All start
from the same weights; before anything is timed, two steps of each must give the same losses.

* ours: `forward_backward(pairs, "dpo")` and `optim_step`
* hand-written: right padding to the longest, log_softmax of the logits, torch's AdamW
* TRL defaults: `DPOConfig()`, which is bfloat16 autocast, gradient checkpointing, micro-batches of 8 pairs, a reference model
* TRL tuned: the weights' own precision, no checkpointing, reference logprobs precomputed, fused AdamW, no logs; in one
  batch, or in micro-batches of pairs sorted by length. DPOTrainer 1.16 turns padding_free off again, with a warning

The aim: at least 3 times the speed of TRL's fastest working configuration.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import measuring
import torch
import transformers
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

import lossbook as lb

DEFAULT_MODELS = ("random-llama-67m", "smollm2")
DEFAULTS = "TRL defaults"
BETA = 0.1


@dataclass(frozen=True)
class Pair:
    """A prompt with the better and the worse answer, as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def make_pairs(count: int, vocabulary: int, seed: int = 0) -> list[Pair]:
    """Random tokens, the same each time."""
    prompts = workloads.lengths(count, seed=seed)
    answers = workloads.lengths(2 * count, median=48.0, low=8, high=256, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = iter(torch.randint(0, vocabulary, (sum(prompts) + sum(answers),), generator=generator))

    def take(number: int) -> list[int]:
        return [int(next(tokens)) for _ in range(number)]

    return [Pair(take(prompts[i]), take(answers[2 * i]), take(answers[2 * i + 1])) for i in range(count)]


def ours(folder: str, batches: Sequence[Sequence[Pair]], options: argparse.Namespace) -> Step:
    """The step as a user of lossbook writes it; the reference's forwards are made once."""
    service = lb.ServiceClient(device=options.device, dtype=options.dtype)
    training = service.create_training_client(folder)
    given = itertools.cycle([(pairs, reference_logprobs(training, pairs)) for pairs in batches])
    return lambda: train(training, datums(*next(given)), "dpo", {"beta": BETA})


def datums(pairs: Sequence[Pair], references: Sequence[tuple[torch.Tensor, torch.Tensor]] | None) -> list[lb.Datum]:
    """Two datums a pair, with the reference's logprobs of both answers where they are there."""
    columns = [[getattr(pair, side) for pair in pairs] for side in ("prompt", "chosen", "rejected")]
    return lb.datums_from_pairs(*columns, ref_logprobs=references)


def reference_logprobs(training: lb.TrainingClient, pairs: Sequence[Pair]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logprobs (nats) of each pair's answers under the model as it is."""
    outputs = training.forward(datums(pairs, None), "cross_entropy").result().loss_fn_outputs
    logprobs = [output["logprobs"].to_torch() for output in outputs]
    return list(zip(logprobs[0::2], logprobs[1::2], strict=True))


class HandWritten:
    """A straightforward hand-written loop: chosen and rejected answers in one padded batch."""

    def __init__(self, folder: str, batches: Sequence[Sequence[Pair]], options: argparse.Namespace) -> None:
        self.model = peer_module(folder, options).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **ADAM)
        self.device = options.device
        with torch.no_grad():
            self.given = itertools.cycle([(pairs, self.logprobs(pairs)) for pairs in batches])

    def logprobs(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """[2 pairs]: nats of each answer, the chosen first."""
        answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        prompts = [pair.prompt for pair in pairs] * 2
        longest = max(pair.longest for pair in pairs)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask, answered = torch.zeros_like(tokens), torch.zeros_like(tokens)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer)
            tokens[row, :end] = torch.tensor(prompt + answer)
            mask[row, :end] = 1
            answered[row, len(prompt) : end] = 1
        tokens, mask, answered = (tensor.to(self.device) for tensor in (tokens, mask, answered))
        logits = self.model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
        return (logprobs * answered[:, 1:]).sum(1)

    def __call__(self) -> float:
        pairs, reference = next(self.given)
        chosen, rejected = (self.logprobs(pairs) - reference).chunk(2)
        loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        update(self.model, self.optimizer)
        return loss.item()


def trl(folder: str, batches: Sequence[Sequence[Pair]], options: argparse.Namespace, **settings: Any) -> Any:
    """DPOTrainer on the same pairs. Its constructor tokenises text, so the tokens are set afterwards."""
    import datasets
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl_training import SAME_STEP, PausedTraining, repeated, trl_module

    arguments = {**SAME_STEP, "use_cpu": options.device == "cpu", "output_dir": tempfile.mkdtemp(), **settings}
    trainer = DPOTrainer(
        model=trl_module(folder, options),
        args=DPOConfig(**arguments, beta=BETA),
        train_dataset=datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )
    rows = [
        {"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for pairs in batches for p in pairs
    ]
    if arguments.get("precompute_ref_log_probs"):
        prepared = trainer._precompute_ref_logps(repeated(rows, 1), "train", len(batches[0]))
        rows = [dict(row) for row in prepared]
    trainer.train_dataset = repeated(rows, options.rounds + 8)
    return PausedTraining(trainer)


def ways(folder: str, batches: Sequence[Sequence[Pair]], options: argparse.Namespace) -> dict[str, Callable[[], Step]]:
    """By way, a function that makes its step."""
    from trl_training import tuned

    fast = {**tuned(options), "precompute_ref_log_probs": True}
    by_length = [sorted(pairs, key=lambda pair: -pair.longest) for pairs in batches]
    whole = len(batches[0])
    defaults, part = min(8, whole), -(-whole // 4)
    return {
        "ours": lambda: ours(folder, batches, options),
        "hand-written": lambda: HandWritten(folder, batches, options),
        NARROW: lambda: HandWritten(folder, batches, narrow(options)),
        DEFAULTS: lambda: trl(
            folder,
            batches,
            options,
            per_device_train_batch_size=defaults,
            gradient_accumulation_steps=whole // defaults,
        ),
        "TRL tuned, padded": lambda: trl(folder, batches, options, per_device_train_batch_size=whole, **fast),
        "TRL tuned, sorted micro-batches": lambda: trl(
            folder,
            by_length,
            options,
            per_device_train_batch_size=part,
            gradient_accumulation_steps=4,
            **fast,
        ),
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Check, measure, print the table, write it; returns its rows."""
    command_line = parser((__doc__ or "").splitlines()[0], DEFAULT_MODELS)
    command_line.add_argument("--pairs", type=int, default=8, help="pairs per step, a multiple of 4")
    options = parse(command_line, arguments, DEFAULT_MODELS)
    options.pairs = 4 if options.quick else options.pairs
    rows: list[dict[str, Any]] = []
    for model in options.model:
        with workloads.model_folder(model) as folder:
            vocabulary = workloads.vocabulary(folder)
            batches = batches_of(lambda seed, size=vocabulary: make_pairs(options.pairs, size, seed), options)
            steps = wanted(ways(folder, batches, options), options.ways)
            lengths = [2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for pairs in batches for p in pairs]
            tokens = sum(lengths) // len(batches)
            padded = sum(2 * len(pairs) * max(p.longest for p in pairs) for pairs in batches) // len(batches)
            about = {"model": model, "pairs": options.pairs, "tokens": tokens, "padded": padded}
            bounds = {"tolerance": options.tolerance, "looser": {DEFAULTS: TOLERANCE[torch.bfloat16]}}
            rows += compare(steps, options.rounds, tokens, about, **bounds)
    print(measuring.markdown(rows))
    measuring.write(options.name or "steps_dpo", rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
