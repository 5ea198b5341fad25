"""Samplers: of base models and checkpoints, loaded when they are first sampled from, and of weights that are in memory alone."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

from ...tinker.sampling import SamplingClient, Weights, load_weights
from ..ledger import Ledger
from ..ledger.records import SamplerRecord
from ..refusals import Failed
from ..settings import ServeSettings
from .books import Books
from .owners import Owners

#: Samplers of a model's weights that stay in memory when they are in no checkpoint; older ones are written to the disk.
IN_MEMORY_PER_MODEL = 4
_log = logging.getLogger(__name__)


@dataclass
class Sampler:
    """A sampling session. client: None while its weights are not in memory.

    record.facts: `base_model`, `model_path` (None where there is none), and `model_id` of weights that were taken of a model
    """

    record: SamplerRecord
    client: SamplingClient | None = None
    used: float = field(default_factory=time.time)

    @property
    def path(self) -> str | None:
        """The checkpoint of its weights, where it has one."""
        return self.record.facts.get("model_path")

    @property
    def is_of_memory(self) -> bool:
        """Whether its weights were in no checkpoint when it was made."""
        return self.record.facts.get("model_id") is not None


class Samplers:
    """The samplers of a server. All methods but `known` belong to the engine's thread."""

    def __init__(self, settings: ServeSettings, owners: Owners, ledger: Ledger, books: Books) -> None:
        self._settings, self._owners = settings, owners
        self._ledger, self._books = ledger, books
        self.all: dict[str, Sampler] = {}

    def known(self, owner: str, sampler_id: str) -> Sampler | None:
        """An owner's sampler, where it is known here."""
        sampler = self.all.get(sampler_id)
        return sampler if sampler is not None and sampler.record.owner == owner else None

    def remember(self, record: SamplerRecord) -> Sampler:
        """Know a sampler that an earlier process made."""
        return self.all.setdefault(record.sampler_id, Sampler(record))

    def joined(self, sampler: Sampler) -> int:
        """Count one more client of a sampler; returns how many there were. Called on the event loop."""
        number = int(sampler.record.facts.get("joined", 0)) + 1
        sampler.record = replace(sampler.record, facts={**sampler.record.facts, "joined": number})
        return number

    def stored(self, owner: str, session_id: str, base_model: str | None, model_path: str | None) -> dict[str, Any]:
        """What is known of a sampler of a base model or of a checkpoint. Raises as loading it would, where that shows already."""
        place = self._owners.of(owner)
        if model_path is None:
            self._owners.check_model(str(base_model))
            return {"base_model": base_model, "model_path": None}
        stored = place.store.locate(model_path)
        trained = stored.run.base_model if stored.run is not None else base_model
        self._owners.check_model(str(trained))
        return {"base_model": base_model or trained, "model_path": model_path}

    def of_model(self, owner: str, model_id: str, client: SamplingClient, *, follows: bool) -> Sampler:
        """Note a sampler of a model's weights. follows: it, and all others of the model that follow, go over to these."""
        facts = {"base_model": client.get_base_model(), "model_path": None, "model_id": model_id, "follows": follows}
        session_id = model_id.partition(":")[0]
        add = self._ledger.add_sampler
        record = self._books.do(add, owner, client.sampler_id, session_id, facts, in_memory=True).result()
        sampler = self.all[client.sampler_id] = Sampler(record, client)
        if follows:
            self._follow(sampler, client.weights)
        mine = [one for one in self._of(model_id) if one.client is not None and not one.record.facts["follows"]]
        for old in sorted(mine, key=lambda one: one.used)[:-IN_MEMORY_PER_MODEL]:
            self._written(old)
        return sampler

    def use(self, sampler_id: str) -> SamplingClient:
        """The client of a sampler, whose weights are loaded where they are not in memory."""
        sampler = self.all.get(sampler_id)
        if sampler is None:
            raise Failed(f"sampler {sampler_id} ended with its session", "user")
        sampler.used = time.time()
        if sampler.client is None:
            if sampler.record.lost or (sampler.is_of_memory and sampler.path is None):
                raise Failed(
                    f"sampler {sampler_id} was of weights in memory, which ended with the server: take new ones of the model, or "
                    "sample from a checkpoint of save_weights_for_sampler",
                    "server",
                )
            self._make_room()
            session = self._owners.of(sampler.record.owner).session(sampler.record.session_id)
            weights = load_weights(session, sampler.path, sampler.record.facts["base_model"])
            sampler.client = SamplingClient(session, weights, sampler_id)
        return sampler.client

    def to_disk(self, model_id: str) -> None:
        """Write the weights that are of a model and in memory alone, and let go of them."""
        for sampler in self._of(model_id):
            self._written(sampler)

    def end(self, session_id: str) -> list[str]:
        """Forget the samplers of a session. Returns their ids."""
        gone = [sampler_id for sampler_id, one in self.all.items() if one.record.session_id == session_id]
        for sampler_id in gone:
            self.all.pop(sampler_id).client = None
        return gone

    # --- within -------------------------------------------------------------------------------------------------------

    def _of(self, model_id: str) -> list[Sampler]:
        return [one for one in self.all.values() if one.record.facts.get("model_id") == model_id]

    def _follow(self, newest: Sampler, weights: Weights) -> None:
        """Have the older samplers that follow the same model sample from its newest weights."""
        session = self._owners.of(newest.record.owner).session(newest.record.session_id)
        for one in self._of(newest.record.facts["model_id"]):
            if one is not newest and one.record.facts["follows"]:
                one.record = replace(
                    one.record, facts={**one.record.facts, "model_path": None}, in_memory=True, lost=False
                )
                one.client = SamplingClient(session, weights, one.record.sampler_id)
                set_sampler = self._ledger.set_sampler
                self._books.do(set_sampler, one.record.sampler_id, facts=one.record.facts, in_memory=True)

    def _written(self, sampler: Sampler) -> None:
        """Write a sampler's weights to the disk; those that cannot be stay in memory."""
        if sampler.client is None or not sampler.is_of_memory:
            return
        try:
            store = self._owners.of(sampler.record.owner).store
            facts = {**sampler.record.facts, "model_path": sampler.client.weights.path(store)}
            set_sampler = self._ledger.set_sampler
            self._books.do(set_sampler, sampler.record.sampler_id, facts=facts, in_memory=False).result()
        except Exception:
            _log.exception("the weights of sampler %s stay in memory", sampler.record.sampler_id)
            return
        sampler.record = replace(sampler.record, facts=facts, in_memory=False)
        sampler.client = None

    def _make_room(self) -> None:
        """Let go of the weights that can be loaded again and were not asked for longest."""
        here = [one for one in self.all.values() if one.client is not None and one.path is not None]
        for sampler in sorted(here, key=lambda one: one.used)[
            : max(len(here) + 1 - self._settings.models_in_memory, 0)
        ]:
            sampler.client = None
