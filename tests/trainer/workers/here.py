"""A group of one rank in this process: all that travels is copied as if it did, and no process starts."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lossbook as lb
from lossbook.trainer.ranks import Ranks
from lossbook.trainer.training.local_models import LocalModels
from lossbook.trainer.workers.groups import Group, client_state
from lossbook.trainer.workers.models import WorkersModels
from lossbook.trainer.workers.rank import Answer, Rank

from ..ranks.processes import RankProcesses


class GroupHere(Group):
    """fail_at: the number of the call at which the rank dies."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__(1, 60.0)
        self.calls: list[str] = []
        self._fail_at = fail_at
        self._rank = Rank(0, 1, device="cpu")
        self.places = [self._rank.start("", 0)]
        self.call("seed", *client_state())

    def end(self, why: str) -> None:
        self.ended = self.ended or why
        self._rank.stop()

    def _answers(self, name: str, arguments: tuple[Any, ...]) -> Mapping[int, Answer]:
        self.calls += [name] if name != "seed" else []
        if len(self.calls) == self._fail_at:
            self._die(name, f"{self.who(0)} died during {name}")
        answer = self._rank.call(name, pickle.loads(pickle.dumps(arguments)))
        return {0: pickle.loads(pickle.dumps(answer))}


#: The rank of a process of `RankProcesses`.
_held: dict[str, Rank] = {}


def begin(ranks: Ranks) -> None:
    _held["rank"] = Rank(ranks.rank, ranks.size, device="cpu")
    _held["rank"].serve(ranks)


def answer(ranks: Ranks, name: str, arguments: tuple[Any, ...]) -> Answer:
    return _held["rank"].call(name, arguments)


class GroupOfProcesses(Group):
    """Two ranks in the processes that tests keep."""

    def __init__(self, processes: RankProcesses) -> None:
        super().__init__(2, 60.0)
        self._processes = processes
        processes.run(begin, size=2)
        self.call("seed", *client_state())

    def end(self, why: str) -> None:
        self.ended = self.ended or why

    def _answers(self, name: str, arguments: tuple[Any, ...]) -> Mapping[int, Answer]:
        return dict(enumerate(self._processes.run(answer, name, arguments, size=2)))


def service_here(
    folder: Path, make_group: Any = GroupHere, tensor_parallel: int = 1, **settings: Any
) -> lb.ServiceClient:
    """A service whose models live on such a group."""
    service = lb.ServiceClient(device="cpu", checkpoint_dir=folder, **settings)
    local = service.context.models
    assert isinstance(local, LocalModels)
    local = replace(local, tensor_parallel=tensor_parallel)
    service.context = replace(service.context, models=WorkersModels(local, make_group))
    return service
