"""Calls run in order, and a failure is seen once: by looking, by the next call, or on stderr. Events, never sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums.errors import UnseenFailureWarning, WorkerError
from lossbook.trainer.clients.futures import Calls, Future, Worker
from lossbook.trainer.clients.independent import IndependentCalls

PATIENCE = 60  # seconds; only a broken queue ever waits so long


@pytest.fixture
def calls() -> Calls:
    return Calls("training", Worker())


def fail(message: str = "the loss is broken") -> None:
    raise ValueError(message)


class Gate:
    """A job that says when it has begun and ends when it is let go."""

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.released.wait(PATIENCE)
        return "through the gate"

    def then_fail(self) -> None:
        self()
        fail()


def run_until_idle(worker: Worker) -> None:
    """Return when the worker has dropped every job submitted before."""
    idle = threading.Event()
    worker.submit(idle.set)
    assert idle.wait(PATIENCE)


def forget(clients: list[Calls]) -> None:
    """Drop the last references to clients."""
    clients.clear()
    gc.collect()


def test_calls_run_in_submission_order_in_one_thread_other_than_the_callers() -> None:
    worker, seen = Worker(), []
    clients = [Calls("a", worker), Calls("b", worker)]
    futures = [clients[i % 2].submit("note", lambda i=i: seen.append((i, threading.get_ident()))) for i in range(200)]
    futures[-1].result(PATIENCE)
    assert [i for i, _ in seen] == list(range(200))
    assert len({thread for _, thread in seen} - {threading.get_ident()}) == 1
    assert all(future.done() for future in futures)


def test_no_thread_is_started_before_the_first_call() -> None:
    before = set(threading.enumerate())
    calls = Calls("training", Worker())
    assert set(threading.enumerate()) == before
    calls.submit("forward", int).result(PATIENCE)
    assert len(set(threading.enumerate()) - before) == 1


def test_the_thread_ends_when_the_worker_is_dropped() -> None:
    before = set(threading.enumerate())
    calls = Calls("training", Worker())
    calls.submit("forward", int).result(PATIENCE)
    (thread,) = set(threading.enumerate()) - before
    assert not thread.daemon
    del calls
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_result_arrives_with_its_value_and_no_exception(calls: Calls) -> None:
    future: Future[int] = calls.submit("forward", lambda: 7)
    assert future.result(PATIENCE) == 7
    assert future.exception(PATIENCE) is None
    assert repr(future) == "<Future of training.forward (call 1): finished>"


def test_waiting_can_time_out_and_the_call_goes_on(calls: Calls) -> None:
    gate = Gate()
    future = calls.submit("forward", gate)
    assert not future.done()
    for wait in (future.result, future.exception, lambda timeout: asyncio.run(future.result_async(timeout))):
        with pytest.raises(TimeoutError, match=r"training.forward \(call 1\) has not ended after 0.01 s. It goes on"):
            wait(timeout=0.01)
    assert repr(future) == "<Future of training.forward (call 1): pending>"
    gate.released.set()
    assert future.result(PATIENCE) == "through the gate"


def test_result_raises_the_original_exception_with_its_original_traceback_however_often_asked(calls: Calls) -> None:
    raised: list[BaseException] = []
    future = calls.submit("forward_backward", fail)
    for _ in range(3):
        with pytest.raises(ValueError, match="the loss is broken") as caught:
            future.result(PATIENCE)
        raised.append(caught.value)
        names = [frame.name for frame in traceback.extract_tb(caught.tb)]
        assert names[-1] == "fail"
        assert "_outcome" not in names, "the queue's own frames say nothing to the reader"
        assert names.count("result") == 1, "the traceback must not grow with every look"
    assert raised[0] is raised[1] is raised[2]
    assert future.exception(PATIENCE) is raised[0]
    assert repr(future) == "<Future of training.forward_backward (call 1): failed with ValueError>"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit])
def test_the_worker_survives_whatever_a_call_raises(calls: Calls, error: type[BaseException]) -> None:
    def stop() -> None:
        raise error("from the call")

    future = calls.submit("forward", stop)
    with pytest.raises(error, match="from the call"):
        future.result(PATIENCE)
    assert calls.submit("forward", lambda: "alive").result(PATIENCE) == "alive"


LOOKS: dict[str, Callable[[Future], object]] = {
    "result": lambda future: future.result(PATIENCE),
    "await": lambda future: asyncio.run(future.result_async()),
    "exception": lambda future: future.exception(PATIENCE),
}


@pytest.mark.parametrize("look", LOOKS)
def test_after_a_failure_was_looked_at_the_client_goes_on(calls: Calls, look: str) -> None:
    future = calls.submit("forward_backward", fail)
    if look == "exception":
        assert isinstance(future.exception(PATIENCE), ValueError)
    else:
        with pytest.raises(ValueError, match="the loss is broken"):
            LOOKS[look](future)
    assert calls.submit("optim_step", lambda: "stepped").result(PATIENCE) == "stepped"


def test_ten_thousand_calls_behind_one_failure_make_a_short_message(calls: Calls) -> None:
    gate = Gate()
    failed = calls.submit("forward_backward", gate.then_fail)
    held_back = [calls.submit("optim_step", int) for _ in range(10_000)]
    gate.released.set()
    for future in held_back:
        with pytest.raises(ValueError, match="the loss is broken") as caught:
            future.result(PATIENCE)
    shown = "".join(traceback.format_exception(caught.value))
    assert len(shown.splitlines()) < 40
    assert shown.count("the loss is broken") == 1
    assert (
        "training.optim_step (call 10001) did not run: it was queued behind training.forward_backward (call 1)" in shown
    )
    assert failed._failure is not None
    assert (
        "training.optim_step (call 2), training.optim_step (call 3), training.optim_step (call 4) and 9997 others."
        in failed._failure.report()
    )


def test_done_is_not_looking(calls: Calls) -> None:
    future = calls.submit("forward_backward", fail)
    run_until_idle(calls.worker)
    assert future.done()
    with pytest.raises(ValueError, match="the loss is broken"):
        calls.submit("optim_step", int)


def test_the_next_call_raises_a_failure_that_nobody_looked_at_and_does_not_run(calls: Calls) -> None:
    ran = []
    calls.submit("forward_backward", fail)
    run_until_idle(calls.worker)
    with pytest.raises(ValueError, match="the loss is broken") as caught:
        calls.submit("optim_step", lambda: ran.append("optim_step"))
    assert caught.value.__notes__ == [
        "training.optim_step was not started: training.forward_backward (call 1) had failed before, "
        "and nobody had looked at it."
    ]
    assert traceback.extract_tb(caught.tb)[-1].name == "fail"
    calls.submit("optim_step", lambda: ran.append("second optim_step")).result(PATIENCE)
    assert ran == ["second optim_step"]


def test_calls_queued_behind_a_failure_do_not_run_and_fail_with_the_same_exception(calls: Calls) -> None:
    ran, gate = [], Gate()
    failed = calls.submit("forward_backward", gate.then_fail)
    held_back = [calls.submit("optim_step", lambda i=i: ran.append(i)) for i in range(3)]
    gate.released.set()
    error = failed.exception(PATIENCE)
    for future in held_back:
        with pytest.raises(ValueError, match="the loss is broken") as caught:
            future.result(PATIENCE)
        assert caught.value is error
    assert ran == []
    assert error is not None
    assert error.__notes__ == [
        "training.optim_step (call 4) did not run: it was queued behind training.forward_backward (call 1), which failed."
    ], "the note is about the call that was asked last"


@given(fails=st.lists(st.booleans(), min_size=1, max_size=12))
def test_of_calls_queued_together_all_up_to_the_first_failure_run_and_no_other(fails: list[bool]) -> None:
    calls, gate, ran = Calls("training", Worker()), Gate(), []

    def call(position: int) -> None:
        ran.append(position)
        if fails[position]:
            fail(f"call {position} is broken")

    calls.submit("forward", gate)
    futures = [calls.submit("forward", lambda i=i: call(i)) for i in range(len(fails))]
    gate.released.set()
    errors = [future.exception(PATIENCE) for future in futures]
    first = fails.index(True) if True in fails else len(fails)
    assert ran == list(range(min(first + 1, len(fails))))
    assert errors[:first] == [None] * first
    assert len(set(map(id, errors[first:]))) <= 1


def test_a_queued_call_stays_held_back_when_the_failure_is_looked_at_before_its_turn(calls: Calls) -> None:
    """Whether an optim_step runs must not depend on which thread is faster."""
    ran, first, second = [], Gate(), Gate()
    failed = calls.submit("forward_backward", first.then_fail)
    other = Calls("other client", calls.worker).submit("keep the worker busy", second)
    step = calls.submit("optim_step", lambda: ran.append("optim_step"))
    first.released.set()
    assert isinstance(failed.exception(PATIENCE), ValueError)
    assert second.begun.wait(PATIENCE)
    after = calls.submit("optim_step", lambda: ran.append("submitted knowingly"))
    second.released.set()
    after.result(PATIENCE)
    assert other.result(PATIENCE) == "through the gate"
    assert isinstance(step.exception(PATIENCE), ValueError)
    assert ran == ["submitted knowingly"]


def test_looking_at_the_failed_call_counts_for_those_held_back(calls: Calls, recwarn: pytest.WarningsRecorder) -> None:
    gate = Gate()
    failed = calls.submit("forward_backward", gate.then_fail)
    step = calls.submit("optim_step", int)
    gate.released.set()
    assert isinstance(failed.exception(PATIENCE), ValueError)
    assert calls.submit("forward", lambda: 1).result(PATIENCE) == 1
    del failed, step, calls
    gc.collect()
    assert not recwarn.list


def test_looking_at_a_call_that_was_held_back_counts_for_the_failed_one(calls: Calls) -> None:
    gate = Gate()
    calls.submit("forward_backward", gate.then_fail)
    step = calls.submit("optim_step", int)
    gate.released.set()
    assert isinstance(step.exception(PATIENCE), ValueError)
    assert calls.submit("forward", lambda: 1).result(PATIENCE) == 1


def test_a_failure_of_one_client_does_not_hold_back_another(calls: Calls) -> None:
    gate = Gate()
    failed = calls.submit("forward_backward", gate.then_fail)
    other = Calls("sampling", calls.worker).submit("sample", lambda: "a sequence")
    gate.released.set()
    assert other.result(PATIENCE) == "a sequence"
    assert isinstance(failed.exception(PATIENCE), ValueError)


def test_a_failure_that_nothing_can_surface_any_more_is_warned_about_with_its_traceback() -> None:
    worker, gate = Worker(), Gate()
    calls = Calls("training", worker)
    future = calls.submit("forward_backward", gate.then_fail)
    step = calls.submit("optim_step", int)
    gate.released.set()
    run_until_idle(worker)
    del future, step
    gc.collect()  # no warning yet: the client's next call would raise it
    clients = [calls]
    del calls
    with pytest.warns(UnseenFailureWarning) as caught:
        forget(clients)
    assert len(caught) == 1, "one failure, one warning, however many calls it held back"
    message = str(caught[0].message)
    assert "training.forward_backward (call 1) failed and nobody looked at its future" in message
    assert "Held back because of it: training.optim_step (call 2)." in message
    assert "in then_fail" in message
    assert message.rstrip().endswith("ValueError: the loss is broken")


def test_a_client_does_not_keep_what_a_failed_call_held_once_it_was_seen(calls: Calls) -> None:
    class Activations:
        pass

    def call() -> None:
        activations = Activations()
        kept.append(weakref.ref(activations))
        fail()

    kept: list[weakref.ref[Activations]] = []
    future = calls.submit("forward_backward", call)
    assert isinstance(future.exception(PATIENCE), ValueError)
    del future
    gc.collect()
    assert kept[0]() is None


def test_the_submitters_torch_modes_do_not_follow_into_the_worker(calls: Calls) -> None:
    with torch.no_grad():
        assert calls.submit("forward", torch.is_grad_enabled).result(PATIENCE)
    with torch.inference_mode():
        assert not calls.submit("forward", torch.is_inference_mode_enabled).result(PATIENCE)


def test_a_call_from_inside_a_call_is_refused_instead_of_waiting_for_ever(calls: Calls) -> None:
    def loss_that_calls_its_client() -> None:
        calls.submit("forward", int).result()

    with pytest.raises(WorkerError, match=r"training.forward was called from inside an operation of the same service"):
        calls.submit("forward_backward_custom", loss_that_calls_its_client).result(PATIENCE)


@pytest.mark.parametrize("look", LOOKS)
def test_waiting_inside_a_call_for_a_later_one_is_refused(calls: Calls, look: str) -> None:
    gate, later = Gate(), []

    def waits_for_later() -> None:
        gate()
        LOOKS[look](later[0])

    future = calls.submit("forward_backward_custom", waits_for_later)
    later.append(calls.submit("optim_step", int))
    gate.released.set()
    with pytest.raises(WorkerError, match=r"waiting for training.optim_step \(call 2\) was called from inside"):
        future.result(PATIENCE)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("services", [2, 3, 5])
def test_of_services_that_wait_for_each_other_one_gets_an_error_that_names_all(services: int, look: str) -> None:
    clients = [Calls(f"model-{i}", Worker()) for i in range(services)]
    all_run = threading.Barrier(services)

    def loss(i: int) -> str:
        all_run.wait(PATIENCE)
        LOOKS[look](clients[(i + 1) % services].submit("forward", lambda: "an answer"))
        return "through"

    futures = [client.submit("forward_backward_custom", lambda i=i: loss(i)) for i, client in enumerate(clients)]
    errors = [error for future in futures if (error := future.exception(PATIENCE)) is not None]
    assert len(set(map(id, errors))) == 1, "the others fail for the same reason, or go on once the ring is broken"
    assert isinstance(errors[0], WorkerError)
    for i in range(services):
        assert f"model-{i}.forward_backward_custom (call 1)" in str(errors[0])
        assert f"model-{i}.forward (call 2)" in str(errors[0])
    assert "call one of them before, and pass in its result" in str(errors[0])


def test_a_loss_may_wait_for_another_service_that_does_not_wait_for_it(calls: Calls) -> None:
    teacher = Calls("teacher", Worker())
    future = calls.submit("forward_backward_custom", lambda: teacher.submit("forward", lambda: 3).result(PATIENCE) + 1)
    assert future.result(PATIENCE) == 4
    again = calls.submit("forward_backward_custom", lambda: teacher.submit("forward", lambda: 4).result() + 1)
    assert again.result(PATIENCE) == 5


def test_inside_a_call_the_result_of_an_earlier_one_may_be_read(calls: Calls) -> None:
    earlier = calls.submit("forward", lambda: 3)
    assert calls.submit("forward_backward_custom", lambda: earlier.result() + 1).result(PATIENCE) == 4


def test_a_future_can_be_awaited_gathered_and_awaited_again(calls: Calls) -> None:
    async def main() -> tuple[int, list[int], int]:
        first = calls.submit("forward", lambda: 1)
        rest = [calls.submit("forward", lambda i=i: i) for i in (2, 3)]
        return await first, await asyncio.gather(*rest), await first.result_async()

    assert asyncio.run(main()) == (1, [2, 3], 1)


def test_awaiting_leaves_the_event_loop_free(calls: Calls) -> None:
    async def main() -> str:
        gate = Gate()
        future = calls.submit("forward", gate)
        asyncio.get_running_loop().call_soon(gate.released.set)  # runs only if the loop is free
        return await future

    assert asyncio.run(main()) == "through the gate"


@pytest.mark.parametrize("error", [ValueError, StopIteration])
def test_an_awaited_failure_is_raised_in_the_coroutine(calls: Calls, error: type[Exception]) -> None:
    """StopIteration cannot leave a coroutine: Python turns it into RuntimeError. It must not hang."""

    def call() -> None:
        raise error("in the call")

    async def main() -> None:
        await asyncio.wait_for(calls.submit("forward", call).result_async(), PATIENCE)

    with pytest.raises((error, RuntimeError)) as caught:
        asyncio.run(main())
    assert isinstance(caught.value, error) or isinstance(caught.value.__cause__, error)
    assert calls.submit("forward", lambda: 1).result(PATIENCE) == 1


def test_cancelling_an_await_does_not_cancel_the_call(calls: Calls) -> None:
    gate = Gate()

    async def main() -> None:
        future = calls.submit("forward", gate)
        queued = calls.submit("optim_step", lambda: "stepped")
        for waiting in (asyncio.ensure_future(future), asyncio.ensure_future(queued)):
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        gate.released.set()
        assert await future == "through the gate"
        assert await queued == "stepped"

    asyncio.run(main())


def test_a_cancelled_await_has_not_seen_the_failure(calls: Calls) -> None:
    gate = Gate()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await calls.submit("forward_backward", gate.then_fail).result_async(timeout=0.01)

    asyncio.run(main())
    gate.released.set()
    run_until_idle(calls.worker)
    with pytest.raises(ValueError, match="the loss is broken"):
        calls.submit("optim_step", int)


def script(source: str) -> subprocess.CompletedProcess[str]:
    """Run source in a fresh interpreter that shows no warnings."""
    header = """
import os, signal, sys, threading
from lossbook.trainer.clients.futures import Calls, Worker
PATIENCE = 60
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with Ctrl-C ignored
"""
    return subprocess.run(
        [sys.executable, "-c", header + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_at_exit_the_queued_calls_are_finished_first() -> None:
    done = script(
        """
        calls = Calls("training", Worker())
        begin = threading.Event()
        calls.submit("forward", lambda: begin.wait(PATIENCE))
        for i in range(3):
            calls.submit("forward", lambda i=i: print("call", i))
        begin.set()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "call 0\ncall 1\ncall 2\n", "")


@pytest.mark.slow
def test_at_exit_services_that_wait_for_each_other_end() -> None:
    done = script(
        """
        a, b = Calls("a", Worker()), Calls("b", Worker())
        begun, queued = threading.Barrier(2), threading.Barrier(3)
        def loss(other):
            begun.wait(PATIENCE)
            forward = other.submit("forward", int)
            queued.wait(PATIENCE)
            return forward.result()
        kept = a.submit("custom", lambda: loss(b)), b.submit("custom", lambda: loss(a))
        queued.wait(PATIENCE)  # an interpreter that shuts down takes no more calls
        """
    )
    assert done.returncode == 0
    assert done.stderr.count("failed and nobody looked at its future") == 1
    assert "a.custom (call 1)" in done.stderr
    assert "b.custom (call 1)" in done.stderr


def test_at_exit_an_unseen_failure_of_a_living_client_is_printed_with_its_traceback() -> None:
    done = script(
        """
        calls = Calls("training", Worker())
        begin = threading.Event()
        def the_users_loss():
            begin.wait(PATIENCE)
            raise ValueError("the loss is broken")
        future = calls.submit("forward_backward", the_users_loss)
        step = calls.submit("optim_step", lambda: print("this must not run"))
        begin.set()
        """
    )
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr.count("lossbook: training.forward_backward (call 1) failed and nobody looked") == 1
    assert "Held back because of it: training.optim_step (call 2)." in done.stderr
    assert "in the_users_loss" in done.stderr
    assert done.stderr.rstrip().endswith("ValueError: the loss is broken")


@pytest.mark.slow
def test_nothing_is_printed_at_exit_when_every_failure_was_seen() -> None:
    done = script(
        """
        calls = Calls("training", Worker())
        future = calls.submit("forward_backward", lambda: 1 // 0)
        assert isinstance(future.exception(PATIENCE), ZeroDivisionError)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs a signal sent to one thread")
def test_an_interrupt_while_waiting_leaves_the_queue_working() -> None:
    done = script(
        """
        calls = Calls("training", Worker())
        waiting, released = threading.Event(), threading.Event()
        def interrupt_main():
            waiting.wait(PATIENCE)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            if not released.wait(PATIENCE / 4):  # CPython can miss a signal that comes just before a thread begins to wait
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                released.wait(PATIENCE)
            return "finished all the same"
        future = calls.submit("forward", interrupt_main)
        try:
            waiting.set()
            future.result()
        except KeyboardInterrupt:
            print("interrupted", future.done())
        released.set()
        print(future.result(PATIENCE), calls.submit("forward", lambda: "and the next").result(PATIENCE))
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted False\nfinished all the same and the next\n"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_to_make_its_own_client_instead_of_waiting_for_ever() -> None:
    done = script(
        """
        calls = Calls("training", Worker())
        calls.submit("forward", int).result(PATIENCE)
        released = threading.Event()
        pending = calls.submit("forward", lambda: released.wait(PATIENCE))
        unused = Calls("unused", Worker())
        child = os.fork()
        if child == 0:
            for call in (lambda: calls.submit("forward", int), pending.result, pending.exception):
                try:
                    call()
                except RuntimeError as error:
                    print(error)
            print(unused.submit("forward", lambda: "a worker first used here works").result(PATIENCE), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        released.set()
        assert pending.result(PATIENCE)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("used before the process forked") == 3
    assert done.stdout.count("Start processes with 'spawn'") == 3
    assert "a worker first used here works" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_to_use_spawn_where_torch_would_wait_for_its_parents_threads() -> None:
    done = script(
        """
        import torch
        import lossbook as lb
        torch.set_num_threads(2)
        lb.ServiceClient(device="cpu").create_training_client("tiny")
        child = os.fork()
        if child == 0:
            try:
                lb.ServiceClient(device="cpu").create_training_client("tiny")
            except RuntimeError as error:
                print(error)
            torch.set_num_threads(1)
            lb.ServiceClient(device="cpu").create_training_client("tiny")
            print("works with one thread", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """
    )
    assert done.returncode == 0, done.stderr
    assert (
        "Start processes with 'spawn' (multiprocessing.get_context('spawn')), or call torch.set_num_threads(1)"
        in done.stdout
    )
    assert "works with one thread" in done.stdout


@pytest.mark.slow
def test_a_call_after_the_interpreter_began_to_shut_down_is_refused_and_never_runs() -> None:
    done = script(
        """
        import atexit
        calls = Calls("training", Worker())
        calls.submit("forward", int).result(PATIENCE)
        def too_late():
            try:
                calls.submit("forward", lambda: print("this must not run"))
            except RuntimeError as error:
                print(error)
        atexit.register(too_late)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cannot schedule new futures after")
    assert "this must not run" not in done.stdout


class Held:
    """Something that the frames of a traceback hold, such as a lock or a tensor."""


@pytest.mark.parametrize("kind", [Calls, lambda name, worker: IndependentCalls(name, worker, lambda: 1)])
@pytest.mark.parametrize("way", ["result", "a call behind it", "the next call"])
def test_a_failure_that_was_handled_keeps_nothing_alive(kind: Any, way: str) -> None:
    calls: Calls = kind("training", Worker())
    refs: list[weakref.ref[Held]] = []

    def holding(then: Callable[[], object]) -> None:
        held = Held()
        refs.append(weakref.ref(held))
        then()
        del held

    def call() -> None:
        if way == "result" or isinstance(calls, IndependentCalls):
            calls.submit("forward_backward", lambda: holding(fail)).result(PATIENCE)
        else:
            calls.submit("forward_backward", lambda: holding(fail))
            if way == "the next call":
                run_until_idle(calls.worker)
            calls.submit("optim_step", lambda: None).result(PATIENCE)

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            holding(call)
        run_until_idle(calls.worker)
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()
