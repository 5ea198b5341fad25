"""Calls that do not build on each other: each fails alone, waiting ones can be withdrawn, and equal ones run together."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.datums.errors import UnseenFailureWarning
from lossbook.trainer.clients.futures import Worker
from lossbook.trainer.clients.independent import IndependentCalls

PATIENCE = 60
MOST = 4


@dataclass
class Sum:
    """Work that gives its number and its key; `fails` alone as in company. runs: the numbers that ran together."""

    number: int
    key: Hashable
    size: int
    fails: bool
    runs: list[list[int]] = field(repr=False)

    def run(self, others: Sequence[Sum]) -> list[tuple[int, Hashable]]:
        every = [self, *others]
        self.runs.append([one.number for one in every])
        assert sum(one.size for one in every) <= max(MOST, self.size)
        for one in every:
            if one.fails:
                raise ValueError(f"number {one.number}")
        return [(one.number, one.key) for one in every]


class Held:
    """A queue in which nothing begins before `go`, so that all calls wait together."""

    def __init__(self, *, joins: bool = True) -> None:
        self.calls = IndependentCalls("sampler", Worker(joins=joins), lambda: MOST)
        self.released = threading.Event()
        begun = threading.Event()

        def gate() -> None:
            begun.set()
            assert self.released.wait(PATIENCE)

        self.gate = self.calls.submit("gate", gate)
        assert begun.wait(PATIENCE)

    def go(self) -> None:
        self.released.set()


KINDS = st.tuples(
    st.sampled_from(["a", "a", "a", "b", None]),  # its key
    st.integers(1, 5),  # its size
    st.sampled_from(["runs", "runs", "runs", "fails", "is withdrawn"]),
)


@given(st.lists(KINDS, max_size=12), st.booleans())
@settings(deadline=None)
def test_together_each_call_gets_what_it_gets_alone(kinds: list[tuple[str | None, int, str]], joins: bool) -> None:
    queue, runs = Held(joins=joins), []
    works = [Sum(i, key, size, fate == "fails", runs) for i, (key, size, fate) in enumerate(kinds)]
    futures = [queue.calls.submit_work("sample", work) for work in works]
    for future, (_, _, fate) in zip(futures, kinds, strict=True):
        if fate == "is withdrawn":
            assert future.cancel()
            assert not future.cancel(), "it is withdrawn already"
    queue.go()
    for future, work in zip(futures, works, strict=True):
        if future.cancelled():
            with pytest.raises(concurrent.futures.CancelledError, match="was withdrawn before it began"):
                future.result(PATIENCE)
        elif work.fails:
            with pytest.raises(ValueError, match=f"number {work.number}$"):
                future.result(PATIENCE)
        else:
            assert future.result(PATIENCE) == (work.number, work.key)
    for run in runs:
        keys = {works[number].key for number in run}
        assert len(keys) == 1
        assert len(run) == 1 or (keys != {None} and joins)
        assert run == sorted(run)


def submitted(queue: Held, *works: tuple[str | None, int]) -> tuple[list[Sum], list[list[int]]]:
    runs: list[list[int]] = []
    return [Sum(i, key, size, False, runs) for i, (key, size) in enumerate(works)], runs


def test_calls_of_one_key_run_as_one_as_far_as_there_is_room_and_others_keep_their_turn() -> None:
    queue = Held()
    works, runs = submitted(queue, ("a", 1), ("b", 1), ("a", 2), (None, 1), ("a", 2), ("a", 1), ("b", 1))
    futures = [queue.calls.submit_work("sample", work) for work in works]
    queue.go()
    assert [future.result(PATIENCE)[0] for future in futures] == list(range(7))
    assert runs == [[0, 2, 5], [1, 6], [3], [4]]


def test_a_call_that_ran_with_an_earlier_one_has_its_result_before_calls_of_other_clients_in_between() -> None:
    queue, block = Held(), threading.Event()
    works, _ = submitted(queue, ("a", 1), ("a", 1))
    first = queue.calls.submit_work("sample", works[0])
    between = IndependentCalls("other", queue.calls.worker, lambda: 1).submit("train", lambda: block.wait(PATIENCE))
    second = queue.calls.submit_work("sample", works[1])
    queue.go()
    assert second.result(PATIENCE) == (1, "a")
    assert first.done()
    assert not between.done()
    block.set()
    assert between.result(PATIENCE)


def test_a_failure_holds_nothing_back_and_refuses_no_call() -> None:
    queue = Held()
    failed = queue.calls.submit("sample", lambda: 1 // 0)
    behind = queue.calls.submit("sample", lambda: "ran")
    queue.go()
    assert behind.result(PATIENCE) == "ran"
    assert queue.calls.submit("sample", lambda: "ran too").result(PATIENCE) == "ran too"
    assert isinstance(failed.exception(), ZeroDivisionError)


def test_a_failure_that_nobody_looked_at_is_reported_in_the_end() -> None:
    queue = Held()
    failed = queue.calls.submit("sample", lambda: 1 // 0)
    queue.go()
    concurrent.futures.wait([failed.future()], PATIENCE)
    del failed
    with pytest.warns(UnseenFailureWarning, match=r"sampler.sample \(call 2\) failed and nobody looked"):
        gc.collect()


def test_what_has_begun_cannot_be_withdrawn() -> None:
    queue = Held()
    assert not queue.gate.cancel()
    queue.go()
    assert queue.gate.result(PATIENCE) is None
    assert not queue.gate.cancel()


def test_a_withdrawn_call_is_a_cancelled_standard_future() -> None:
    queue = Held()
    calls = [queue.calls.submit("sample", lambda: 1) for _ in range(3)]
    standard = [call.future() for call in calls]
    assert standard[0].cancel()
    assert standard[0].cancel(), "as the standard library's"
    assert calls[1].cancel()
    assert repr(calls[0]) == "<Future of sampler.sample (call 2): cancelled>"
    queue.go()
    _, waiting = concurrent.futures.wait(standard, PATIENCE)
    assert not waiting
    assert [one.cancelled() for one in standard] == [True, True, False]
    with pytest.raises(concurrent.futures.CancelledError):
        standard[1].exception()

    async def wait_for(future: concurrent.futures.Future[int]) -> int:
        return await asyncio.wrap_future(future)

    assert asyncio.run(wait_for(standard[2])) == 1
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(wait_for(standard[0]))
