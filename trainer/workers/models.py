"""`WorkersModels`: where the models of `ServiceClient(workers=N)` live. The client's side of them has their protocol."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...datums.types import AdamParams, Datum
from ...losses.loss.loss import LossLike
from ..engine.checks import Pooling
from ..engine.elsewhere import LossElsewhere
from ..responses import ForwardBackwardOutput, ModelInfo, OptimStepResponse
from ..training.local_models import LocalModels
from ..training.protocol import Frozen, Normalization
from .flat import FlatDatums
from .groups import Group
from .held import OnWorkers, Recipe, WorkersFrozen, refuse_whole
from .sent import merged
from .workers import Workers


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

    def adapters(self, base_model: str, *, value_head: int, **lora: Any) -> WorkersTrainer:
        """Low-rank adapters on frozen weights. Without a seed one is drawn here, so that all ranks begin alike."""
        self._local.check_adapters()
        lora["seed"] = secrets.randbits(31) if lora.get("seed") is None else lora["seed"]
        return self._trainer("adapters", base_model=base_model, value_head=value_head, **lora)

    def all_weights(
        self, base_model: str, *, value_head: int, max_length: int | None = None, masked_lm_head: bool = False
    ) -> WorkersTrainer:
        """All weights of a model."""
        options = {"value_head": value_head, "max_length": max_length, "masked_lm_head": masked_lm_head}
        return self._trainer("all_weights", base_model=base_model, **options)

    def like(self, path: str, *, base_model: str | None) -> WorkersTrainer:
        """A model in training like the one that a checkpoint was saved from, of fresh weights."""
        return self._trainer("like", path=str(Path(path).absolute()), base_model=base_model)

    def base(self, base_model: str, *, masked_lm_head: bool = False) -> WorkersFrozen:
        """A model as it is loaded."""
        return self._frozen("base", base_model=base_model, masked_lm_head=masked_lm_head)

    def saved(self, path: str, *, base_model: str | None = None, known: Sequence[str] = ()) -> WorkersFrozen:
        """A checkpoint's weights."""
        return self._frozen("saved", path=str(Path(path).absolute()), base_model=base_model, known=list(known))

    def _trainer(self, method: str, **arguments: Any) -> WorkersTrainer:
        return WorkersTrainer(self._workers, Recipe(self._local, method, arguments), self._apart)

    def _frozen(self, method: str, **arguments: Any) -> WorkersFrozen:
        return WorkersFrozen(self._workers, Recipe(self._local, method, arguments))


class WorkersTrainer(OnWorkers):
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

    def forward_backward(
        self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling, teacher: Frozen | None = None
    ) -> ForwardBackwardOutput:
        """Add a loss's gradient to the accumulated one.

        A loss that is computed here runs once, on the outputs of all ranks, which keep their graphs for its gradient.
        """
        refuse_whole(loss, teacher)
        sent, flat = self._sent(loss), FlatDatums.of(datums)
        if sent is not None:
            return merged(self._call("forward_backward", flat, sent, pooling))
        here = LossElsewhere(datums, loss)
        kept = self._call("forward_kept", flat, here.reads, pooling, True)
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

    def load_adapter(self, folder: Path) -> None:
        """Take the weights of an adapter that peft wrote."""
        self._plain("load_adapter", folder)

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
