"""Workers as Ray's actors on this machine: one that dies, is stuck or out of memory fails the call, and a checkpoint goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lossbook as lb
from lossbook.datums.errors import WorkerDiedError
from lossbook.trainer.clients.training import TrainingClient

pytestmark = pytest.mark.slow

ADAM = lb.AdamParams(learning_rate=1e-2, grad_clip_norm=1.0)
#: Seconds; a test machine may be busy, and only the stuck worker is waited for.
TIMEOUT = 120.0


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Losses of this folder can be imported by name, here and on workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> lb.ServiceClient:
    folder = tmp_path_factory.mktemp("checkpoints")
    return lb.ServiceClient(device="cpu", workers=2, worker_timeout=TIMEOUT, checkpoint_dir=folder)


def step(client: TrainingClient, datums: list[lb.Datum], at: str = "nothing") -> dict[str, float]:
    output = client.forward_backward(datums, "deadly:deadly", {"at": at}).result()
    return output.metrics | client.optim_step(ADAM).result().metrics


def armed(client: TrainingClient, datums: list[lb.Datum], at: str) -> None:
    """A step that arms a worker, which dies in it or in one of the calls that follow."""
    step(client, datums, at)
    client.save_state(f"killed-{at}").result()
    step(client, datums)


def weights(path: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(path).glob("*.safetensors")}


@pytest.fixture(scope="module")
def uninterrupted(service: lb.ServiceClient) -> tuple[list[dict[str, float]], dict[str, bytes]]:
    """Metrics and files of three steps that nothing disturbed."""
    from ..conftest import random_datums

    client = service.create_training_client("tiny")
    metrics = [step(client, random_datums(6)) for _ in range(3)]
    return metrics, weights(client.save_state("whole").result().path)


@pytest.mark.parametrize("at", ["forward", "backward", "optimizer", "save"])
def test_a_run_goes_on_bit_for_bit_after_a_worker_was_killed(
    service: lb.ServiceClient,
    make_datums: Callable[..., list[lb.Datum]],
    uninterrupted: tuple[list[dict[str, float]], dict[str, bytes]],
    at: str,
) -> None:
    datums, (metrics, files) = make_datums(6), uninterrupted
    client = service.create_training_client("tiny")
    assert step(client, datums) == metrics[0]
    path = client.save_state(f"before-{at}").result().path
    with pytest.raises(WorkerDiedError, match=r"worker 1 of 2 \(process \d+ on .*\) died during"):
        armed(client, datums, at)
    with pytest.raises(WorkerDiedError, match=r"load_state\(path\) on this client starts new ones"):
        client.optim_step(ADAM).result()
    client.load_state(path).result()
    assert [step(client, datums), step(client, datums)] == metrics[1:]
    assert weights(client.save_state(f"after-{at}").result().path) == files


def test_all_other_workers_are_ended_when_one_dies(
    service: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    client = service.create_training_client("tiny")
    pids = client.forward_backward(make_datums(2), "deadly:deadly").result() and worker_processes()
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(WorkerDiedError):
        client.forward_backward(make_datums(2), "deadly:deadly").result()
    gone = time.monotonic() + 300
    while worker_processes() and time.monotonic() < gone:
        time.sleep(0.1)
    assert worker_processes() == []


def worker_processes() -> list[int]:
    """Living processes under this one that are a rank."""
    import psutil

    pids = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended just now
            if "ray::Rank" in " ".join(child.cmdline()):
                pids.append(child.pid)
    return pids


def test_a_stuck_worker_fails_the_call_after_the_stated_time(
    tmp_path: Path, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    service = lb.ServiceClient(device="cpu", workers=2, worker_timeout=20.0, checkpoint_dir=tmp_path)
    client = service.create_training_client("tiny")
    with pytest.raises(WorkerDiedError, match=r"no answer (came from|to forward_backward in 50 s).*worker 1 of 2"):
        client.forward_backward(make_datums(4), "deadly:deadly", {"at": "stuck"}).result()


def test_a_worker_out_of_memory_ends_the_group_and_says_so(
    service: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    client = service.create_training_client("tiny")
    client.forward_backward(make_datums(4), "deadly:deadly", {"at": "memory"}).result()
    with pytest.raises(WorkerDiedError, match=r"worker 1 of 2 .* failed in the midst .*out of memory"):
        client.forward_backward(make_datums(4), "deadly:deadly").result()


def test_a_mistake_in_a_loss_leaves_the_workers_at_work(
    service: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    client = service.create_training_client("tiny")
    before = client.forward_backward(make_datums(4), "deadly:deadly").result()
    with pytest.raises(ZeroDivisionError, match="a mistake in a loss") as caught:
        client.forward_backward(make_datums(4), "deadly:deadly", {"at": "mistake"}).result()
    assert "This was on worker 1 of 2." in caught.value.__notes__
    assert client.forward_backward(make_datums(4), "deadly:deadly").result() == before
