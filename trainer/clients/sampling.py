"""`SamplingClient`: generating from a model, and the logprobs of given tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...datums.errors import ModelError, TokenRangeError
from ...datums.types import ModelInput, SamplingParams, as_model_input
from ..head.logprobs import linear_logprobs
from ..model.snapshot import Snapshot
from ..packing.hidden import hidden_states
from ..responses import SampledSequence, SampleResponse
from ..sampling.decode import Progress
from ..sampling.generate import Generated, generate, generate_batch
from .futures import Calls, Future, Worker


class SamplingClient:
    """Samples from fixed weights. Logprobs agree with the trainer's at the same weights."""

    def __init__(self, worker: Worker, snapshot: Snapshot, name: str) -> None:
        self._snapshot = snapshot
        self._calls = Calls(name, worker)

    def sample(
        self,
        prompt: ModelInput | Sequence[int],
        num_samples: int = 1,
        sampling_params: SamplingParams | Any = None,
        *,
        include_prompt_logprobs: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Future[SampleResponse]:
        """`num_samples` continuations of one prompt, with each token's logprob under the model itself (nats).

        on_progress is called for every token, on a GPU for several in a row, on the sampling thread: it must not wait for this client. An error that it
        raises ends the call.
        """
        tokens, params = as_model_input(prompt).to_ints(), _params(sampling_params)

        def run() -> SampleResponse:
            with self._snapshot.applied():
                samples = generate(
                    self._snapshot.model, tokens, num_samples=num_samples, params=params, on_progress=on_progress
                )
                prompt_logprobs = self._logprobs(tokens) if include_prompt_logprobs else None
            return SampleResponse(_sequences(samples), prompt_logprobs)

        return self._calls.submit("sample", run)

    def sample_batch(
        self,
        prompts: Sequence[ModelInput | Sequence[int]],
        sampling_params: SamplingParams | Any = None,
        *,
        num_samples: int = 1,
        seeds: Sequence[int] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Future[list[SampleResponse]]:
        """`num_samples` continuations of each prompt, decoded together, as evaluation and RL need them.

        One response per prompt, in order. Each prompt is read once for all its samples. seeds: one per prompt, replacing
        the parameters' seed, with which equal prompts get equal samples. `on_progress` as in `sample`.
        """
        lists, params = [as_model_input(p).to_ints() for p in prompts], _params(sampling_params)
        own_seeds = None if seeds is None else list(seeds)

        def run() -> list[SampleResponse]:
            with self._snapshot.applied():
                samples = generate_batch(
                    self._snapshot.model,
                    lists,
                    num_samples=num_samples,
                    params=params,
                    seeds=own_seeds,
                    on_progress=on_progress,
                )
            return [SampleResponse(_sequences(of_prompt)) for of_prompt in samples]

        return self._calls.submit("sample_batch", run)

    def compute_logprobs(self, prompt: ModelInput | Sequence[int]) -> Future[list[float | None]]:
        """The logprob of each token given those before it (nats); None for the first.

        The call raises TokenRangeError for tokens outside the vocabulary, and ModelError where the model would have to read
        more than its context, as in training.
        """
        tokens = as_model_input(prompt).to_ints()

        def run() -> list[float | None]:
            with self._snapshot.applied():
                return self._logprobs(tokens)

        return self._calls.submit("compute_logprobs", run)

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self._snapshot.model.tokenizer

    def _logprobs(self, tokens: list[int]) -> list[float | None]:
        model = self._snapshot.model
        if not tokens or any(not 0 <= t < model.vocab_size for t in tokens):
            raise TokenRangeError(f"the prompt needs at least one token, all within 0 to {model.vocab_size - 1}")
        if model.max_length is not None and len(tokens) - 1 > model.max_length:  # the last one is not read
            raise ModelError(
                f"the prompt has {len(tokens)} tokens, but {model.name} reads at most {model.max_length}, and so gives "
                f"logprobs of {model.max_length + 1}. Cut the prompt"
            )
        with torch.no_grad():
            if len(tokens) == 1:
                return [None]
            hidden = hidden_states(model, [tokens[:-1]], "padded")
            targets = torch.tensor(tokens[1:], device=hidden.device)
            return [None, *linear_logprobs(hidden, model.head(), targets).logprobs.tolist()]


def _sequences(samples: Sequence[Generated]) -> list[SampledSequence]:
    return [SampledSequence(one.tokens, one.logprobs, one.stop_reason) for one in samples]


def _params(params: SamplingParams | Any) -> SamplingParams:
    """A copy of our SamplingParams, or of another SDK's by structure."""
    if params is None:
        return SamplingParams()
    names = list(SamplingParams.__dataclass_fields__)
    if missing := [name for name in names if not hasattr(params, name)]:
        given = " Write SamplingParams(**params)" if isinstance(params, Mapping) else ""
        raise ModelError(
            f"sampling_params must be a SamplingParams, not a {type(params).__name__} without {', '.join(missing)}.{given}"
        )
    return SamplingParams(**{name: copy.copy(getattr(params, name)) for name in names})
