"""Who starts workers: Ray on a cluster, torchrun; and that nothing is left of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.slow

RAY, TORCHRUN = (str(Path(sys.executable).with_name(name)) for name in ("ray", "torchrun"))
#: What a script of a user does: one step on two workers, printed as the numbers of one process are.
SCRIPT = """
import json, os, sys, time
import lossbook as lb

def step(**workers):
    service = lb.ServiceClient(device="cpu", checkpoint_dir=sys.argv[1], **workers)
    client = service.create_training_client("tiny")
    rows = [list(range(3, 9 + 2 * i)) for i in range(5)]
    datums = [lb.Datum(lb.ModelInput.from_ints(row[:-1]), {"target_tokens": row[1:], "weights": [1.0] * (len(row) - 1)}) for row in rows]
    loss = client.forward_backward(datums, "cross_entropy").result().metrics["loss:sum"]
    norm = client.optim_step(lb.AdamParams(learning_rate=1e-2)).result().metrics["grad_norm"]
    return client, loss, norm

_, *alone = step()
client, *together = step(workers=2)
client.save_state("saved").result()
print(json.dumps({"alone": alone, "together": together}), flush=True)
"""


def script(folder: Path, more: str = "") -> Path:
    path = folder / "script.py"
    path.write_text(SCRIPT + textwrap.dedent(more))
    return path


#: What `ray start` and a client agree on, without a file in the home folder.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(part for part in sys.path if part)
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path, **more}


def run(*command: str, env: dict[str, str], timeout: float = 300.0) -> str:
    """What a command prints; fails with all of it. It and its children end with the time."""
    with tempfile.TemporaryFile("w+") as printed:
        child = subprocess.Popen(command, env=env, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            end(child)
        printed.seek(0)
        text = printed.read()
    assert code == 0, f"{' '.join(command)} ended with {code}:\n{text[-6000:]}"
    return text


def end(child: subprocess.Popen[Any]) -> None:
    """End a process that leads a session, and all of that session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def numbers(text: str) -> dict[str, list[float]]:
    import json

    (line,) = [line for line in text.splitlines() if line.startswith("{")]
    return json.loads(line)


def check(text: str) -> None:
    both = numbers(text)
    assert both["together"] == pytest.approx(both["alone"], rel=1e-6)


def test_torchrun_starts_workers_too(tmp_path: Path) -> None:
    path = script(tmp_path)
    text = run(TORCHRUN, "--nproc-per-node", "2", str(path), str(tmp_path), env=environment())
    check(text)
    assert (tmp_path / "saved" / "MANIFEST.json").is_file()


def test_ray_outlives_the_service_that_started_it(tmp_path: Path) -> None:
    """The system ends a process with the thread that started it, and a client with its Ray, a minute later."""
    more = """
    import threading
    del client, _
    patience = time.monotonic() + 300
    while any(thread.name.startswith("lossbook_") or thread.name == "lossbook" for thread in threading.enumerate()):
        assert time.monotonic() < patience, [thread.name for thread in threading.enumerate()]
        time.sleep(0.1)
    time.sleep(1)
    _, *again = step(workers=2)
    assert again == together, again
    print("again", flush=True)
    """
    text = run(sys.executable, str(script(tmp_path, more)), str(tmp_path), env=environment())
    assert "again" in text


def test_torchrun_with_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    path = script(tmp_path)
    with pytest.raises(AssertionError, match="workers=2, but torchrun started 1 processes"):
        run(TORCHRUN, "--nproc-per-node", "1", str(path), str(tmp_path), env=environment())


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two `ray start` on this machine, with what they write in a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="lb-ray-"))  # short: it holds sockets
    small = ["--num-cpus", "1", "--object-store-memory", str(80 * 2**20), "--disable-usage-stats", "--block"]
    children: list[subprocess.Popen[bytes]] = []
    with open(folder / "log", "wb") as log:

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            command = [RAY, "start", *arguments, *small]
            return subprocess.Popen(command, env=environment(**TOKEN), stdout=log, stderr=log, start_new_session=True)

        try:
            head = ["--head", "--port", "0", "--include-dashboard", "false", "--temp-dir", str(folder)]
            children.append(start(*head))
            address = wait_for(lambda: read_address(folder), children[0], folder)
            children.append(start("--address", address))
            yield address
        finally:
            for child in reversed(children):
                end_tree(child)
    shutil.rmtree(folder, ignore_errors=True)


def read_address(folder: Path) -> str | None:
    path = folder / "ray_current_cluster"
    return path.read_text().strip() or None if path.exists() else None


def wait_for(look: Any, child: subprocess.Popen[Any], folder: Path, seconds: float = 400.0) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until and child.poll() is None:
        if (value := look()) is not None:
            return value
        time.sleep(0.2)
    raise AssertionError((folder / "log").read_text(errors="replace")[-4000:])


def end_tree(child: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(child.pid).children(recursive=True)
        end(child)
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(tree, timeout=20)


def test_two_nodes_of_a_cluster_share_a_model(cluster: str, tmp_path: Path) -> None:
    more = """
        import ray
        ids = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        assert len(ids) == 2, ray.nodes()
        assert ray.available_resources().get("CPU", 0) == 0, "each node has one CPU, and each worker takes one"
        """
    check(
        run(sys.executable, str(script(tmp_path, more)), str(tmp_path), env=environment(RAY_ADDRESS=cluster, **TOKEN))
    )


def test_a_cluster_that_wants_a_token_is_one_clear_error(cluster: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text('import lossbook as lb\nlb.ServiceClient(workers=2).create_training_client("tiny")\n')
    with pytest.raises(AssertionError, match=r"WorkerError: Ray at .* refused this process's token"):
        run(sys.executable, str(path), str(tmp_path), env=environment(RAY_ADDRESS=cluster))


def test_a_killed_client_leaves_no_process(tmp_path: Path) -> None:
    more = "time.sleep(1000)"
    with tempfile.TemporaryFile("w+") as printed:
        child = subprocess.Popen(
            [sys.executable, str(script(tmp_path, more)), str(tmp_path)],
            env=environment(),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        tree: list[psutil.Process] = []
        try:
            until = time.monotonic() + 300
            while time.monotonic() < until and child.poll() is None and not (tmp_path / "saved").exists():
                time.sleep(0.2)
            printed.seek(0)
            assert (tmp_path / "saved").exists(), printed.read()[-4000:]
            tree = psutil.Process(child.pid).children(recursive=True)
            assert len(tree) >= 3, "two workers and Ray's own processes"
            child.kill()
            child.wait()
            _, alive = psutil.wait_procs(tree, timeout=180)  # Ray's agents first look for its head for a minute
            assert not alive, [one.cmdline() for one in alive]
        finally:
            child.kill()
            for one in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
