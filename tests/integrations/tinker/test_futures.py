"""A call of the door is a future in every form that the SDK's are, and fails as they do. Events, never sleeps."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

import pytest

from lossbook.datums.errors import ModelError
from lossbook.integrations import tinker
from lossbook.integrations.tinker.futures import AwaitableConcurrentFuture, CallFuture, DoneFuture
from lossbook.trainer.clients.futures import Calls, Worker

PATIENCE = 60  # seconds; only a broken future ever waits so long


@pytest.fixture
def calls() -> Calls:
    return Calls("training", Worker())


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


def raising(error: BaseException) -> Any:
    def call() -> None:
        raise error

    return call


def waiting(gate: threading.Event) -> Any:
    return lambda: gate.wait(PATIENCE) and 20


def test_the_value_comes_in_every_way_and_is_converted_once(calls: Calls, gate: threading.Event) -> None:
    seen: list[int] = []

    def convert(value: int) -> list[int]:
        seen.append(value)
        return [value + 1]

    future = CallFuture(calls.submit("step", waiting(gate)), convert)
    standard, later = future.future(), future.future()
    assert not standard.done()
    gate.set()

    async def awaited() -> list[Any]:
        task = asyncio.create_task(future.coroutine())
        return [await future, await task, await future.result_async(PATIENCE), await asyncio.wrap_future(later)]

    values = [future.result(), future.result(PATIENCE), standard.result(PATIENCE), *asyncio.run(awaited())]
    assert values == [[21]] * 7
    assert all(value is values[0] for value in values)
    assert seen == [20]
    assert concurrent.futures.wait([standard, later], PATIENCE).not_done == set()
    assert isinstance(future, tinker.APIFuture)


def raised(error: BaseException | None) -> Any:
    raise error or AssertionError("nothing")


#: Ways to learn of a call's end.
WAYS = {
    "result": lambda future: future.result(PATIENCE),
    "await": lambda future: asyncio.run(awaiting(future)),
    "coroutine": lambda future: asyncio.run(future.coroutine()),
    "future": lambda future: future.future().result(PATIENCE),
    "exception of the future": lambda future: raised(future.future().exception(PATIENCE)),
}


async def awaiting(future: Any) -> Any:
    return await future


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_of_lossbook_is_a_request_that_failed_in_every_way(calls: Calls, way: str) -> None:
    cause = ModelError("the prompt has no tokens")
    future = CallFuture(calls.submit("sample", raising(cause)), lambda value: value)
    with pytest.raises(tinker.RequestFailedError, match=r"^the prompt has no tokens$") as caught:
        WAYS[way](future)
    assert caught.value.__cause__ is cause
    assert caught.value.category == tinker.types.RequestErrorCategory.User
    assert caught.value.request_id == "training.sample (call 1)"
    assert calls.submit("next", lambda: 1).result() == 1  # the failure has been looked at


def test_what_a_callers_own_function_raised_stays_itself(calls: Calls) -> None:
    error = ZeroDivisionError("in my loss")
    future = CallFuture(calls.submit("custom", raising(error)), lambda value: value)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            future.result()
        assert caught.value is error


def test_a_timeout_ends_the_wait_and_not_the_call(calls: Calls, gate: threading.Event) -> None:
    future = CallFuture(calls.submit("step", waiting(gate)), lambda value: value)
    with pytest.raises(TimeoutError):
        future.result(0.001)

    async def awaited() -> None:
        with pytest.raises(TimeoutError):
            await future.result_async(0.001)
        task = asyncio.create_task(future.coroutine())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(awaited())
    gate.set()
    assert future.result(PATIENCE) == 20


def test_a_timeout_that_the_call_raised_is_its_failure(calls: Calls) -> None:
    future = CallFuture(calls.submit("step", raising(TimeoutError("the disk did not answer"))), lambda value: value)
    with pytest.raises(tinker.RequestFailedError, match="the disk did not answer"):
        future.result(PATIENCE)

    with pytest.raises(tinker.RequestFailedError, match="the disk did not answer"):
        asyncio.run(awaiting(future))


def test_a_call_behind_a_failed_one_says_so(calls: Calls, gate: threading.Event) -> None:
    def fail() -> None:
        gate.wait(PATIENCE)
        raise ModelError("no such layer.")

    first, second = (
        CallFuture(calls.submit(name, run), lambda value: value) for name, run in (("a", fail), ("b", fail))
    )
    gate.set()
    with pytest.raises(
        tinker.RequestFailedError, match=r"no such layer\. .*b .* did not run: it was queued behind .*a "
    ):
        second.result(PATIENCE)
    with pytest.raises(tinker.RequestFailedError, match=r"^no such layer\.$"):
        first.result(PATIENCE)


def test_callbacks_of_the_standard_future_see_the_converted_value(calls: Calls, gate: threading.Event) -> None:
    seen: list[Any] = []
    called = threading.Event()
    future = CallFuture(calls.submit("step", waiting(gate)), str)
    future.future().add_done_callback(lambda done: (seen.append(done.result()), called.set()))
    gate.set()
    assert called.wait(PATIENCE)
    assert seen == ["20"]


def test_a_training_call_is_not_cancelled(calls: Calls, gate: threading.Event) -> None:
    future = CallFuture(calls.submit("step", waiting(gate)), str)
    assert not future.future().cancel()
    gate.set()
    assert future.result(PATIENCE) == "20"


def test_a_standard_future_can_be_awaited(gate: threading.Event) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = AwaitableConcurrentFuture(pool.submit(waiting(gate)))
        with pytest.raises(TimeoutError):
            future.result(0.001)
        gate.set()

        assert asyncio.run(awaiting(future)) == future.result() == future.future().result() == 20
    assert DoneFuture("there").result(0) == "there"
