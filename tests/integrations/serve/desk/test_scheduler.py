"""The scheduler runs one turn after the other, whatever becomes of a turn: no request is left without a word."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lossbook.integrations.serve.desk.order import Queue
from lossbook.integrations.serve.desk.runner import Done
from lossbook.integrations.serve.desk.scheduler import Scheduler
from lossbook.integrations.serve.operations import Answer, Operation
from lossbook.integrations.serve.refusals import Failed

STOPPED = Failed("stopped", "server")


class Log:
    """What a scheduler reports."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.told: dict[int, str] = {}
        self.failed: list[Failed] = []

    def begun(self, batch: Sequence[Operation]) -> None:
        pass

    def ended(self, done: Done, seconds: float) -> None:
        self.ran.append(done.operation.number)
        self.failed += [] if done.failed is None else [done.failed]

    def lost(self, operation: Operation, failed: Failed) -> None:
        self.told[operation.number] = failed.message


def request(number: int, scope: str = "m", owner: str = "a") -> Operation:
    return Operation(owner, "forward_backward", scope, number, "seq", "", None, f"{scope}-{number}")


def answered(batch: Sequence[Operation]) -> list[Done]:
    return [Done(operation, Answer()) for operation in batch]


async def begun(
    run: Callable[[Sequence[Operation]], list[Done]], gap: float = 60.0, **options: Any
) -> tuple[Scheduler, Log]:
    log = Log()
    scheduler = Scheduler(Queue(gap), run, log, **options)
    scheduler.start()
    return scheduler, log


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_requests_run_in_their_order_one_at_a_time() -> None:
    at_once: list[int] = []

    def run(batch: Sequence[Operation]) -> list[Done]:
        at_once.append(threading.active_count())
        return answered(batch)

    async def main() -> None:
        scheduler, log = await begun(run)
        for number in (3, 2, 1, 4):
            scheduler.add(request(number))
        await until(lambda: len(log.ran) == 4)
        assert log.ran == [1, 2, 3, 4]
        await scheduler.stop(1.0, STOPPED)
        scheduler.close()

    asyncio.run(main())
    assert len(at_once) == 4


def test_an_engine_that_hangs_fails_what_runs_what_waits_and_what_comes() -> None:
    wakes = threading.Event()

    def run(batch: Sequence[Operation]) -> list[Done]:
        wakes.wait()
        return answered(batch)

    async def main() -> None:
        scheduler, log = await begun(run, seconds=0.1)
        scheduler.add(request(1))
        scheduler.add(request(1, "n", "b"))
        scheduler.add(request(2))
        await until(lambda: scheduler.trouble)
        scheduler.add(request(3))
        await until(lambda: len(log.told) == 3)
        assert all("the engine has hung" in message for message in log.told.values())
        wakes.set()
        await scheduler.stop(1.0, STOPPED)
        assert not log.ran
        scheduler.close()

    asyncio.run(main())


def test_a_turn_that_breaks_fails_alone_under_an_incident(caplog: pytest.LogCaptureFixture) -> None:
    def run(batch: Sequence[Operation]) -> list[Done]:
        if batch[0].scope == "m":
            raise ZeroDivisionError("secret")
        return answered(batch)

    async def main() -> None:
        scheduler, log = await begun(run)
        scheduler.add(request(1))
        scheduler.add(request(1, "n", "b"))
        await until(lambda: len(log.ran) == 2)
        (failed,) = log.failed
        assert failed.category == "server"
        assert failed.message.startswith("ZeroDivisionError, incident ")
        assert "secret" in caplog.text
        assert failed.message.split()[2].strip(":") in caplog.text
        assert scheduler.trouble is None
        await scheduler.stop(1.0, STOPPED)
        scheduler.close()

    asyncio.run(main())


def test_a_scheduler_that_breaks_leaves_no_request_waiting_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        scheduler, log = await begun(answered)

        def breaks(batch: Sequence[Operation]) -> None:
            raise ZeroDivisionError

        log.begun = breaks
        for number in (1, 2):
            scheduler.add(request(number))
        await until(lambda: len(log.told) == 2)
        assert scheduler.trouble is not None
        scheduler.add(request(3))
        assert len(log.told) == 3
        await scheduler.stop(1.0, STOPPED)
        scheduler.close()

    asyncio.run(main())
    assert "ZeroDivisionError" in caplog.text


def test_a_gap_ends_also_while_another_model_runs() -> None:
    wakes = threading.Event()

    def run(batch: Sequence[Operation]) -> list[Done]:
        wakes.wait()
        return answered(batch)

    async def main() -> None:
        scheduler, log = await begun(run, gap=0.05)
        scheduler.add(request(1, "n"))
        await until(lambda: scheduler.running)
        scheduler.add(request(2))
        await until(lambda: log.told)
        assert "request 1 of model m never arrived" in log.told[2]
        wakes.set()
        await scheduler.stop(1.0, STOPPED)
        scheduler.close()

    asyncio.run(main())


def test_a_stop_lets_what_is_ready_end_and_fails_the_rest_after_its_grace() -> None:
    wakes = threading.Event()

    def run(batch: Sequence[Operation]) -> list[Done]:
        if batch[0].number == 2:
            wakes.wait()
        return answered(batch)

    async def main() -> None:
        scheduler, log = await begun(run)
        for number in (1, 2, 3, 9):
            scheduler.add(request(number))
        await scheduler.stop(0.1, STOPPED)
        assert log.ran == [1]
        assert log.told == {2: "stopped", 3: "stopped", 9: "stopped"}
        assert scheduler.trouble is not None
        wakes.set()
        scheduler.close()

        scheduler, log = await begun(answered)
        for number in (1, 2, 9):
            scheduler.add(request(number))
        await scheduler.stop(30.0, STOPPED)
        assert log.ran == [1, 2]
        assert log.told == {9: "stopped"}
        assert scheduler.trouble is None
        scheduler.close()

    asyncio.run(main())


def test_upkeep_is_done_in_the_engine_between_turns() -> None:
    jobs: list[str] = []

    def run(batch: Sequence[Operation]) -> list[Done]:
        jobs.append(f"turn in {threading.current_thread().name}")
        return answered(batch)

    def job() -> None:
        jobs.append(f"upkeep in {threading.current_thread().name}")

    async def main() -> None:
        scheduler, _ = await begun(run, upkeep=lambda: job if len(jobs) == 1 else None)
        scheduler.add(request(1))
        await until(lambda: len(jobs) == 2)
        await scheduler.stop(1.0, STOPPED)
        scheduler.close()

    asyncio.run(main())
    assert jobs == ["turn in lossbook-engine", "upkeep in lossbook-engine"]
