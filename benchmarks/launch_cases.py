"""The steps that `launches.py` counts: their data, and how each way makes them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import steps_dpo
import steps_grpo
import steps_sft
import torch
import transformers
import workloads

import lossbook as lb


@dataclass(frozen=True)
class Case:
    """One kind of step.

    datums   what ours gets from a client that has not been trained yet, which may give reference logprobs
    plain    makes the hand-written loop: callable, with its `model`
    trl      makes TRL's step
    """

    name: str
    tokens: int
    loss: str
    settings: Mapping[str, Any]
    datums: Callable[[lb.TrainingClient], list[lb.Datum]]
    plain: Callable[[argparse.Namespace], Any]
    trl: Callable[[argparse.Namespace, dict[str, Any]], Any]


def sft(folder: str) -> Case:
    """8 sequences, all tokens of which are trained on."""
    batch = workloads.examples(workloads.lengths(8), 1.0, workloads.vocabulary(folder))
    size = {"per_device_train_batch_size": len(batch)}
    return Case(
        name="SFT",
        tokens=sum(len(example.tokens) for example in batch),
        loss="cross_entropy",
        settings={"reduction": "token-mean"},
        datums=lambda _: workloads.datums(batch),
        plain=lambda options: steps_sft.HandWritten(folder, [batch], options),
        trl=lambda options, tuned: steps_sft.trl(folder, [batch], options, **tuned, **size),
    )


def dpo(folder: str) -> Case:
    """4 pairs, whose reference logprobs are there already."""
    pairs = steps_dpo.make_pairs(4, workloads.vocabulary(folder))
    own = {"per_device_train_batch_size": len(pairs), "precompute_ref_log_probs": True}
    return Case(
        name="DPO",
        tokens=sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs),
        loss="dpo",
        settings={"beta": steps_dpo.BETA},
        datums=lambda training: steps_dpo.datums(pairs, steps_dpo.reference_logprobs(training, pairs)),
        plain=lambda options: steps_dpo.HandWritten(folder, [pairs], options),
        trl=lambda options, tuned: steps_dpo.trl(folder, [pairs], options, **tuned, **own),
    )


class GivenAnswers(steps_grpo.HandWritten):
    """The hand-written GRPO step after sampling."""

    answers: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def __call__(self) -> float:
        loss = self.loss(*self.answers)
        loss.backward()
        steps_grpo.update(self.model, self.optimizer)
        return loss.item()


def grpo(folder: str) -> Case:
    """2 prompts of 32 tokens with 8 given answers of 16 tokens each; TRL samples them, which is counted apart."""
    prompts, new_tokens = steps_grpo.make_prompts(2, 32), 16
    answers = steps_grpo.made_up_answers(2 * steps_grpo.SAMPLES, new_tokens, workloads.vocabulary(folder))
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(prompts)["input_ids"]

    def plain(options: argparse.Namespace) -> Any:
        loop = GivenAnswers(folder, [prompts], argparse.Namespace(**vars(options), new_tokens=new_tokens))
        loop.answers = answers
        return loop

    return Case(
        name="GRPO",
        tokens=2 * steps_grpo.SAMPLES * (32 + new_tokens),
        loss="grpo",
        settings={"kl_coefficient": 0.0},
        datums=lambda _: steps_grpo.datums(tokens, *answers),
        plain=plain,
        trl=lambda options, tuned: (
            steps_grpo.Trl(folder, [prompts], argparse.Namespace(**vars(options), new_tokens=new_tokens), **tuned).step
        ),
    )


CASES = {"SFT": sft, "DPO": dpo, "GRPO": grpo}
