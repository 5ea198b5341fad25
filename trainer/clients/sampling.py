"""`SamplingClient`: generating from a model, and the logprobs of given tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ...datums.errors import ModelError
from ...datums.types import ModelInput, SamplingParams, prompt_tokens
from ..responses import SampleResponse
from ..sampling.decode import Progress
from ..training.protocol import Frozen
from .awaitable import AwaitableClient, awaited
from .futures import Calls, Future, Worker

T = TypeVar("T")


class SamplingClient(AwaitableClient):
    """Samples from fixed weights. Logprobs agree with the trainer's at the same weights."""

    def __init__(self, worker: Worker, frozen: Frozen, name: str) -> None:
        self._frozen = frozen
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
        tokens, params = prompt_tokens(prompt), _params(sampling_params)

        def run() -> SampleResponse:
            return self._frozen.sample(
                [tokens], num_samples, params, on_progress=on_progress, prompt_logprobs=include_prompt_logprobs
            )[0]

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
        lists, params = [prompt_tokens(p) for p in prompts], _params(sampling_params)
        own_seeds = None if seeds is None else list(seeds)

        def run() -> list[SampleResponse]:
            return self._frozen.sample(lists, num_samples, params, seeds=own_seeds, on_progress=on_progress)

        return self._calls.submit("sample_batch", run)

    def compute_logprobs(self, prompt: ModelInput | Sequence[int]) -> Future[list[float | None]]:
        """The logprob of each token given those before it (nats); None for the first.

        The call raises TokenRangeError for tokens outside the vocabulary, and ModelError where the model would have to read
        more than its context, as in training.
        """
        tokens = prompt_tokens(prompt)
        return self._calls.submit("compute_logprobs", lambda: self._frozen.logprobs(tokens))

    def in_turn(self, label: str, call: Callable[[Frozen], T]) -> Future[T]:
        """Queue a call of your own on the weights, as `TrainingClient.in_turn` does on a model in training."""
        return self._calls.submit(label, lambda: call(self._frozen))

    sample_async = awaited(sample)
    sample_batch_async = awaited(sample_batch)
    compute_logprobs_async = awaited(compute_logprobs)
    in_turn_async = awaited(in_turn)

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self._frozen.tokenizer


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
