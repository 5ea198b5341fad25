"""`LocalModels`: models that are loaded into this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...datums.errors import ModelError
from ..checkpoint.contents import contents_of
from ..checkpoint.folder import read_checkpoint
from ..checkpoint.models import load_snapshot, saved_model
from ..choices import BaseWeights
from ..engine.determinism import prepare_determinism
from ..engine.settings import EngineSettings
from ..model.fused.fuse import fuse_layers
from ..model.load import is_at_hand, load_model, load_outline
from ..model.lora.lora import add_lora
from ..model.model import LoadedModel
from ..model.snapshot import Snapshot
from ..model.value_head import add_value_head
from ..model.verdict import Verdict
from ..model.weights.four_bit import check_base_weights
from ..ranks import ALONE, Ranks, check_width
from .frozen_model import FrozenModel
from .model_trainer import ModelTrainer
from .shared_bases import SharedBases


@dataclass(frozen=True)
class LocalModels:
    """Loads models into this process.

    Adapters and frozen models of one base share its frozen weights, so that each takes memory for its adapters alone. A model
    of which all weights are trained has its own, and so has one that lies over several ranks.

    settings       how they run
    device, dtype  None for defaults
    base_weights   "full" or "4bit"
    ranks          the processes that hold each model together; all of them make the same calls
    tensor_parallel  how many of them share each matrix of a layer
    bases          the base models that are shared

    Raises ModelError for other base weights, for settings that several ranks do not have, and where determinism on a GPU comes too late.
    """

    settings: EngineSettings
    device: str | None = None
    dtype: torch.dtype | None = None
    base_weights: BaseWeights = "full"
    ranks: Ranks = ALONE
    tensor_parallel: int = 1
    bases: SharedBases = field(default_factory=SharedBases, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_base_weights(self.base_weights)
        if not isinstance(self.dtype, torch.dtype | None):
            raise ModelError(f"dtype is a torch.dtype, such as torch.bfloat16, not {self.dtype!r}")
        if self.ranks.size > 1:
            _check_for_ranks(self.settings)
        check_width(self.tensor_parallel, self.ranks.size if self.ranks.size > 1 else 0)
        if self.tensor_parallel > 1 and self.settings.dropout:
            raise ModelError("dropout was not tried with tensor_parallel: leave one of the two out")
        if self.settings.deterministic:
            prepare_determinism(self.device)

    def adapters(
        self,
        base_model: str,
        *,
        value_head: int,
        max_length: int | None = None,
        masked_lm_head: bool = False,
        **lora: Any,
    ) -> ModelTrainer:
        """Low-rank adapters on frozen weights; `lora`: the arguments of `add_lora`."""
        self.check_adapters()
        return self._trainer(add_lora(self._frozen(base_model, masked_lm_head), **lora), value_head, max_length)

    def all_weights(
        self, base_model: str, *, value_head: int, max_length: int | None = None, masked_lm_head: bool = False
    ) -> ModelTrainer:
        """All weights of a model."""
        model = self._load(base_model, masked_lm_head=masked_lm_head)
        return self._trainer(model.train_all_weights(), value_head, max_length)

    def like(self, path: str, *, base_model: str | None) -> ModelTrainer:
        """A model in training like the one that a checkpoint was saved from, of fresh weights; see `saved_model`."""
        self._check_saved(path)
        model = saved_model(
            read_checkpoint(Path(path), names=[], ranks=self.ranks),
            device=self.device,
            dtype=self.dtype,
            base_model=base_model,
            base_weights=self.base_weights,
            ranks=self.ranks,
            load_base=self.bases.load,
        )
        return ModelTrainer(self._sharded(self._fused(model)), self.settings)

    def base(self, base_model: str, *, masked_lm_head: bool = False) -> FrozenModel:
        """A model as it is loaded."""
        return FrozenModel(Snapshot(self._sharded(self._frozen(base_model, masked_lm_head)), {}), self.settings)

    def saved(self, path: str, *, base_model: str | None = None, known: Sequence[str] = ()) -> FrozenModel:
        """A checkpoint's weights; see `saved_model` for `base_model` and `known`."""
        self._check_saved(path)
        snapshot = load_snapshot(
            path,
            device=self.device,
            dtype=self.dtype,
            base_model=base_model,
            known=known,
            base_weights=self.base_weights,
            ranks=self.ranks,
            prepare=lambda model: self._sharded(self._fused(model)),
            load_base=self.bases.load,
        )
        return FrozenModel(snapshot, self.settings)

    def _trainer(self, model: LoadedModel, value_head: int, max_length: int | None) -> ModelTrainer:
        if value_head:
            add_value_head(model, int(value_head))
        if max_length is not None:
            model.limit_length(max_length)
        return ModelTrainer(self._sharded(model), self.settings)

    def _sharded(self, model: LoadedModel) -> LoadedModel:
        """The same model, over the ranks where there are several."""
        if self.ranks.size == 1:
            return model
        from ..sharding.shard import shard_model  # imports torch's distributed tensors, which takes long

        return shard_model(model, self.ranks, tensor_parallel=self.tensor_parallel)

    def check_adapters(self) -> None:
        """Raise ModelError where adapters cannot be trained."""
        if self.tensor_parallel > 1:
            raise ModelError(
                f"tensor_parallel={self.tensor_parallel} is for training all weights: adapters are not split. Leave it at 1"
            )

    def _check_split(self, base_model: str) -> None:
        """Raise ModelError on every rank where the model's matrices cannot be shared, before its weights are read."""
        if self.ranks.size > 1 and self.tensor_parallel > 1:
            from ..sharding.tensor_parallel import check_tensor_parallel  # as above

            check_tensor_parallel(load_outline(base_model, self.ranks), self.tensor_parallel)

    def _check_saved(self, path: str) -> None:
        """The same for the model that a checkpoint was saved from."""
        if self.ranks.size > 1 and self.tensor_parallel > 1:
            contents = contents_of(read_checkpoint(Path(path), names=[], ranks=self.ranks))
            if contents.lora is not None:
                self.check_adapters()
            if is_at_hand(contents.base_model):  # others are refused below, or fetched
                self._check_split(contents.base_model)

    def _load(
        self, base_model: str, load: Callable[..., LoadedModel] = load_model, *, masked_lm_head: bool = False
    ) -> LoadedModel:
        self._check_split(base_model)
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "base_weights": self.base_weights}
        options["masked_lm_head"] = masked_lm_head
        return self._fused(load(base_model, **options, ranks=self.ranks))

    def _frozen(self, base_model: str, masked_lm_head: bool = False) -> LoadedModel:
        """The model on weights that others may share."""
        return self._load(base_model, self.bases.load, masked_lm_head=masked_lm_head)

    def _fused(self, model: LoadedModel) -> LoadedModel:
        """The same model with fused layers, as the settings say; layers that are compiled are fused by the compiler."""
        settings = self.settings
        if self.ranks.size > 1:
            if torch.cuda.is_available():
                model.verdicts["fused"] = Verdict(False, "its checks read whole weights, and these lie over ranks")
            return model
        choice = "none" if settings.compile_layers and settings.fused_layers == "auto" else settings.fused_layers
        return fuse_layers(model, choice)


def _check_for_ranks(settings: EngineSettings) -> None:
    """Raise ModelError for what does not run, or was never tried, on layers that several ranks gather."""
    if settings.compile_layers:
        raise ModelError("compile_layers is for one process: compiled layers were not tried over ranks. Leave it out")
    if settings.fused_layers == "liger":
        raise ModelError("fused_layers='liger' is for one process: its checks read whole weights. Leave it at 'auto'")
