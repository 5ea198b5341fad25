"""Models in training: made, brought back from the disk, and put there while nobody asks for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ....datums import disk
from ....datums.errors import CheckpointError
from ....trainer.clients import training as lossbook
from ....trainer.training.protocol import Trainer
from ...tinker.models import begin_run, fresh_model, model_from_state
from ...tinker.training import TrainingClient
from ...tinker.types import GetInfoResponse
from ..ledger import Ledger
from ..ledger.records import ModelChanges, ModelRecord
from ..operations import Operation
from ..refusals import Failed, Refused
from ..settings import ServeSettings
from .books import Books
from .owners import Owners
from .samplers import Samplers

#: Seconds that a checkpoint is kept that was made because a session's client was gone: a week.
RESCUED_FOR = 7 * 24 * 3600
_log = logging.getLogger(__name__)


@dataclass
class Model:
    """A model in training. client: None while it is not in memory. used: when it was asked for last, seconds of a clock."""

    record: ModelRecord
    info: GetInfoResponse
    client: TrainingClient | None = None
    used: float = field(default_factory=time.time)
    steps: int = 0

    @property
    def is_checkpoint(self) -> bool:
        """Whether its owner has a checkpoint of its state, or nothing has changed since it was made."""
        return self.record.checkpoint_seq >= self.record.executed_seq

    @property
    def is_saved(self) -> bool:
        """Whether its state can come back as it is."""
        return self.record.durable_seq >= self.record.executed_seq and not self.record.dirty


class Models:
    """The models of a server. All methods but `known` belong to the engine's thread."""

    def __init__(
        self, settings: ServeSettings, owners: Owners, samplers: Samplers, ledger: Ledger, books: Books
    ) -> None:
        self._settings, self._owners, self._samplers = settings, owners, samplers
        self._ledger, self._books = ledger, books
        self.all: dict[str, Model] = {}
        #: Sessions that have ended, until what lived in them is let go of.
        self.ended: set[str] = set()

    def known(self, owner: str, model_id: str) -> Model | None:
        """An owner's model that has not ended."""
        model = self.all.get(model_id)
        if model is None or model.record.owner != owner or model.record.session_id in self.ended:
            return None
        return model

    def remember(self, record: ModelRecord) -> None:
        """Know a model that an earlier process had."""
        info = GetInfoResponse.model_validate(record.facts["info"])
        steps = int(record.facts.get("steps", 0))
        self.all[record.model_id] = Model(record, info, steps=steps)

    def new(self, operation: Operation, number: int, making: dict[str, Any], metadata: dict[str, str] | None) -> Model:
        """Make a model, its run and its row. making: see `_made`."""
        owner, session_id = self._owners.of(operation.owner), operation.scope
        model_id = f"{session_id}:train:{number}"
        if model_id in self.all:
            raise Refused(400, f"model {model_id} is there already: give the next model_seq_id")
        self.make_room(1)
        client, facts = self._made(operation.owner, session_id, making)
        facts = {**facts, "user_metadata": metadata}
        training = begin_run(owner.session(session_id), client, facts, number)
        row = {
            "info": training.get_info().model_dump(mode="json"),
            "making": {**making, "base_model": facts["base_model"]},
        }
        record = self._books.do(self._ledger.add_model, operation.owner, model_id, session_id, row).result()
        model = Model(record, training.get_info(), training)
        if (path := making.get("path")) is not None:
            self.change(model, checkpoint=path)
            self._books.do(self._ledger.set_model, model_id, checkpoint=path).result()
        self.all[model_id] = model
        return model

    def use(self, model_id: str) -> TrainingClient:
        """The client of a model, which is brought back where it is not in memory. Raises Failed for a model that is lost."""
        model = self.all.get(model_id)
        if model is None:
            raise Failed(f"model {model_id} ended with its session", "user")
        if (problem := model.record.problem) is not None:
            raise Failed(problem, "server")
        model.used = time.time()
        if model.client is None:
            self.make_room(1)
            model.client = self._back(model)
            self.change(model, state="memory")
            self._books.do(self._ledger.set_model, model_id, state="memory")
        return model.client

    def change(self, model: Model, **changes: Any) -> None:
        """Note what changed of a model; it is written with the answer of the request that changed it."""
        model.record = replace(model.record, **changes)

    def still(self, operation: Operation, changes: Mapping[str, Any]) -> dict[str, Any]:
        """What is still so of a request's changes: gradients that were saved meanwhile are not in memory alone any more."""
        model, still = self.all.get(operation.scope), dict(changes)
        if model is not None and "durable_seq" not in still and model.record.durable_seq >= operation.number:
            still.pop("dirty", None)
        return still

    def park(self, model: Model) -> None:
        """Save a model, unless it is saved as it is, and take it out of memory, with the samplers that share its weights."""
        if model.client is None:
            return
        record, changes = model.record, ModelChanges(state="parked", executed_seq=model.record.executed_seq)
        self._samplers.to_disk(record.model_id)
        if not model.is_saved:
            folder = self._owners.parked(record.owner, record.model_id)
            name = f"{record.executed_seq}-{time.time_ns():x}"

            def save(trainer: Trainer) -> None:
                trainer.save_state(folder, name, overwrite=True)

            model.client.client.in_turn("park", save).result()
            changes |= ModelChanges(durable_seq=record.executed_seq, durable_path=str(folder / name), dirty=False)
        self.change(model, **changes)  # before it is written: an answer that is written later must not undo it
        try:
            self._books.do(self._ledger.set_model, record.model_id, **changes).result()
        except Refused:
            model.record = record
            raise
        model.client = None
        if "durable_path" in changes:
            self._tidy(record.owner, record.model_id, keep=changes["durable_path"])

    def make_room(self, more: int) -> None:
        """Park the idlest models, so that `more` fit into memory."""
        here = sorted((model for model in self.all.values() if model.client is not None), key=lambda model: model.used)
        for model in here[: max(len(here) + more - self._settings.models_in_memory, 0)]:
            self.park_if_possible(model)

    def idle(self, now: float) -> list[Model]:
        """Models in memory that nobody has asked for in `idle_seconds`."""
        since = now - self._settings.idle_seconds
        return [model for model in self.all.values() if model.client is not None and model.used <= since]

    def park_if_possible(self, model: Model) -> None:
        """Park a model; one that cannot be saved stays in memory, with a line in the log."""
        try:
            self.park(model)
        except Exception:
            _log.exception("model %s cannot be saved and stays in memory", model.record.model_id)

    def end(self, session_id: str, *, rescue: bool = False) -> None:
        """Forget the models of a session, and their parked states.

        rescue: save those that are not saved as checkpoints of their owner, for a client that comes back after its session ended.
        """
        for model_id in [one for one, model in self.all.items() if model.record.session_id == session_id]:
            if rescue and self.all[model_id].client is not None and not self.all[model_id].is_checkpoint:
                self._rescue(self.all[model_id])
            model = self.all.pop(model_id)
            model.client = None
            self._tidy(model.record.owner, model_id, keep=None)

    # --- within -------------------------------------------------------------------------------------------------------

    def _rescue(self, model: Model) -> None:
        """Save a model as a checkpoint of its owner; one that cannot be saved goes, with a line in the log."""
        assert model.client is not None
        try:
            name = f"interrupted-{model.record.executed_seq}"
            model.client.save_state(name, ttl_seconds=RESCUED_FOR, overwrite=True).result()
        except Exception:
            _log.exception("model %s could not be saved when its session ended", model.record.model_id)

    def _back(self, model: Model) -> TrainingClient:
        """A model from where its state lies, or as it was made where nothing has changed it since."""
        record, owner = model.record, self._owners.of(model.record.owner)
        session = owner.session(record.session_id)
        try:
            if record.durable_path is None:
                client, _ = self._made(record.owner, record.session_id, record.facts["making"])
            else:
                path = record.durable_path
                folder = str(owner.store.locate(path).folder) if path.startswith("tinker://") else path
                base = owner.settings.model(str(model.info.model_name))
                client = session.service.create_training_client_from_state(folder, optimizer=True, base_model=base)
        except CheckpointError as error:
            _log.exception("model %s cannot come back", record.model_id)
            self.change(model, state="lost")
            self._books.do(self._ledger.set_model, record.model_id, state="lost")
            raise Failed(str(model.record.problem), "server") from error
        return TrainingClient(session, client, model.info)

    def _made(
        self, owner: str, session_id: str, making: dict[str, Any]
    ) -> tuple[lossbook.TrainingClient, dict[str, Any]]:
        """Lossbook's client of a new model, and what its run trains.

        making: `base_model` with `lora` (None: all weights), or `path` with `optimizer`, of a checkpoint
        """
        session = self._owners.of(owner).session(session_id)
        if (path := making.get("path")) is None:
            self._owners.check_model(making["base_model"])
            lora = making["lora"]
            parts = {name: value for name, value in (lora or {}).items() if name.startswith("train_")}
            facts = {"base_model": making["base_model"], **parts}
            return fresh_model(session, making["base_model"], lora), facts
        trained = session.store.locate(path, kind="weights")
        base = making.get("base_model") or (None if trained.run is None else trained.run.base_model)
        if base is not None:
            self._owners.check_model(base)
        return model_from_state(session, path, base, optimizer=making["optimizer"])

    def _tidy(self, owner: str, model_id: str, *, keep: str | None) -> None:
        """Remove the parked states of a model but one."""
        folder = self._owners.parked(owner, model_id)
        for place in list(folder.iterdir()) if folder.is_dir() else []:
            if str(place) != keep:
                disk.remove(place)
        if keep is None:
            disk.remove(folder)
