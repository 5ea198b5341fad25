"""`FrozenModel`: a model's weights at one moment, in this process, for sampling and for forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ...datums.errors import ModelError
from ...datums.types import Datum, SamplingParams
from ...losses.loss.loss import LossLike
from ..checkpoint.state import save_weights
from ..engine.checks import Pooling
from ..engine.engine import Engine
from ..engine.run.teacher import Teacher
from ..engine.settings import EngineSettings
from ..model.fingerprint import weights_fingerprint
from ..model.snapshot import Snapshot
from ..responses import ForwardBackwardOutput, SampledSequence, SampleResponse, TopLogprobs
from ..sampling.generate import MAX_ROWS, Generated, generate_batch
from ..sampling.params import OWN, Sampled, SampledLogprobs
from ..sampling.prompt_scores import Asked, PromptScores, check_asked, score_prompt
from ..sharding.weights import gathered
from .protocol import Frozen, OnProgress


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
    def facts(self) -> Sampled:
        """What samples are checked against before they are drawn."""
        return self.model

    @property
    def rows_at_once(self) -> int:
        """Continuations that are decoded together."""
        return MAX_ROWS

    @property
    def vocab_size(self) -> int:
        """Rows of the output head, which may be more than the tokenizer has tokens."""
        return self.model.vocab_size

    @property
    def tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self.model.tokenizer

    def forward(
        self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling, top_k: int | None = None
    ) -> ForwardBackwardOutput:
        """Outputs at every position and the loss."""
        engine = self.engine
        with self.snapshot.applied():
            return engine.forward(datums, loss, pooling, top_k)

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
        seeds: Sequence[int | None] | None = None,
        on_progress: OnProgress | None = None,
        said: SampledLogprobs = OWN,
        asked: Sequence[Asked | None] | None = None,
    ) -> list[SampleResponse]:
        """`num_samples` continuations of each prompt, decoded together, and the scores asked for each prompt."""
        questions = [(i, one) for i, one in enumerate(asked or ()) if one is not None]
        scores = [PromptScores()] * len(prompts)
        with self._whole():
            for i, one in questions:
                check_asked(self.model, prompts[i], one)  # before anything is computed
            samples = generate_batch(
                self.model,
                prompts,
                num_samples=num_samples,
                params=params,
                seeds=seeds,
                on_progress=on_progress,
                said=said,
            )
            for i, one in questions:
                scores[i] = score_prompt(self.model, prompts[i], one)
        return [SampleResponse(_sequences(own), **vars(one)) for own, one in zip(samples, scores, strict=True)]

    def logprobs(self, tokens: list[int], last: int | None = None) -> list[float | None]:
        """The logprob of each token given those before it (nats); None for the first, and before the last `last`.

        Raises TokenRangeError for tokens outside the vocabulary, and ModelError where the model would have to read more than
        its context.
        """
        with self._whole():
            logprobs = score_prompt(self.model, tokens, Asked(logprobs=True, last=last)).prompt_logprobs
        assert logprobs is not None
        return logprobs

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


def as_teacher(frozen: Frozen | None) -> Teacher | None:
    """A model as an engine's teacher. Raises ModelError for one that is not in this process."""
    if frozen is None:
        return None
    if not isinstance(frozen, FrozenModel):
        raise ModelError(
            "the teacher's model lives on workers, and a whole distribution is read in one process: make it with a service "
            "without workers, or take a topk_ loss"
        )
    return Teacher(frozen.model, frozen.engine.settings.batching, frozen.snapshot.applied)


def _sequences(samples: Sequence[Generated]) -> list[SampledSequence]:
    return [SampledSequence(one.tokens, one.logprobs, one.stop_reason, one.top) for one in samples]
