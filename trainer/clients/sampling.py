"""`SamplingClient`: generating from a model, and the logprobs of given tokens."""

from __future__ import annotations

import copy
import itertools
import secrets
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, TypeVar

from ...datums.display import one_line
from ...datums.errors import ModelError
from ...datums.keywords import explained_class
from ...datums.types import ModelInput, SamplingParams, as_tensor_data, prompt_tokens
from ..responses import SampleResponse
from ..sampling.decode import Progress
from ..sampling.generate import check_number
from ..sampling.params import SampledLogprobs, check_params, check_prompt
from ..sampling.prompt_scores import Asked, check_asked
from ..training.protocol import Frozen, OnProgress
from .awaitable import AwaitableClient, awaited
from .futures import Future, Worker
from .independent import IndependentCalls

T = TypeVar("T")


@explained_class
class SamplingClient(AwaitableClient):
    """Samples from fixed weights. Logprobs agree with the trainer's at the same weights.

    Calls do not build on each other, so a failed one fails alone, and one that has not begun can be cancelled. Calls of `sample`
    that wait, with the same parameters but for the seed, are decoded together: each gets the tokens that it gets alone with its
    seed, and logprobs that are the same up to rounding. With `ServiceClient(deterministic=True)` each runs alone.
    """

    def __init__(self, worker: Worker, frozen: Frozen, name: str) -> None:
        self._frozen = frozen
        self._calls = IndependentCalls(name, worker, lambda: frozen.rows_at_once)
        self._id, self._numbers = secrets.token_hex(8), itertools.count()

    def __repr__(self) -> str:
        return one_line(f"<SamplingClient {self._calls.name}>")

    def sample(
        self,
        prompt: ModelInput | Sequence[int],
        num_samples: int = 1,
        sampling_params: SamplingParams | Any = None,
        *,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: Any = None,
        prompt_logprobs_last_n: int | None = None,
        scaled_logprobs: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Future[SampleResponse]:
        """`num_samples` continuations of one prompt of N tokens, with each token's logprob under the model itself (nats).

        include_prompt_logprobs  the logprobs of the prompt's tokens too
        topk_prompt_logprobs     the k likeliest tokens in place of each token of the prompt
        topk_sample_logprobs     the k likeliest tokens in place of each sampled one
        target_prompt_logprobs   int64 [N - 1] or [N - 1, K]: ids whose logprobs are wanted in place of token i + 1 (row i), -1 for
                                 none; a sparse one asks for the ids it lists
        prompt_logprobs_last_n   prompt logprobs and likeliest tokens of the last n tokens alone
        scaled_logprobs          of samples at the sampling temperature: softmax(logits / temperature), top_k and top_p left out
        on_progress              called for every token, on a GPU for several in a row, on the sampling thread: it must not wait
                                 for this client. An error that it raises ends the call. Such a call runs alone
        """
        tokens, params = prompt_tokens(prompt), _params(sampling_params)
        targets = None if target_prompt_logprobs is None else as_tensor_data(target_prompt_logprobs, "target_tokens")
        asked = Asked(include_prompt_logprobs, topk_prompt_logprobs, targets, prompt_logprobs_last_n)
        said = SampledLogprobs(scaled_logprobs, topk_sample_logprobs)
        name = f"{self._id}-{next(self._numbers)}"
        return self._calls.submit_work(
            "sample", _Sample(self._frozen, tokens, num_samples, params, said, asked, on_progress, name)
        )

    def sample_batch(
        self,
        prompts: Sequence[ModelInput | Sequence[int]],
        sampling_params: SamplingParams | Any = None,
        *,
        num_samples: int = 1,
        seeds: Sequence[int] | None = None,
        topk_sample_logprobs: int = 0,
        scaled_logprobs: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Future[list[SampleResponse]]:
        """`num_samples` continuations of each prompt, decoded together, as evaluation and RL need them.

        One response per prompt, in order. Each prompt is read once for all its samples. seeds: one per prompt, replacing
        the parameters' seed, with which equal prompts get equal samples. The others as in `sample`.
        """
        lists, params = [prompt_tokens(p) for p in prompts], _params(sampling_params)
        own_seeds = None if seeds is None else list(seeds)
        said, name = SampledLogprobs(scaled_logprobs, topk_sample_logprobs), f"{self._id}-{next(self._numbers)}"

        def run() -> list[SampleResponse]:
            responses = self._frozen.sample(
                lists, num_samples, params, seeds=own_seeds, on_progress=on_progress, said=said
            )
            return [_identified(one, f"{name}-{i}") for i, one in enumerate(responses)]

        return self._calls.submit("sample_batch", run)

    def compute_logprobs(
        self, prompt: ModelInput | Sequence[int], prompt_logprobs_last_n: int | None = None
    ) -> Future[list[float | None]]:
        """The logprob of each token given those before it (nats); None for the first, and before the last n asked for.

        The call raises TokenRangeError for tokens outside the vocabulary, and ModelError where the model would have to read
        more than its context, as in training.
        """
        tokens = prompt_tokens(prompt)
        return self._calls.submit("compute_logprobs", lambda: self._frozen.logprobs(tokens, prompt_logprobs_last_n))

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


@dataclass(eq=False)
class _Sample:
    """A call of `sample`. name: begins the ids of its sequences."""

    frozen: Frozen
    tokens: list[int]
    num_samples: int
    params: SamplingParams
    said: SampledLogprobs
    asked: Asked
    on_progress: OnProgress | None
    name: str

    @cached_property
    def key(self) -> Hashable:
        """The parameters without the seed, as they were checked; None for what runs alone, such as what will be refused."""
        if self.on_progress is not None:
            return None
        facts = self.frozen.facts
        try:
            check_number(self.num_samples)
            check_prompt(facts, self.tokens, 0, 1, self.params)
            if self._is_asked:
                check_asked(facts, self.tokens, self.asked)
            return int(self.num_samples), replace(check_params(facts, self.params, self.said), seed=None)
        except Exception:  # whatever it is, the call itself will raise it
            return None

    @property
    def size(self) -> int:
        """Rows of the decoded batch."""
        return int(self.num_samples)

    def run(self, others: Sequence[Self]) -> list[SampleResponse]:
        """Its samples, and those of others with the same parameters."""
        every = [self, *others]
        responses = self.frozen.sample(
            [one.tokens for one in every],
            self.num_samples,
            self.params,
            seeds=[one.params.seed for one in every] if others else None,
            on_progress=self.on_progress,
            said=self.said,
            asked=[one.asked if one._is_asked else None for one in every],
        )
        return [_identified(response, one.name) for one, response in zip(every, responses, strict=True)]

    @property
    def _is_asked(self) -> bool:
        return self.asked != Asked()


def _identified(response: SampleResponse, name: str) -> SampleResponse:
    """The response with ids of its sequences that begin with a name."""
    sequences = [replace(one, sequence_id=f"{name}-{i}") for i, one in enumerate(response.sequences)]
    return replace(response, sequences=sequences)


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
