"""A desk without models: it takes everything, and its answers are what a test puts in."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from lossbook.integrations.serve.desk import Desk
from lossbook.integrations.serve.operations import Answer, Operation
from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.settings import ServeSettings


class FakeDesk(Desk):
    """`operations` that were submitted; `answers` by request id; `waiting`: polls that are held now."""

    def __init__(self, settings: ServeSettings | None = None) -> None:
        self.settings = settings or ServeSettings()  # and no threads, no database: `super().__init__` would make them
        self.observers = []
        self.operations: dict[str, Operation] = {}
        self.answers: dict[str, Answer] = {}
        self.used: list[tuple[str, str, str, int]] = []
        self.finished: list[tuple[str, str, Any, Any]] = []
        self.sessions: dict[tuple[str, str | None], str] = {}
        self.raises: Callable[[], BaseException] | None = None
        self.waiting, self.holds = 0, list[float]()
        self._numbers = itertools.count(1)

    async def start(self) -> None:
        pass

    async def close(self, grace: float | None = None) -> None:
        pass

    @property
    def trouble(self) -> str | None:
        return None

    async def create_session(self, owner: str, *, idempotency_key: str | None = None, **facts: Any) -> str:
        key = (owner, idempotency_key or str(next(self._numbers)))
        return self.sessions.setdefault(key, f"session-{next(self._numbers)}")

    async def heartbeat(self, owner: str, session_id: str) -> None:
        if session_id not in self.sessions.values():
            raise Refused(404, f"there is no session {session_id!r}")

    async def finish(self, owner: str, session_id: str, reason: Any = "success", detail: str | None = None) -> None:
        self.finished.append((owner, session_id, reason, detail))

    async def submit(self, operation: Operation) -> str:
        self._maybe_raise()
        request_id = f"request-{next(self._numbers)}"
        self.operations[request_id] = operation
        return request_id

    async def used_up(self, owner: str, scope: str, counter: str, number: int) -> None:
        self.used.append((owner, scope, counter, number))

    async def retrieve(self, owner: str, request_id: str, hold: float) -> Answer | None:
        self._maybe_raise()
        if request_id not in self.operations:
            raise Refused(404, "there is no such request")
        if request_id not in self.answers:
            self.waiting += 1
            self.holds.append(hold)
            try:
                await asyncio.sleep(hold)
            finally:
                self.waiting -= 1
        return self.answers.get(request_id)

    def queue_state(self, request_id: str) -> str:
        return "active"

    def capabilities(self) -> dict[str, Any]:
        return {"supported_models": [{"model_name": "tiny"}]}

    def status(self, owner: str | None = None) -> Any:
        return {"sessions": len(self.sessions), "queues": {"waiting": 0}, "memory": {"device_used": None}}

    def _maybe_raise(self) -> None:
        if self.raises is not None:
            raise self.raises()
