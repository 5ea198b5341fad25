"""`WorkersModels`: where the models of `ServiceClient(workers=N)` live. The client's side of them has their protocol."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...datums.errors import ModelError, WorkerDiedError
from ...datums.types import AdamParams, Datum, SamplingParams
from ...losses.loss.loss import LossLike
from ..engine.checks import Pooling
from ..engine.elsewhere import LossElsewhere
from ..responses import ForwardBackwardOutput, ModelInfo, OptimStepResponse, SampleResponse, TopLogprobs
from ..training.local_models import LocalModels
from ..training.protocol import Normalization, OnProgress
from .flat import FlatDatums, FlatLists, top_of
from .groups import Group
from .sent import SentLoss, merged, own_copy, sent_loss
from .service import Facts
from .workers import Workers


@dataclass(frozen=True)
class Recipe:
    """How a model is made on a rank: a method of `LocalModels`, and its arguments."""

    models: LocalModels
    method: str
    arguments: dict[str, Any]


class WorkersModels:
    """Makes models on workers.

    local       how each rank makes its share of them; its device is the rank's own
    make_group  starts the ranks
    apart       gives a trainer's weights as they are now on workers of their own, to sample from; None: its ranks sample
    """

    def __init__(
        self,
        local: LocalModels,
        make_group: Callable[[], Group],
        apart: Callable[[WorkersTrainer], WorkersFrozen] | None = None,
    ) -> None:
        self._local = local
        self._workers = Workers(make_group)
        self._apart = apart

    def adapters(self, base_model: str, *, value_head: bool, **lora: Any) -> WorkersTrainer:
        """Low-rank adapters on frozen weights. Without a seed one is drawn here, so that all ranks begin alike."""
        self._local.check_adapters()
        lora["seed"] = secrets.randbits(31) if lora.get("seed") is None else lora["seed"]
        return self._trainer("adapters", base_model=base_model, value_head=value_head, **lora)

    def all_weights(self, base_model: str, *, value_head: bool) -> WorkersTrainer:
        """All weights of a model."""
        return self._trainer("all_weights", base_model=base_model, value_head=value_head)

    def like(self, path: str, *, base_model: str | None) -> WorkersTrainer:
        """A model in training like the one that a checkpoint was saved from, of fresh weights."""
        return self._trainer("like", path=str(Path(path).absolute()), base_model=base_model)

    def base(self, base_model: str) -> WorkersFrozen:
        """A model as it is loaded."""
        return self._frozen("base", base_model=base_model)

    def saved(self, path: str, *, base_model: str | None = None, known: Sequence[str] = ()) -> WorkersFrozen:
        """A checkpoint's weights."""
        return self._frozen("saved", path=str(Path(path).absolute()), base_model=base_model, known=list(known))

    def _trainer(self, method: str, **arguments: Any) -> WorkersTrainer:
        return WorkersTrainer(self._workers, Recipe(self._local, method, arguments), self._apart)

    def _frozen(self, method: str, **arguments: Any) -> WorkersFrozen:
        return WorkersFrozen(self._workers, Recipe(self._local, method, arguments))


class _OnWorkers:
    """A model that workers hold under a number.

    recipe: how it was made, and can be made again; None for weights that were only there.
    """

    _group: Group
    _number: int
    _facts: Facts

    def __init__(self, workers: Workers, recipe: Recipe | None) -> None:
        self._workers = workers
        self._recipe = recipe

    @property
    def tokenizer(self) -> Any:
        """The model's transformers tokenizer, as the first rank has it."""
        return self._facts.tokenizer

    @property
    def vocab_size(self) -> int:
        """Rows of the output head."""
        return self._facts.vocab_size

    def forward(self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling) -> ForwardBackwardOutput:
        """Outputs at every position and the loss, without gradients."""
        sent, flat = self._sent(loss), FlatDatums.of(datums)
        if sent is not None:
            return merged(self._call("forward", flat, sent, pooling))
        here = LossElsewhere(datums, loss)
        return here.valued(self._call("forward_kept", flat, here.names, None, pooling, False))

    def _sent(self, loss: LossLike) -> SentLoss | None:
        """A loss that every rank can make by its name; None for one that is computed here, from outputs of all ranks."""
        sent = sent_loss(loss)
        return sent if sent is not None and self._workers.know(self._group, sent) else None

    def _take(self, group: Group, number: int, facts: Facts) -> None:
        """Be the model of this number, which the ranks forget with this object."""
        self._group, self._number, self._facts = group, number, facts
        self._forget = self._workers.forget_with(self, group, number)

    def _made(self, recipe: Recipe) -> tuple[Group, int, Facts]:
        """The model, made once more."""
        group, number = self._workers.group(), self._workers.number()
        made = self._workers.call(group, "make", number, recipe.models, recipe.method, recipe.arguments)
        return group, number, made[0]

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        return self._workers.call(self._group, name, self._number, *arguments)

    def _plain(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._call(method, arguments, options)[0]


class WorkersTrainer(_OnWorkers):
    """A model in training on workers; see `Trainer`."""

    def __init__(
        self, workers: Workers, recipe: Recipe, apart: Callable[[WorkersTrainer], WorkersFrozen] | None = None
    ) -> None:
        super().__init__(workers, recipe)
        self.recipe, self._apart = recipe, apart
        self._take(*self._made(recipe))

    @property
    def base_model(self) -> str:
        """The name that the model was loaded by."""
        return self._facts.name

    def forward_backward(self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling) -> ForwardBackwardOutput:
        """Add a loss's gradient to the accumulated one.

        A loss that is computed here runs once, on the outputs of all ranks, which keep their graphs for its gradient.
        """
        sent, flat = self._sent(loss), FlatDatums.of(datums)
        if sent is not None:
            return merged(self._call("forward_backward", flat, sent, pooling))
        here = LossElsewhere(datums, loss)
        kept = self._call("forward_kept", flat, here.names, here.active, pooling, True)
        try:
            gradients = here.differentiate(kept)
        except BaseException:
            self._call("drop_kept")
            raise
        self._call("backward_kept", gradients)
        output = here.finish()
        self._plain("count", output.metrics, loss.name if loss.is_mean else None)
        return output

    def optim_step(self, params: AdamParams, normalization: Normalization | None) -> OptimStepResponse:
        """One AdamW step on the accumulated gradient, which is then cleared."""
        return self._plain("optim_step", params, normalization)

    def discard_gradients(self) -> None:
        """Clear the accumulated gradient."""
        self._plain("discard_gradients")

    def save_state(self, root: Path, name: str, *, overwrite: bool) -> Path:
        """Write the whole state; returns the checkpoint's folder."""
        return self._plain("save_state", root, name, overwrite=overwrite)

    def load_state(self, path: Path, *, optimizer: bool) -> None:
        """Take a checkpoint's state, or its weights alone. Where the workers died, new ones take it."""
        if not self._group.ended:
            self._plain("load_state", path, optimizer=optimizer)
            return
        recipe = self._recipe
        assert recipe is not None
        if recipe.method == "like":  # the checkpoint that it was first made from may be gone
            recipe = Recipe(recipe.models, "like", recipe.arguments | {"path": str(path)})
        group, number, facts = self._made(recipe)
        try:
            self._workers.call(group, "load_state", number, (path,), {"optimizer": optimizer})
        except BaseException:
            self._workers.forget(group, number)
            raise
        self._take(group, number, facts)

    def save_weights(self, root: Path, name: str, *, overwrite: bool) -> Path:
        """Write the weights alone; returns the checkpoint's folder."""
        return self._plain("save_weights", root, name, overwrite=overwrite)

    def export_adapter(self, folder: Path) -> None:
        """Write the adapter as peft loads it."""
        self._plain("export_adapter", folder)

    def export_model(self, folder: Path, *, dtype: torch.dtype | None) -> None:
        """Write the whole model as transformers loads it."""
        self._plain("export_model", folder, dtype=dtype)

    def frozen(self) -> WorkersFrozen:
        """The weights as they are now, whatever training does later."""
        number = self._workers.number()
        return WorkersFrozen(self._workers, None, (self._group, number, self._call("freeze", number)[0]))

    def sampler(self) -> WorkersFrozen:
        """The same to sample from: on sampling workers where there are any."""
        return self.frozen() if self._apart is None else self._apart(self)

    def trained(self) -> list[tuple[str, int]]:
        """Names and bytes of the trained weights."""
        return self._call("trained")[0]

    def weights(self, names: Sequence[str]) -> Any:
        """Some of them, whole, as `take` of `RankService` takes them."""
        return self._call("weights", names)[0]

    def info(self, model_id: str) -> ModelInfo:
        """The model, and how it runs."""
        return self._plain("info", model_id)

    def how_it_runs(self) -> str:
        """The same in one line."""
        return self._plain("how_it_runs")


class WorkersFrozen(_OnWorkers):
    """A model's weights at one moment, on workers; see `Frozen`.

    Weights of a file or of a base model are loaded again by new workers, after a death. Those of a model in training are gone.
    """

    def __init__(self, workers: Workers, recipe: Recipe | None, held: tuple[Group, int, Facts] | None = None) -> None:
        super().__init__(workers, recipe)
        if held is None:
            assert recipe is not None
            held = self._made(recipe)
        self._take(*held)

    def top_logprobs(self, datums: Sequence[Datum], k: int) -> list[TopLogprobs]:
        """The k likeliest next tokens at every position whose weight is not 0."""
        shares = [own_copy(share).dicts() for share in self._call("top_logprobs", FlatDatums.of(datums), k)]
        of_datums = ([top_of(one) for one in of_datum] for of_datum in zip(*shares, strict=True))
        return [max(tops, key=lambda top: len(top.tokens)) for tops in of_datums]  # other ranks' have no rows

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
        """`num_samples` continuations of each prompt; each rank decodes its share of the prompts."""
        if on_progress is not None:
            raise ModelError("on_progress is called in the process that samples: with workers leave it out")
        own_seeds = None if seeds is None else list(seeds)
        shares = self._call("sample", FlatLists.of(prompts), num_samples, params, own_seeds, prompt_logprobs)
        responses: list[Any] = [None] * len(prompts)
        for rank, share in enumerate(shares):
            responses[rank :: len(shares)] = share.responses()
        return responses

    def logprobs(self, tokens: list[int]) -> list[float | None]:
        """The logprob of each token given those before it (nats); None for the first."""
        return self._plain("logprobs", tokens)

    def fingerprint(self) -> str:
        """A short text, equal for equal weights; see `weights_fingerprint`."""
        return self._plain("fingerprint")

    def save_weights(self, root: Path, name: str, *, overwrite: bool) -> Path:
        """Write the weights alone; returns the checkpoint's folder."""
        return self._plain("save_weights", root, name, overwrite=overwrite)

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        if self._group.ended and self._recipe is None:
            raise WorkerDiedError(
                "these were a model's weights at one moment, and the workers that held them died: "
                f"ask the training client for them again once it has loaded its checkpoint. {self._group.ended}"
            )
        if self._group.ended and self._recipe is not None:
            self._take(*self._made(self._recipe))
        return super()._call(name, *arguments)
