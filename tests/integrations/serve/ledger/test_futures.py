"""Clients that wait for answers, go away, and come back."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from lossbook.integrations.serve.ledger import Futures
from lossbook.integrations.serve.operations import Answer
from lossbook.integrations.serve.refusals import Refused

ANSWER = Answer(b"result")


class Kept:
    """A ledger's answers, and how often it was asked."""

    def __init__(self, **answers: Answer | None) -> None:
        self.answers, self.asked, self.refusal = answers, 0, None

    async def read(self, owner: str, request_id: str) -> Answer | None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        if owner != "ann" or request_id not in self.answers:
            raise Refused(404, "there is no request of this id")
        return self.answers[request_id]


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


def test_a_thousand_waiters_all_get_the_answer_when_it_comes() -> None:
    async def main() -> None:
        kept = Kept()
        futures = Futures(kept.read)
        ids = [f"id{number % 100}" for number in range(1000)]
        for one in set(ids):
            futures.expect("ann", one)
        waiters = [asyncio.create_task(futures.wait("ann", one, 60)) for one in ids]
        await until(lambda: futures.waiting == 1000)
        for one in set(ids):
            futures.resolve("ann", one, Answer(one.encode()))
        assert await asyncio.gather(*waiters) == [Answer(one.encode()) for one in ids]
        assert futures.waiting == 0
        assert kept.asked == 0, "what this process runs, the ledger need not be asked for"

    asyncio.run(main())


def test_a_thousand_waiters_that_go_away_leave_nothing_behind_and_the_answer_is_there_later() -> None:
    async def main() -> None:
        kept = Kept(one=None)
        futures = Futures(kept.read)
        tasks = len(asyncio.all_tasks())
        for _ in range(4):
            waiters = [asyncio.create_task(futures.wait("ann", "one", 60)) for _ in range(250)]
            await until(lambda: futures.waiting == 250)
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)
            assert futures.waiting == 0
        del waiter, waiters
        gc.collect()
        assert len(asyncio.all_tasks()) == tasks
        events = sum(type(one) is asyncio.Event for one in gc.get_objects())
        assert events <= 1, "not one for each time (Python keeps the frame of the last task)"
        futures.resolve("ann", "one", ANSWER)
        assert await futures.wait("ann", "one", 60) == ANSWER

    asyncio.run(main())


def test_a_poll_ends_without_an_answer_after_its_hold_and_the_next_one_gets_it() -> None:
    async def main() -> None:
        futures = Futures(Kept(one=None).read)
        assert await futures.wait("ann", "one", 0.01) is None
        assert await futures.wait("ann", "one", 0) is None
        waiter = asyncio.create_task(futures.wait("ann", "one", 60))
        await until(lambda: futures.waiting == 1)
        futures.resolve("ann", "one", ANSWER)
        assert await waiter == ANSWER

    asyncio.run(main())


def test_an_answer_that_comes_while_the_ledger_is_read_is_not_missed() -> None:
    async def main() -> None:
        async def read(owner: str, request_id: str) -> Answer | None:
            futures.resolve("ann", "one", ANSWER)  # between the row that was read and the wait
            return None

        futures = Futures(read)
        assert await futures.wait("ann", "one", 60) == ANSWER

    asyncio.run(main())


def test_memory_is_bounded_and_what_left_it_is_read_from_the_ledger() -> None:
    async def main() -> None:
        kept = Kept(**{f"id{number}": Answer(bytes(1000)) for number in range(100)})
        futures = Futures(kept.read, most_bytes=20_000)
        for number in range(100):
            futures.resolve("ann", f"id{number}", Answer(bytes(1000)))
        assert 10 <= futures.held <= 20
        assert await futures.wait("ann", "id99", 60) == Answer(bytes(1000))
        assert kept.asked == 0
        assert await futures.wait("ann", "id0", 60) == Answer(bytes(1000))
        assert kept.asked == 1
        assert futures.held <= 20

    asyncio.run(main())


def test_an_answer_larger_than_the_memory_reaches_those_who_wait() -> None:
    async def main() -> None:
        futures = Futures(Kept(one=None).read, most_bytes=10)
        waiter = asyncio.create_task(futures.wait("ann", "one", 60))
        await until(lambda: futures.waiting == 1)
        futures.resolve("ann", "one", Answer(bytes(100)))
        assert await waiter == Answer(bytes(100))
        assert futures.held == 0

    asyncio.run(main())


def test_another_owner_waits_for_nothing() -> None:
    async def main() -> None:
        futures = Futures(Kept(done=ANSWER, open=None).read)
        futures.resolve("ann", "done", ANSWER)
        futures.expect("ann", "open")
        for request_id in ("done", "open", "none"):
            with pytest.raises(Refused, match="there is no request of this id"):
                await futures.wait("bob", request_id, 60)
        assert futures.waiting == 0

    asyncio.run(main())


def test_while_the_database_does_not_answer_a_poll_is_held_and_never_refused() -> None:
    async def main() -> None:
        kept = Kept(one=ANSWER)
        kept.refusal = Refused(503, "the server's database does not answer", retry_after=5)
        futures = Futures(kept.read)
        assert await futures.wait("ann", "one", 0.01) is None, "a 5xx would be asked again at once, for ever"
        waiter = asyncio.create_task(futures.wait("ann", "two", 60))
        await until(lambda: futures.waiting == 1)
        futures.resolve("ann", "two", ANSWER)
        assert await waiter == ANSWER
        kept.refusal = None
        assert await futures.wait("ann", "one", 60) == ANSWER

    asyncio.run(main())
