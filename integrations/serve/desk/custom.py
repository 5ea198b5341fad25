"""Custom losses that came as graphs, by their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....datums.errors import ModelError
from ..graphs import GraphLoss, dry_run, read_graph
from ..ledger import Ledger
from ..operations import Operation
from ..settings import Limits
from .books import Books


class CustomLosses:
    """The custom losses of a server's sessions. Belongs to the engine's thread."""

    def __init__(self, limits: Limits, ledger: Ledger, books: Books) -> None:
        self._limits, self._ledger, self._books = limits, ledger, books
        self._losses: dict[str, GraphLoss] = {}

    def make(self, operation: Operation) -> str:
        """Read, try and keep a loss; returns its id. Its maker hears now of what cannot run, and not in training."""
        asked, loss_id = operation.payload, f"{operation.scope}:loss:{operation.number}"
        facts = {"name": asked.name, "inputs": [one.model_dump() for one in asked.inputs], "graph": asked.graph}
        loss = self._read(facts, operation.scope)
        dry_run(loss.graph)
        self._books.do(self._ledger.add_loss, operation.owner, loss_id, operation.scope, facts).result()
        self._losses[loss_id] = loss
        return loss_id

    def get(self, owner: str, loss_id: str, session_id: str) -> GraphLoss:
        """A loss of a session. Raises ModelError for one of another session, Refused(404) where there is none."""
        if loss_id.partition(":")[0] != session_id:
            raise ModelError(f"there is no custom loss {loss_id!r} in this session: make it with create_custom_loss")
        if loss_id not in self._losses:
            record = self._books.do(self._ledger.loss, owner, loss_id).result()
            self._losses[loss_id] = self._read(record.facts, record.session_id)
        return self._losses[loss_id]

    def end(self, session_id: str) -> None:
        """Forget the losses of a session."""
        for loss_id in [one for one in self._losses if one.partition(":")[0] == session_id]:
            del self._losses[loss_id]

    def _read(self, facts: Mapping[str, Any], session_id: str) -> GraphLoss:
        graph = read_graph(facts["graph"], facts["inputs"], self._limits)
        return GraphLoss(facts["name"], graph.inputs, session_id, graph, self._limits)
