"""`RankService`: the models that one rank holds, and the table of what a client may call."""

from __future__ import annotations

import importlib
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...datums.errors import WorkerError
from ...datums.types import SamplingParams
from ..engine.checks import Pooling
from ..engine.elsewhere import KeptOutputs, Reads
from ..ranks import ALONE, Ranks
from ..sampling.params import SampledLogprobs, check_params, check_prompt
from ..sampling.prompt_scores import Asked, check_asked
from ..shards import whole
from ..training.frozen_model import FrozenModel
from ..training.local_models import LocalModels
from ..training.model_trainer import ModelTrainer
from ..training.shared_bases import SharedBases
from .flat import FlatDatums, FlatLists, FlatSamples, FlatTensors, flat_top
from .sent import SentLoss, SentOutput, SentWeight

#: What may be called by name.
CALLS = (
    *("seed", "make", "freeze", "drop", "imports", "forward", "forward_backward", "top_logprobs", "sample"),
    *("trained", "weights", "take"),
    *("forward_kept", "backward_kept", "drop_kept"),
)
#: Methods of models whose arguments and results travel as they are.
PLAIN = (
    *(
        "optim_step",
        "discard_gradients",
        "save_state",
        "load_state",
        "load_adapter",
        "save_weights",
        "export_adapter",
        "export_model",
    ),
    *("count", "info", "how_it_runs", "logprobs", "fingerprint"),
)


@dataclass(frozen=True)
class Facts:
    """What a client asks of a model all the time, and what does not change."""

    name: str
    tokenizer: Any
    vocab_size: int
    max_length: int | None
    end_tokens: frozenset[int]


class RankService:
    """One rank's models by number. Every rank of a group gets the same calls in the same order."""

    def __init__(self, ranks: Ranks, device: str) -> None:
        self._ranks = ranks
        self._device = device
        self._held: dict[int, ModelTrainer | FrozenModel] = {}
        self._bases = SharedBases()

    def call(self, name: str, *arguments: Any) -> Any:
        """Raises WorkerError for a name that is not in the table."""
        if name in PLAIN:
            return self._plain(name, *arguments)
        if name not in CALLS:
            raise WorkerError(f"workers do not know the call {name!r}")
        return getattr(self, name)(*arguments)

    def seed(self, seed: int, state: bytes) -> None:
        """Seed all generators; torch's of the CPU goes on from `state`. Dropout then draws what it would in the client."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))

    def make(
        self, number: int, models: LocalModels, method: str, arguments: dict[str, Any], is_whole: bool = False
    ) -> Facts | None:
        """Make a model by a method of `LocalModels`. is_whole: on each rank a whole one, to sample from."""
        ranks = ALONE if is_whole else self._ranks
        own = replace(models, device=self._device, ranks=ranks, bases=self._bases)
        if models.settings.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        self._held[number] = getattr(own, method)(**arguments)
        return self._facts(number)

    def freeze(self, trainer: int, number: int) -> Facts | None:
        """A frozen model of a trainer's weights as they are now."""
        self._held[number] = self._trainer(trainer).frozen()
        return self._facts(number)

    def drop(self, numbers: Sequence[int]) -> None:
        """Forget models."""
        for number in numbers:
            self._held.pop(number, None)

    def forward(
        self, number: int, datums: FlatDatums, loss: SentLoss, pooling: Pooling, top_k: int | None
    ) -> SentOutput:
        """Of a trainer or a frozen model."""
        return SentOutput.of(self._held[number].forward(datums.datums(), loss.received(), pooling, top_k))

    def forward_backward(self, number: int, datums: FlatDatums, loss: SentLoss, pooling: Pooling) -> SentOutput:
        """Of a trainer."""
        return SentOutput.of(self._trainer(number).forward_backward(datums.datums(), loss.received(), pooling))

    def forward_kept(
        self,
        number: int,
        datums: FlatDatums,
        reads: Reads,
        pooling: Pooling,
        keep: bool,
    ) -> KeptOutputs:
        """This rank's outputs for a loss that the client computes; keep: a trainer keeps their graphs."""
        held = self._held[number]
        with held.snapshot.applied() if isinstance(held, FrozenModel) else nullcontext():
            return held.engine.forward_kept(datums.datums(), reads, pooling, keep=keep)

    def backward_kept(self, number: int, gradients: dict[str, np.ndarray]) -> None:
        """Add the gradient of a trainer's kept outputs."""
        self._trainer(number).engine.backward_kept(gradients)

    def drop_kept(self, number: int) -> None:
        """Forget the graphs that a trainer keeps."""
        self._trainer(number).engine.drop_kept()

    def top_logprobs(self, number: int, datums: FlatDatums, k: int) -> FlatTensors:
        """Of a frozen model: those of this rank's datums."""
        return flat_top(self._frozen(number).top_logprobs(datums.datums(), k))

    def sample(
        self,
        number: int,
        prompts: FlatLists,
        num_samples: int,
        params: SamplingParams,
        seeds: list[int | None] | None,
        said: SampledLogprobs,
        asked: list[Asked | None] | None,
    ) -> FlatSamples:
        """Of a frozen model: the continuations of this rank's prompts, which are every N-th."""
        frozen, lists = self._frozen(number), prompts.lists()
        check_params(frozen.model, params, said)
        for i, prompt in enumerate(lists):
            check_prompt(frozen.model, prompt, i, len(lists), params)
            if asked is not None and (one := asked[i]) is not None:
                check_asked(frozen.model, prompt, one)
        own = range(self._ranks.rank, len(lists), self._ranks.size)
        with self._ranks.agree():
            responses = frozen.sample(
                [lists[i] for i in own],
                num_samples,
                params,
                seeds=None if seeds is None else [seeds[i] for i in own],
                said=said,
                asked=None if asked is None else [asked[i] for i in own],
            )
        return FlatSamples.of(responses)

    def trained(self, number: int) -> list[tuple[str, int]]:
        """Names and bytes of a trainer's trained weights."""
        parameters = self._trainer(number).model.trainable()
        return [(name, p.numel() * p.element_size()) for name, p in parameters.items()]

    def weights(self, number: int, names: Sequence[str]) -> dict[str, SentWeight] | None:
        """Some of a trainer's trained weights, whole, from the first rank; all ranks gather them."""
        parameters, sent = self._trainer(number).model.trainable(), {}
        for name in names:
            weight = whole(parameters[name])
            if self._ranks.is_first:
                sent[name] = SentWeight.of(weight)
        return sent or None

    def take(self, number: int, weights: Mapping[str, SentWeight]) -> None:
        """Put weights into a whole model's trained parameters. Its frozen models keep theirs."""
        model = self._trainer(number).model
        parameters = model.trainable()
        model.before_writing()
        with torch.no_grad():
            for name, weight in weights.items():
                parameters[name].copy_(weight.tensor())

    def imports(self, module: str) -> bool:
        """Whether this rank can import a module, which registers the losses in it."""
        try:
            importlib.import_module(module)
        except ImportError:
            return False
        return True

    def _plain(self, method: str, number: int, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        """A method of a model that takes and gives plain values. The first rank's value is the value."""
        value = getattr(self._held[number], method)(*arguments, **options)
        return value if self._ranks.is_first else None

    def _facts(self, number: int) -> Facts | None:
        model = self._held[number].model
        if not self._ranks.is_first:
            return None
        return Facts(model.name, model.tokenizer, model.vocab_size, model.max_length, model.end_tokens)

    def _trainer(self, number: int) -> ModelTrainer:
        held = self._held[number]
        assert isinstance(held, ModelTrainer)
        return held

    def _frozen(self, number: int) -> FrozenModel:
        held = self._held[number]
        assert isinstance(held, FrozenModel)
        return held
