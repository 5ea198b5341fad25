"""Whether a sampler and the trainer give the same logprobs to the same tokens.

A policy-gradient loss divides the trainer's probability of a token by the sampler's. Before the first step both are the
same model, so every ratio should be 1. Any difference is rounding, or a bug that looks like off-policy data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datums.builders.tokens import datum_from_tokens_weights
from ...datums.types import ModelInput, SamplingParams
from ..steps.samples import prompt_tokens
from .episodes import Sampler

if TYPE_CHECKING:
    from ...trainer import TrainingClient

#: PPO's clip bounds, 0.8 and 1.2, lie at least 0.18 nats from a ratio of 1. A mean difference of a hundredth of that has no
#: effect on such a loss, and a single token that differs by a tenth of it is still far from being clipped.
MEAN_LIMIT, LARGEST_LIMIT = 0.002, 0.02
REASON = "a ratio is clipped at 0.18 nats (0.8 to 1.2); the limits are a tenth of that for one token, a hundredth for the mean"
#: The factor on these limits in bfloat16 and float16, where sampler and trainer multiply matrices of different shapes and so
#: round differently. Measured with SmolLM2-135M: both are 0.04 nats on average from float32 products of the same weights,
#: and 0.05 (largest 0.25) from each other. Up to twice that counts as rounding; a wrong temperature, position or set of
#: weights gives more.
HALF_PRECISION = 50
HALF_REASON = (
    "in {dtype} rounding alone gives a mean of 0.05 nats and up to 0.3 for single tokens in a small model, enough to be clipped; "
    "to avoid it, train in float32 (--dtype float32) or use a rollout correction"
)
PROMPTS = (
    "What is the capital of France?",
    "Write a haiku about rain.",
    "How many legs do three spiders have?",
    "Continue: once upon a time",
)


@dataclass(frozen=True)
class Parity:
    """Differences d = trainer's logprob - sampler's logprob, in nats, over sampled tokens.

    largest, mean   of |d|
    k1, k3          mean(-d) and mean(exp(d) - 1 - d): two estimates of KL(sampler || trainer), nats per token
    equal           fraction of tokens whose logprobs are equal to the last bit
    dtype           of the trainer's matrix products
    bound           the largest mean |d| that is accepted, nats, and ten times that for a single token; None: by dtype
    """

    tokens: int
    largest: float
    mean: float
    k1: float
    k3: float
    equal: float
    dtype: str = "float32"
    bound: float | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """The largest and the mean |d| that rounding explains in this dtype, nats, or that `bound` accepts."""
        if self.bound is not None:
            return 10 * self.bound, self.bound
        factor = HALF_PRECISION if self.dtype in ("bfloat16", "float16") else 1
        return factor * LARGEST_LIMIT, factor * MEAN_LIMIT

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the differences."""
        largest, mean = self.limits
        return self.largest <= largest and self.mean <= mean

    @property
    def reason(self) -> str:
        """The reason for the limits."""
        if self.bound is not None:
            return f"a mean of {self.bound:g} nats was accepted, and ten times that for one token"
        return REASON if self.limits[0] == LARGEST_LIMIT else HALF_REASON.format(dtype=self.dtype)

    def __str__(self) -> str:
        return (
            f"tokens                 {self.tokens}, of which {self.equal:.0%} agree to the last bit\n"
            f"|trainer - sampler|    largest {self.largest:.2g}, mean {self.mean:.2g} nats "
            f"(limits {self.limits[0]:g} and {self.limits[1]:g} for {self.dtype})\n"
            f"KL per token           k1 {self.k1:.2g}, k3 {self.k3:.2g} nats"
        )


def measure_parity(
    training: TrainingClient,
    *,
    max_tokens: int = 48,
    num_samples: int = 2,
    temperature: float = 1.0,
    seed: int = 0,
    prompts: Sequence[str] = PROMPTS,
    sampler: Sampler | None = None,
    bound: float | None = None,
) -> Parity:
    """Sample from the current weights, and compare with the trainer's forward pass over the same tokens.

    sampler: of the current weights, elsewhere; None: the trainer's own.
    """
    tokenizer = training.get_tokenizer()
    inputs = [prompt_tokens(prompt, tokenizer) for prompt in prompts]
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    sampler = sampler or training.save_weights_and_get_sampling_client()
    model_inputs = [ModelInput.from_ints(tokens) for tokens in inputs]
    responses = sampler.sample_batch(model_inputs, params, num_samples=num_samples).result()
    pairs = [
        (tokens, sequence)
        for tokens, response in zip(inputs, responses, strict=True)
        for sequence in response.sequences
    ]
    datums = [
        datum_from_tokens_weights([*tokens, *sequence.tokens], [0.0] * len(tokens) + [1.0] * len(sequence.tokens))
        for tokens, sequence in pairs
    ]
    outputs = training.forward(datums, "cross_entropy").result().loss_fn_outputs
    trainers = [
        output["logprobs"].to_numpy()[len(tokens) - 1 :] for (tokens, _), output in zip(pairs, outputs, strict=True)
    ]
    samplers = [np.asarray(sequence.logprobs) for _, sequence in pairs]
    return compare(np.concatenate(trainers), np.concatenate(samplers), dtype=training.get_info().dtype, bound=bound)


def compare(trainer: Any, sampler: Any, *, dtype: str = "float32", bound: float | None = None) -> Parity:
    """Compare logprobs [T] (nats) of the same tokens. dtype: of the trainer's products; bound: see `Parity`."""
    trainer, sampler = np.asarray(trainer, np.float32), np.asarray(sampler, np.float32)
    difference = trainer.astype(np.float64) - sampler.astype(np.float64)
    size = np.abs(difference)
    return Parity(
        tokens=len(difference),
        largest=float(size.max()),
        mean=float(size.mean()),
        k1=float(-difference.mean()),
        k3=float((np.expm1(difference) - difference).mean()),
        equal=float((difference == 0).mean()),
        dtype=dtype,
        bound=bound,
    )
