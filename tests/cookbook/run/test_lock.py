"""One process at a time writes in a run's folder; the second is refused by a line that names the first."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lossbook.cookbook.run.runs import open_run, read_metrics
from lossbook.datums.errors import RunError

#: Opens a run as the arguments say, says so, and ends when its input does.
HOLDER = """
import sys
from pathlib import Path
from lossbook.cookbook.run.runs import open_run

path, how = sys.argv[1:]
run = open_run(path, {}, resume=how == "resume", overwrite=how == "overwrite")
run.log(1, {"loss": 2.0})
print("begun", flush=True)
sys.stdin.read()
run.log(2, {"loss": 1.0})
run.release()
"""


@contextmanager
def process(path: Path, how: str = "new") -> Iterator[subprocess.Popen[str]]:
    """A process that writes in the folder until its input ends."""
    started = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == "begun\n"
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize("how", ["new", "resume", pytest.param("overwrite", marks=pytest.mark.slow)])
def test_a_second_process_is_refused_and_the_first_is_named(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "run"
    open_run(folder, {}).log(1, {"loss": 3.0}) if how != "new" else None
    gc.collect()
    with process(folder, how) as first:
        before = {path: path.read_bytes() for path in folder.iterdir()}
        for second in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError) as refused:
                open_run(folder, {}, **second, later=True)
            line = str(refused.value)
            assert line.startswith(f"{folder} is in use by process {first.pid} on {socket.gethostname()} since 20")
            assert "\n" not in line
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        assert len(read_metrics(folder / "metrics.jsonl")) >= 1  # readers are not held up
        first.communicate("", timeout=900)
        assert first.returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "metrics.jsonl"]
    open_run(folder, {}, resume=True).log(3, {"loss": 1.0})


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_taken_over_whatever_it_says(tmp_path: Path) -> None:
    with process(tmp_path / "run") as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
    left = tmp_path / "run" / "in_use.json"
    record = json.loads(left.read_text())
    assert record["pid"] == first.pid
    left.write_text(json.dumps({**record, "pid": os.getpid()}))  # the number belongs to another process by now
    run = open_run(tmp_path / "run", {}, resume=True)
    run.log(2, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(run.metrics)] == [1, 2]


@pytest.mark.slow
def test_a_damaged_record_names_nobody(tmp_path: Path) -> None:
    with process(tmp_path / "run"):
        for content in (b"", b"{", b"[]", b'{"pid": "x"}', b"[" * 100_000, b"\xff"):
            (tmp_path / "run" / "in_use.json").write_bytes(content)
            with pytest.raises(RunError, match="is in use by another process; two runs"):
                open_run(tmp_path / "run", {}, resume=True)


@pytest.mark.slow
def test_of_two_that_begin_at_once_the_later_writer_is_refused(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {}, later=True)  # nothing is there yet, so nothing is locked
    with process(tmp_path / "run") as other:
        with pytest.raises(RunError, match=f"is in use by process {other.pid} "):
            run.log(1, {"loss": 1.0})
        other.communicate("", timeout=900)
    with pytest.raises(RunError, match="is not empty"):  # the other has ended, but its run is there
        run.log(1, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(run.metrics)] == [1, 2]


def test_a_run_that_failed_in_this_process_does_not_keep_its_folder(tmp_path: Path) -> None:
    failed = open_run(tmp_path / "run", {})  # kept alive, as a notebook keeps the last error
    failed.log(1, {"loss": 2.0})
    run = open_run(tmp_path / "run", {}, overwrite=True)
    run.log(1, {"loss": 1.0})
    with pytest.raises(RunError, match="was deleted, moved or taken by process"):
        failed.log(2, {"loss": 1.0})
    assert read_metrics(run.metrics) == [{"step": 1, "loss": 1.0}]


def test_a_run_at_work_in_another_thread_keeps_its_folder(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {})
    run.lock.busy = True
    with pytest.raises(RunError, match=f"is in use by process {os.getpid()} "):
        open_run(tmp_path / "run", {}, overwrite=True)
    run.release()
    open_run(tmp_path / "run", {})


@pytest.mark.slow
def test_a_run_whose_folder_was_deleted_and_taken_by_another_writes_no_more(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {})
    run.log(1, {"loss": 2.0})
    (tmp_path / "run").rename(tmp_path / "moved")
    with process(tmp_path / "run") as other:
        with pytest.raises(RunError, match=f"was deleted, moved or taken by process {other.pid} on"):
            run.log(2, {"loss": 1.0})
        run.release()
        with pytest.raises(RunError, match=f"is in use by process {other.pid} "):
            open_run(tmp_path / "run", {}, resume=True)


def test_a_folder_that_is_not_the_runs_gets_no_lock(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all I have")
    for how in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RunError):
            open_run(tmp_path, {}, **how)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
