"""`ModelTrainer`: a model in training in this process, alone or as one of several ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...datums.errors import ModelError, OptimizerError
from ...datums.types import AdamParams, Datum
from ...losses.loss.loss import LossLike
from ..checkpoint.state import load_training, save_training, save_weights
from ..engine.checks import Pooling
from ..engine.engine import Engine
from ..engine.settings import EngineSettings
from ..model.export import export_model, export_value_head
from ..model.lora.lora import export_adapter, load_adapter_into
from ..model.model import LoadedModel
from ..model.snapshot import Snapshot
from ..optim.adamw import AdamW
from ..responses import ForwardBackwardOutput, ModelInfo, OptimStepResponse
from ..sampling.summary import how_it_runs
from ..sharding.weights import gathered
from .frozen_model import FrozenModel, as_teacher
from .info import model_info
from .protocol import Frozen, Normalization


@dataclass
class Accumulated:
    """Counts of the data whose gradients were added since the last step. means: losses that were already divided by a
    count.
    """

    calls: int = 0
    tokens: int = 0
    sequences: int = 0
    means: list[str] = field(default_factory=list)


class ModelTrainer:
    """A model in training: its engine, its optimizer, and what has accumulated since the last step.

    Where `model.ranks` are several, each has one of these, and all of them make the same calls.
    """

    def __init__(self, model: LoadedModel, settings: EngineSettings) -> None:
        self.model = model
        self.engine = Engine(model, settings)
        self.optimizer = AdamW(model.trainable(), model.ranks)
        self.accumulated = Accumulated()
        self._settings = settings

    @property
    def base_model(self) -> str:
        """The name that the model was loaded by."""
        return self.model.name

    @property
    def tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self.model.tokenizer

    def forward(
        self,
        datums: Sequence[Datum],
        loss: LossLike,
        pooling: Pooling,
        top_k: int | None = None,
        teacher: Frozen | None = None,
    ) -> ForwardBackwardOutput:
        """Outputs at every position and the loss, without gradients."""
        return self.engine.forward(datums, loss, pooling, top_k, as_teacher(teacher))

    def forward_backward(
        self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling, teacher: Frozen | None = None
    ) -> ForwardBackwardOutput:
        """Add a loss's gradient to the accumulated one."""
        output = self.engine.forward_backward(datums, loss, pooling, as_teacher(teacher))
        self.count(output.metrics, loss.name if loss.is_mean else None)
        return output

    def count(self, metrics: Mapping[str, float], mean: str | None) -> None:
        """Note that a call's gradient was added. mean: its loss's name where that was divided by a count."""
        self.accumulated.calls += 1
        self.accumulated.tokens += int(metrics["response_tokens"])
        self.accumulated.sequences += int(metrics["response_sequences"])
        self.accumulated.means += [] if mean is None else [mean]

    def optim_step(self, params: AdamParams, normalization: Normalization | None) -> OptimStepResponse:
        """One AdamW step on the accumulated gradient, which is then cleared."""
        divisor = self._divisor(normalization)
        self.model.before_writing()
        metrics = self.optimizer.step(params, divisor=divisor)
        metrics["normalizer"] = divisor
        metrics["accumulated_calls"] = float(self.accumulated.calls)
        self.accumulated = Accumulated()
        return OptimStepResponse(metrics, int(metrics.pop("step")), metrics.pop("learning_rate"))

    def discard_gradients(self) -> None:
        """Clear the accumulated gradient."""
        for parameter in self.model.trainable().values():
            parameter.grad = None
        self.accumulated = Accumulated()

    def save_state(self, root: Path, name: str, *, overwrite: bool) -> Path:
        """Write the whole state; returns the checkpoint's folder."""
        return save_training(root, name, self.model, self.optimizer, asdict(self.accumulated), overwrite=overwrite)

    def load_state(self, path: Path, *, optimizer: bool) -> None:
        """Take a checkpoint's state, or its weights alone."""
        accumulated = load_training(path, self.model, self.optimizer if optimizer else None)
        self.accumulated = Accumulated(**accumulated)
        if not optimizer:  # moments of other weights would lead the first steps astray
            self.optimizer = AdamW(self.model.trainable(), self.model.ranks)

    def load_adapter(self, folder: Path) -> None:
        """Take the weights of an adapter that peft wrote; a fresh optimizer goes on from them."""
        if self.model.lora is None:
            raise ModelError(f"all weights of {self.model.name} are trained, so no adapter fits it: choose a LoRA rank")
        with self.model.ranks.agree():
            self.model.before_writing()
            load_adapter_into(self.model, folder)
        self.discard_gradients()
        self.optimizer = AdamW(self.model.trainable(), self.model.ranks)

    def save_weights(self, root: Path, name: str, *, overwrite: bool) -> Path:
        """Write the weights alone; returns the checkpoint's folder."""
        return save_weights(root, name, self.model, overwrite=overwrite)

    def export_adapter(self, folder: Path) -> None:
        """Write the adapter, and a value head, as peft loads them."""
        export_adapter(self.model, folder)
        export_value_head(self.model, folder)

    def export_model(self, folder: Path, *, dtype: torch.dtype | None) -> None:
        """Write the whole model as transformers loads it."""
        export_model(self.model, folder, dtype=dtype)

    def frozen(self) -> FrozenModel:
        """The weights as they are now. They are copied when training moves on."""
        return FrozenModel(Snapshot.sharing(self.model), self._settings)

    def sampler(self) -> FrozenModel:
        """The same to sample from."""
        return self.frozen()

    def info(self, model_id: str) -> ModelInfo:
        """The model, and how it runs."""
        return model_info(self.model, self.engine.settings, model_id)

    def how_it_runs(self) -> str:
        """The same in one line; tries what was not tried yet."""
        with gathered(self.model):
            return how_it_runs(self.model, self.engine.settings.batching or "padded")

    def _divisor(self, normalization: Normalization | None) -> float:
        if normalization in (None, "none"):
            return 1.0
        if normalization not in ("num_loss_tokens", "num_sequences"):
            raise OptimizerError(
                f"grad_accumulation_normalization is 'none', 'num_loss_tokens' or 'num_sequences', not {normalization!r}"
            )
        if self.accumulated.means:
            raise OptimizerError(
                f"this would divide twice: {self.accumulated.means[0]} was reduced to a mean, and "
                f"grad_accumulation_normalization={normalization!r} divides again. Give the loss reduction='sum', or leave "
                "the normalization out"
            )
        count = self.accumulated.tokens if normalization == "num_loss_tokens" else self.accumulated.sequences
        return float(max(count, 1))
