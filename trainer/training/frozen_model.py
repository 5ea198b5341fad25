"""`FrozenModel`: a model's weights at one moment, in this process, for sampling and for forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...datums.errors import ModelError, TokenRangeError
from ...datums.types import Datum, SamplingParams
from ...losses.loss.loss import LossLike
from ..checkpoint.state import save_weights
from ..engine.checks import Pooling
from ..engine.engine import Engine
from ..engine.settings import EngineSettings
from ..head.logprobs import linear_logprobs
from ..model.fingerprint import weights_fingerprint
from ..model.snapshot import Snapshot
from ..packing.hidden import hidden_states
from ..responses import ForwardBackwardOutput, SampledSequence, SampleResponse, TopLogprobs
from ..sampling.generate import Generated, generate_batch
from ..sharding.weights import gathered
from .protocol import OnProgress


class FrozenModel:
    """A model's weights at one moment.

    Where `model.ranks` are several, all of them make the same calls; `sample` gets a share of the prompts on each, maybe none.
    """

    def __init__(self, snapshot: Snapshot, settings: EngineSettings) -> None:
        self.snapshot = snapshot
        self.model = snapshot.model
        self._settings = settings

    @cached_property
    def engine(self) -> Engine:
        """Made at the first forward pass: it tries how the model can run."""
        return Engine(self.model, self._settings)

    @property
    def vocab_size(self) -> int:
        """Rows of the output head, which may be more than the tokenizer has tokens."""
        return self.model.vocab_size

    @property
    def tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self.model.tokenizer

    def forward(self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling) -> ForwardBackwardOutput:
        """Outputs at every position and the loss."""
        engine = self.engine
        with self.snapshot.applied():
            return engine.forward(datums, loss, pooling)

    def top_logprobs(self, datums: Sequence[Datum], k: int) -> list[TopLogprobs]:
        """The k likeliest next tokens at every position whose weight is not 0."""
        engine = self.engine
        with self.snapshot.applied():
            return engine.top_logprobs(datums, k)

    def sample(
        self,
        prompts: Sequence[list[int]],
        num_samples: int,
        params: SamplingParams,
        *,
        seeds: Sequence[int] | None = None,
        on_progress: OnProgress | None = None,
        prompt_logprobs: bool = False,
    ) -> list[SampleResponse]:
        """`num_samples` continuations of each prompt, decoded together; prompt_logprobs: those of the prompts too."""
        with self._whole():
            samples = generate_batch(
                self.model, prompts, num_samples=num_samples, params=params, seeds=seeds, on_progress=on_progress
            )
            of_prompts = [self._logprobs(tokens) if prompt_logprobs else None for tokens in prompts]
        return [SampleResponse(_sequences(own), logprobs) for own, logprobs in zip(samples, of_prompts, strict=True)]

    def logprobs(self, tokens: list[int]) -> list[float | None]:
        """The logprob of each token given those before it (nats); None for the first.

        Raises TokenRangeError for tokens outside the vocabulary, and ModelError where the model would have to read more than
        its context.
        """
        with self._whole():
            return self._logprobs(tokens)

    def fingerprint(self) -> str:
        """A short text, equal for equal weights under any model name; see `weights_fingerprint`."""
        with self.snapshot.applied():
            return weights_fingerprint(self.model)

    def save_weights(self, root: Path, name: str, *, overwrite: bool) -> Path:
        """Write the weights alone, as `ModelTrainer.save_weights` does; returns the checkpoint's folder."""
        with self.snapshot.applied():
            return save_weights(root, name, self.model, overwrite=overwrite)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Inside, the model has this moment's weights, all of them whole on every rank."""
        with self.snapshot.applied(), gathered(self.model):
            yield

    def _logprobs(self, tokens: list[int]) -> list[float | None]:
        model = self.model
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
