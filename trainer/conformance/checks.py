"""The checks of the conformance kit for models. Each raises `DoesNotApply`, or returns how far off the model is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...datums.types import SamplingParams
from ...losses.registry import get_loss
from ..model.lengths import switch_length
from ..packing.probes import crossing_sequences, probe_sequences, verdict
from ..sampling.generate import generate_batch
from .adapters import exports, lora
from .resuming import resuming
from .under_test import DoesNotApply, ModelUnderTest, Off, datum_of, gradients_of, own_logprobs, without_gradients

Check = Callable[[ModelUnderTest], Off]


def own_logits(test: ModelUnderTest) -> Off:
    """Logprobs are those of the model's own logits."""
    return test.nats(test.forward(), test.own)


def own_gradient(test: ModelUnderTest) -> Off:
    """The gradient of cross-entropy is autograd's through the model's own logits."""
    with without_gradients(test.model):
        test.engine.forward_backward(test.datums, get_loss("cross_entropy"))
        ours = gradients_of(test.model)
    return test.of_gradients(ours, test.own_gradients)


def company(test: ModelUnderTest) -> Off:
    """A datum's logprobs do not depend on its company: order, padding, packing, prefixes that others share."""
    numbers = range(len(test.datums))
    alone = [test.forward([i])[0] for i in numbers]
    together, other_way = test.forward(), test.forward(list(reversed(numbers)))
    return test.nats([*together, *reversed(other_way)], [*alone, *alone])


def cutting(test: ModelUnderTest) -> Off:
    """Weights of 0 at the end, where tokens need not be computed, change no other logprob."""
    read = [max(datum.model_input.length // 2, 1) for datum in test.datums]
    masked = [
        replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, "weights": np.arange(datum.model_input.length) < count})
        for datum, count in zip(test.datums, read, strict=True)
    ]
    with without_gradients(test.model):
        output = test.engine.forward_backward(masked, get_loss("cross_entropy"))
    cut = [fields["logprobs"].to_torch() for fields in output.loss_fn_outputs]
    pairs = list(zip(cut, test.forward(), read, strict=True))
    return test.nats([one[:count] for one, _, count in pairs], [one[:count] for _, one, count in pairs])


def sampling(test: ModelUnderTest) -> Off:
    """One sample's logprobs are those of a forward over the tokens before each."""
    return _sampled(test, _prompts(test)[:1], samples=1, tokens=8)


def group_sampling(test: ModelUnderTest) -> Off:
    """The same for several samples of prompts that are decoded together."""
    return _sampled(test, _prompts(test), samples=2)


def length_switch(test: ModelUnderTest) -> Off:
    """The same across the length at which the model's rotation switches."""
    sequences = crossing_sequences(test.model)
    if not sequences:
        raise DoesNotApply("no rotation that switches within 512 tokens")
    return _sampled(test, [sequences[1].tolist()], samples=2, tokens=8)


#: The checks of decoders by the name that reports show.
CHECKS: dict[str, Check] = {
    "logprobs are those of the model's own logits": own_logits,
    "the gradient is autograd's through those logits": own_gradient,
    "a datum's numbers do not depend on its company": company,
    "leaving out what is not read changes nothing": cutting,
    "sampled logprobs are those of a forward": sampling,
    "so are those of several samples of several prompts": group_sampling,
    "so are those across a switch of rotation": length_switch,
    "LoRA adapts what was asked for, and only that": lora,
    "merged and adapter exports reload with the same logprobs": exports,
    "save and resume are exact": resuming,
}


def _prompts(test: ModelUnderTest) -> list[list[int]]:
    return [sequence.tolist() for sequence in probe_sequences(test.model)[2::-2]]


@torch.no_grad()
def _sampled(test: ModelUnderTest, prompts: list[list[int]], *, samples: int, tokens: int = 4) -> Off:
    params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=1, stop=[])
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for prompt, group in zip(
        prompts, generate_batch(test.model, prompts, num_samples=samples, params=params), strict=True
    ):
        for sample in group:
            ours.append(torch.tensor(sample.logprobs))
            theirs.append(_after(test, prompt, sample.tokens))
    return test.nats(ours, theirs)


def _after(test: ModelUnderTest, prompt: list[int], tokens: list[int]) -> Tensor:
    """[tokens] nats: own logprobs of tokens, each after those before it alone where later ones could change them."""
    row = [*prompt, *tokens]
    if verdict(test.model, "cut") and switch_length(test.model) is None:
        return own_logprobs(test.model, datum_of(row))[len(prompt) - 1 :]
    ends = range(len(prompt) + 1, len(row) + 1)
    return torch.stack([own_logprobs(test.model, datum_of(row[:end]))[-1] for end in ends])
