"""Made-up data: datums of random tokens, as arrays, from which each API's datums are built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .settings import ConformSettings


@dataclass(frozen=True)
class Example:
    """One sequence of N tokens, and what losses read at them; arrays are of N, or of [N, K]."""

    tokens: np.ndarray
    inputs: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def targets(self) -> np.ndarray:
        """[N] or [N, K] int64."""
        return self.inputs["target_tokens"]

    def having(self, **inputs: np.ndarray | None) -> Example:
        """A copy with other inputs; None takes one away."""
        changed = {**self.inputs, **inputs}
        return replace(self, inputs={name: value for name, value in changed.items() if value is not None})

    def only(self, **inputs: np.ndarray) -> Example:
        """A copy with its targets, and these inputs alone."""
        return replace(self, inputs={"target_tokens": self.targets, **inputs})


class Material:
    """Draws of one seed; equal calls in the same order give equal data."""

    def __init__(self, settings: ConformSettings, name: str) -> None:
        self._settings = settings
        self.rng = np.random.default_rng([settings.seed, *name.encode()])

    def tokens(self, count: int) -> np.ndarray:
        """[count] int64."""
        return self.rng.integers(10, self._settings.vocabulary, count)

    def examples(self, count: int | None = None) -> list[Example]:
        """Sequences of different lengths with weights of 1, the first positions of each but one with weight 0."""
        made = []
        for i in range(count or self._settings.examples):
            length = int(self.rng.integers(5, self._settings.tokens)) + 1
            line = self.tokens(length + 1)
            weights = (np.arange(length) >= (2 if i else 0)).astype(np.float32)
            made.append(Example(line[:-1], {"target_tokens": line[1:], "weights": weights}))
        return made

    def real_weights(self, example: Example) -> np.ndarray:
        """[N] float32: fractions, negative ones and zeros."""
        drawn = self.rng.normal(size=len(example)).astype(np.float32)
        drawn[self.rng.integers(len(example))] = 0.0
        drawn[0] = 0.37
        return drawn

    def rollout(self, example: Example, logprobs: np.ndarray) -> Example:
        """The example as a sampled one: the sampler's logprobs lie around `logprobs`, so that bounds on ratios bind."""
        noise = self.rng.normal(scale=0.5, size=len(example))
        old = np.minimum(logprobs - noise, -1e-3).astype(np.float32)
        return example.only(logprobs=old, advantages=self.rng.normal(size=len(example)).astype(np.float32))


def as_datum(api: Any, example: Example) -> Any:
    """The datum of the SDK's API (`tinker`, or lossbook.integrations.tinker)."""
    inputs = {}
    for name, value in example.inputs.items():
        whole = np.issubdtype(value.dtype, np.integer)
        inputs[name] = api.TensorData(
            data=value.reshape(-1).tolist(), dtype="int64" if whole else "float32", shape=list(value.shape)
        )
    return api.Datum(model_input=api.ModelInput.from_ints(example.tokens.tolist()), loss_fn_inputs=inputs)
