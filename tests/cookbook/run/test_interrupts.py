"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading

import pytest

from lossbook.cookbook.run.interrupts import StopAtOnce, stop_on_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_a_request_and_leaving_gives_the_exit_code(number: signal.Signals, code: int) -> None:
    with stop_on_signals() as stop:
        assert not stop
        stop.leave("not asked to")
        signal.raise_signal(number)
        assert stop
        with pytest.raises(SystemExit) as left:
            stop.leave("saved")
    assert left.value.code == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_stops_at_once_with_its_own_code(number: signal.Signals, code: int) -> None:
    with stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as stopped:
            signal.raise_signal(number)
    assert isinstance(stopped.value, StopAtOnce)
    assert stopped.value.code == code


def test_afterwards_signals_do_what_they_did() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_in_another_thread_where_no_handler_can_be_set_nothing_is_caught() -> None:
    requests: list[bool] = []

    def work() -> None:
        with stop_on_signals() as stop:
            requests.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requests == [False]
