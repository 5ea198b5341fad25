"""What belongs to one owner: a folder of runs and checkpoints that no other's names reach."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ....datums.errors import ConfigError, ModelError, did_you_mean
from ....trainer.clients.service import ServiceClient
from ...tinker.process import Session
from ...tinker.rest import RestClient, described
from ...tinker.settings import Settings, changed
from ...tinker.store import Store
from ..settings import ServeSettings

_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Owner:
    """An owner's store, and the settings that its clients are made with."""

    name: str
    store: Store
    settings: Settings
    service: ServiceClient

    def session(self, session_id: str) -> Session:
        """A session's clients have this in common."""
        return Session(session_id, self.store, self.settings, self.service)

    @cached_property
    def rest(self) -> RestClient:
        """What is asked about runs and checkpoints."""
        return RestClient(self.session(""))


class Owners:
    """The owners of a server, who share its models' weights and nothing else."""

    def __init__(self, settings: ServeSettings) -> None:
        self.root = settings.root.expanduser().absolute()
        self._settings = settings
        self._owners: dict[str, Owner] = {}

    @cached_property
    def service(self) -> ServiceClient:
        """Lossbook's service: one thread runs all calls of all models."""
        settings = changed(None, self._settings.tinker(self.root))
        return ServiceClient(checkpoint_dir=self.root / "parked", **settings.service)

    @cached_property
    def capabilities(self) -> list[dict[str, Any]]:
        """The models that the settings name, as `get_server_capabilities` lists them."""
        listed = described.capabilities(changed(None, self._settings.tinker(self.root))).supported_models
        return [one.model_dump(exclude_none=True) for one in listed if one.model_name in self._settings.models]

    def of(self, name: str) -> Owner:
        """An owner. Raises ConfigError for a name that is none."""
        if name not in self._owners:
            if not _OWNER.fullmatch(name):
                raise ConfigError(f"an owner's name is letters, digits, - and _, not {name!r}")
            root = self.root / "owners" / name
            settings = changed(None, self._settings.tinker(root))
            self._owners[name] = Owner(name, Store(root), settings, self.service)
        return self._owners[name]

    def check_model(self, base_model: str) -> None:
        """Raise ModelError for a base model that the settings do not name: clients name no files and download nothing."""
        if base_model not in self._settings.models:
            names = ", ".join(self._settings.models)
            raise ModelError(
                f"base_model {base_model!r} is not served here.{did_you_mean(base_model, self._settings.models)} There are: {names}"
            )

    def parked(self, owner: str, model_id: str) -> Path:
        """Where the states of a model lie that is not in memory."""
        return self.root / "parked" / owner / model_id.replace(":", ".")

    def hidden(self) -> list[str]:
        """Paths that no message to a client names."""
        return [str(self.root), *(str(path) for path in self._settings.models.values() if "/" in path)]
