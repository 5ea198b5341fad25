"""Answers in memory while clients wait for them, over what the ledger keeps."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ..operations import Answer
from ..refusals import Refused

#: Bytes that are counted for an answer beside its body.
_OVERHEAD = 512


@dataclass
class _Waiting:
    """Those who wait for one request: how many, and what wakes them."""

    count: int = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    answer: Answer | None = None


class Futures:
    """Answers by request id, and clients that wait for them. Belongs to one event loop.

    read         reads an answer from the ledger, in the ledger's thread: `Ledger.answer`, awaited
    most_bytes   of answers that are held; the longest unread go first, and are read from the ledger again
    """

    def __init__(self, read: Callable[[str, str], Awaitable[Answer | None]], *, most_bytes: int = 256 * 2**20) -> None:
        self._read, self._most_bytes = read, most_bytes
        self._expected: dict[str, str] = {}  # owner by request id
        self._answers: OrderedDict[str, tuple[str, Answer]] = OrderedDict()
        self._waiting: dict[str, _Waiting] = {}
        self._bytes = 0

    def expect(self, owner: str, request_id: str) -> None:
        """Note a request that `resolve` will be called for, so that those who wait for it need not ask the ledger."""
        self._expected[request_id] = owner

    def resolve(self, owner: str, request_id: str, answer: Answer) -> None:
        """Give an answer to all who wait for it, and hold it for those who come. Call it after the ledger has it."""
        self._expected.pop(request_id, None)
        self._keep(owner, request_id, answer)
        if waiting := self._waiting.get(request_id):
            waiting.answer = answer
            waiting.answered.set()

    async def wait(self, owner: str, request_id: str, hold: float) -> Answer | None:
        """A request's answer, as soon as it is there; None when it is not after `hold` seconds.

        Raises Refused as `Ledger.answer` does, but for 503: while the database does not answer, no answer comes.
        A caller that goes away, by being cancelled, leaves nothing behind.
        """
        if (answer := self._held(owner, request_id)) is not None:
            return answer
        waiting = self._waiting.setdefault(
            request_id, _Waiting()
        )  # before the ledger is asked, so that no answer slips by
        waiting.count += 1
        try:
            if self._expected.get(request_id) != owner and (answer := await self._from_ledger(owner, request_id)):
                return answer
            async with asyncio.timeout(hold):
                await waiting.answered.wait()
            return waiting.answer
        except TimeoutError:
            return None
        finally:
            waiting.count -= 1
            if not waiting.count and self._waiting.get(request_id) is waiting:
                del self._waiting[request_id]

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return sum(waiting.count for waiting in self._waiting.values())

    @property
    def held(self) -> int:
        """How many answers are in memory."""
        return len(self._answers)

    def _held(self, owner: str, request_id: str) -> Answer | None:
        of, answer = self._answers.get(request_id, (None, None))
        if of != owner:
            return None
        self._answers.move_to_end(request_id)
        return answer

    def _keep(self, owner: str, request_id: str, answer: Answer) -> None:
        if request_id in self._answers:
            return
        self._answers[request_id] = (owner, answer)
        self._bytes += len(answer.body) + _OVERHEAD
        while self._bytes > self._most_bytes:
            _, (_, oldest) = self._answers.popitem(last=False)
            self._bytes -= len(oldest.body) + _OVERHEAD

    async def _from_ledger(self, owner: str, request_id: str) -> Answer | None:
        try:
            answer = await self._read(owner, request_id)
        except Refused as refused:
            if refused.status != 503:
                raise
            return None
        if answer is not None:
            self._keep(owner, request_id, answer)
        return answer
