"""An engine that raises, hangs or dies, and a database that is locked, full or gone, under a server process."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..process import Server, serving
from .client import Client, Model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and limits of other processes"),
]

#: Steps at these rates go wrong, below everything that knows of requests.
_BROKEN = """
import time
from lossbook.trainer.training.model_trainer import ModelTrainer
step = ModelTrainer.optim_step
def broken(self, params, *args, **kwargs):
    if params.learning_rate == 0.125:
        raise RuntimeError("no such file: /etc/secret")
    if params.learning_rate == 0.25:
        raise SystemExit(3)
    if params.learning_rate == 0.5:
        time.sleep(3600)
    return step(self, params, *args, **kwargs)
ModelTrainer.optim_step = broken
"""


def fails(client: Client, model: Model, number: int, rate: float) -> str:
    """How a step at this rate fails, by the server's fault."""
    model.logprobs(number, forward=False)
    told = client.outcome(client.told("optim_step", model.step(number + 1, rate))["request_id"])
    assert told["category"] == "server", told
    return told["error"]


def is_dead(client: Client, model: Model, number: int) -> None:
    """Health says so, nothing more is taken, and nothing hangs."""
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert "restart the server" in answer.json()["status"]
    assert client.get("/readyz").status_code == 503
    refused = client.post("optim_step", model.step(number))
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0


def test_an_engine_that_raises_fails_its_request_and_one_that_hangs_fails_all(tmp_path: Path) -> None:
    flags = ("--engine-seconds", "30", "--hold-seconds", "1", "--grace-seconds", "2")
    with serving(tmp_path / "root", *flags, first=_BROKEN) as server, Client(server.url) as client:
        model = client.model()
        for number, rate, name in ((1, 0.125, "RuntimeError"), (3, 0.25, "SystemExit")):
            error = fails(client, model, number, rate)
            assert name in error
            assert "incident" in error
            assert "secret" not in error, "what it said is for the log"
            assert error.split("incident ")[1].split(":")[0] in server.said()
        assert "/etc/secret" in server.said()
        assert client.get("/healthz").status_code == 200
        model.train(5)
        other = client.model()
        model.logprobs(7, forward=False)
        ids = [client.told("optim_step", model.step(8, 0.5))["request_id"]]
        ids += [client.told("optim_step", one.step(9))["request_id"] for one in (model, other)]
        for request_id in ids:
            told = client.outcome(request_id)
            assert told["category"] == "server"
            assert "hung" in told["error"]
        is_dead(client, model, 10)
        begun = time.monotonic()
        assert server.stop() == 0, "a call that hangs does not keep the process"
        assert time.monotonic() - begun < 300


@contextlib.contextmanager
def with_worker(root: Path, seconds: int) -> Iterator[tuple[Server, Client, Model, list[int]]]:
    """A server whose model is held by another process, the model, and the ids of the server's processes.

    seconds: `--engine-seconds`, within which Ray and the worker also start, on a machine that does much else.
    """
    pytest.importorskip("ray")
    flags = ("--workers", "1", "--engine-seconds", str(seconds), "--hold-seconds", "1", "--grace-seconds", "2")
    with serving(root, *flags) as server, Client(server.url) as client:
        model = client.model()
        model.train(1)
        processes = workers(server.process.pid)
        assert len(processes) == 1
        try:
            yield server, client, model, processes
        finally:
            send(processes, signal.SIGKILL)


def send(processes: list[int], number: signal.Signals) -> None:
    """Send a signal to those that are there."""
    for one in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)


def workers(server: int) -> list[int]:
    """Ray's processes below the server that hold a model."""
    parents, ranks = dict[int, int](), list[int]()
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = place.read_text().partition(" (")
            parents[int(pid)] = int(rest.rpartition(") ")[2].split()[1])
            if place.with_name("cmdline").read_text().startswith("ray::Rank"):
                ranks.append(int(pid))
    return [one for one in ranks if server in (parents[one], parents.get(parents[one]))]


def test_when_the_process_of_a_model_is_killed_its_requests_fail_and_health_says_so(tmp_path: Path) -> None:
    with with_worker(tmp_path / "root", 600) as (_, client, model, processes):
        send(processes, signal.SIGKILL)
        ids = [client.post("forward_backward", model.backward(number)) for number in (3, 4)]
        for answer in ids:
            if answer.status_code == 200:
                assert client.outcome(answer.json()["request_id"])["category"] == "server"
            else:
                assert answer.status_code == 503, "the first has told that it is gone"
        assert ids[0].status_code == 200
        is_dead(client, model, 5)


def test_when_the_process_of_a_model_hangs_its_requests_fail_and_health_says_so(tmp_path: Path) -> None:
    with with_worker(tmp_path / "root", 150) as (server, client, model, processes):
        send(processes, signal.SIGSTOP)
        request_id = client.told("forward_backward", model.backward(3))["request_id"]
        assert client.outcome(request_id)["category"] == "server"
        is_dead(client, model, 4)
        assert server.stop() == 0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose database is played with."""
    with serving(tmp_path_factory.mktemp("trouble") / "root", "--hold-seconds", "1") as server:
        yield server


@contextlib.contextmanager
def locked(server: Server) -> Iterator[None]:
    """Another program writes into the database, and does not end."""
    other = sqlite3.connect(server.root / "serve.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextlib.contextmanager
def gone(server: Server) -> Iterator[None]:
    """The database's file is not where it was."""
    path, away = server.root / "serve.sqlite", server.root / "away"
    path.rename(away)
    try:
        yield
        assert not path.exists(), "an empty one is not made in its place"
    finally:
        away.rename(path)


@contextlib.contextmanager
def full(server: Server) -> Iterator[None]:
    """No file of the server grows beyond the largest of its database."""
    size = max(path.stat().st_size for path in server.root.glob("serve.sqlite*"))
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("trouble", [locked, gone, full])
def test_while_the_database_does_not_answer_clients_are_told_to_come_back_and_nothing_is_lost(
    own: Server, trouble: Callable[[Server], contextlib.AbstractContextManager[None]]
) -> None:
    """What was taken before it runs on; its answer comes when it can be written down. What is refused was not taken."""
    with Client(own.url) as client:
        model, undisturbed = client.model(), client.model()
        undisturbed.train(1)
        expected = undisturbed.logprobs(3)
        slow = [client.told("forward_backward", model.backward(1, texts=[list(range(1, 60))] * 200, weight=0.0))]
        slow.append(client.told("forward_backward", model.backward(2)))
        with trouble(own):
            until = time.monotonic() + 300
            while (refused := client.post("optim_step", model.step(3))).status_code == 200:
                assert time.monotonic() < until, "the trouble is none"
            assert refused.status_code == 503, refused.text
            assert int(refused.headers["retry-after"]) > 0
            assert "/" not in refused.json()["detail"]
            assert client.poll(slow[1]["request_id"]).status_code in (200, 408), "5xx would be asked again at once"
            assert client.get("/healthz").status_code == 200
        told = client.told("optim_step", model.step(3))
        assert all(client.result(one["request_id"]).headers["content-type"] != "application/json" for one in slow)
        assert client.outcome(told["request_id"])["metrics"]
        assert model.logprobs(4) == expected
