"""What clients ask of a model, wherever it lives: in this process, or on workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ...datums.types import AdamParams, Datum, SamplingParams
from ...losses.loss.loss import LossLike
from ..engine.checks import Pooling
from ..responses import ForwardBackwardOutput, ModelInfo, OptimStepResponse, SampleResponse, TopLogprobs
from ..sampling.decode import Progress
from ..sampling.params import OWN, Sampled, SampledLogprobs
from ..sampling.prompt_scores import Asked

Normalization = Literal["none", "num_loss_tokens", "num_sequences"]
#: Called for tokens as they are sampled.
OnProgress = Callable[[Progress], None]


class Frozen(Protocol):
    """A model's weights at one moment. Methods do what those of `SamplingClient` and `ReferenceClient` say, at once."""

    def forward(
        self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling, top_k: int | None = None
    ) -> ForwardBackwardOutput:
        """Outputs at every position and the loss."""
        ...

    def top_logprobs(self, datums: Sequence[Datum], k: int) -> list[TopLogprobs]:
        """The k likeliest next tokens at every position whose weight is not 0."""
        ...

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
        """`num_samples` continuations of each prompt, decoded together.

        seeds: one per prompt, None for a new one. said: which logprobs of what is sampled. asked: what to say about each prompt.
        """
        ...

    def logprobs(self, tokens: list[int], last: int | None = None) -> list[float | None]:
        """The logprob of each token given those before it (nats); None for the first, and before the last `last`."""
        ...

    def fingerprint(self) -> str:
        """A short text, equal for equal weights; see `weights_fingerprint`."""
        ...

    def save_weights(self, root: Path, name: str, *, overwrite: bool) -> Path:
        """Write the weights alone; returns the checkpoint's folder."""
        ...

    @property
    def facts(self) -> Sampled:
        """What samples are checked against before they are drawn."""
        ...

    @property
    def rows_at_once(self) -> int:
        """Continuations that are decoded together."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the output head."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        ...


class Trainer(Protocol):
    """One model in training. Methods do what those of `TrainingClient` say, at once; a failed one changes nothing."""

    def forward(
        self,
        datums: Sequence[Datum],
        loss: LossLike,
        pooling: Pooling,
        top_k: int | None = None,
        teacher: Frozen | None = None,
    ) -> ForwardBackwardOutput:
        """Outputs at every position and the loss, without gradients."""
        ...

    def forward_backward(
        self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling, teacher: Frozen | None = None
    ) -> ForwardBackwardOutput:
        """Add a loss's gradient to the accumulated one."""
        ...

    def optim_step(self, params: AdamParams, normalization: Normalization | None) -> OptimStepResponse:
        """One AdamW step on the accumulated gradient, which is then cleared."""
        ...

    def discard_gradients(self) -> None:
        """Clear the accumulated gradient."""
        ...

    def save_state(self, root: Path, name: str, *, overwrite: bool) -> Path:
        """Write the whole state; returns the checkpoint's folder."""
        ...

    def load_state(self, path: Path, *, optimizer: bool) -> None:
        """Take a checkpoint's state, or its weights alone."""
        ...

    def load_adapter(self, folder: Path) -> None:
        """Take the weights of an adapter that peft wrote."""
        ...

    def save_weights(self, root: Path, name: str, *, overwrite: bool) -> Path:
        """Write the weights alone; returns the checkpoint's folder."""
        ...

    def export_adapter(self, folder: Path) -> None:
        """Write the adapter as peft loads it."""
        ...

    def export_model(self, folder: Path, *, dtype: torch.dtype | None) -> None:
        """Write the whole model as transformers loads it."""
        ...

    def frozen(self) -> Frozen:
        """The weights as they are now, whatever training does later."""
        ...

    def sampler(self) -> Frozen:
        """The same to sample from, where samples are drawn."""
        ...

    def info(self, model_id: str) -> ModelInfo:
        """The model, and how it runs."""
        ...

    def how_it_runs(self) -> str:
        """The same in one line."""
        ...

    @property
    def base_model(self) -> str:
        """The name that the model was loaded by."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        ...


class Models(Protocol):
    """Where a service's models live. Raises ModelError and CheckpointError as `ServiceClient` says."""

    def adapters(
        self,
        base_model: str,
        *,
        value_head: int,
        max_length: int | None = None,
        masked_lm_head: bool = False,
        **lora: Any,
    ) -> Trainer:
        """Low-rank adapters on frozen weights; `lora`: the arguments of `add_lora`.

        value_head: how many numbers a value head gives; 0 (or False) for none. max_length: the longest sequence in tokens.
        masked_lm_head: whether an encoder keeps its masked-LM head.
        """
        ...

    def all_weights(
        self, base_model: str, *, value_head: int, max_length: int | None = None, masked_lm_head: bool = False
    ) -> Trainer:
        """All weights of a model."""
        ...

    def like(self, path: str, *, base_model: str | None) -> Trainer:
        """A model in training like the one that a checkpoint was saved from, of fresh weights; see `saved_model`."""
        ...

    def base(self, base_model: str, *, masked_lm_head: bool = False) -> Frozen:
        """A model as it is loaded."""
        ...

    def saved(self, path: str, *, base_model: str | None = None, known: Sequence[str] = ()) -> Frozen:
        """A checkpoint's weights; see `saved_model` for `base_model` and `known`."""
        ...
