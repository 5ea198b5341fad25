"""A checkpoint is whole or not there, whatever fills up, breaks, dies or races while it is written."""

from __future__ import annotations

import builtins
import errno
import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lossbook.datums.errors import CheckpointError
from lossbook.trainer.checkpoint import files as checkpoint_files
from lossbook.trainer.checkpoint.folder import Checkpoint, latest_checkpoint, read_checkpoint, write_checkpoint
from lossbook.trainer.checkpoint.manifest import MANIFEST_NAME


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing matters when power fails, which no test can do; that it is asked for, and when, has its own test."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def save(root: Path, step: int, name: str = "state", *, overwrite: bool = False) -> Path:
    """Write a checkpoint, every part of which depends on the step."""
    return write_checkpoint(
        root,
        name,
        tensors={"model": {"weight": torch.full((9,), float(step))}, "optimizer": {"step": torch.tensor(float(step))}},
        manifest={"step": step},
        extra_files={"tokenizer.json": b"%d" % step},
        overwrite=overwrite,
    )


def step_of(path: Path) -> int:
    """The step of the checkpoint at `path`, all parts of which are of this step."""
    checkpoint = read_checkpoint(path)
    step = whole_step(checkpoint)
    assert (checkpoint.path / "tokenizer.json").read_bytes() == b"%d" % step
    return step


def whole_step(checkpoint: Checkpoint) -> int:
    step = checkpoint.manifest["step"]
    assert set(checkpoint.tensors) == {"model", "optimizer"}
    assert torch.equal(checkpoint.tensors["model"]["weight"], torch.full((9,), float(step)))
    assert checkpoint.tensors["optimizer"]["step"] == step
    return step


# -- one name twice --------------------------------------------------------------------------------------------------


def test_a_name_that_exists_is_refused_and_what_is_there_stays(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"'state' exists already in .* pass overwrite=True"):
        save(tmp_path, 2)
    assert step_of(path) == 1
    assert os.listdir(tmp_path) == ["state"]


def test_overwrite_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        assert step_of(save(tmp_path, step, overwrite=True)) == step
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="state is there and is no checkpoint; choose another name"):
        save(tmp_path, 1, overwrite=overwrite)
    assert (tmp_path / "state" / "thesis.tex").read_text() == "years of work"


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    """Run jobs at once; returns what each returned or raised."""
    results: list[Any] = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def run(position: int) -> None:
        start.wait(60)
        try:
            results[position] = jobs[position]()
        except Exception as error:  # handed to the test, which judges it
            results[position] = error

    threads = [threading.Thread(target=run, args=(position,)) for position in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_of_writers_of_one_name_one_wins_and_the_others_are_told(tmp_path: Path) -> None:
    results = in_threads(*[lambda step=step: save(tmp_path, step) for step in range(6)])
    won = [step for step, result in enumerate(results) if isinstance(result, Path)]
    lost = [result for result in results if isinstance(result, CheckpointError)]
    assert len(won) == 1
    assert len(lost) == 5
    assert all("exists" in str(error) for error in lost)
    assert step_of(tmp_path / "state") == won[0]
    assert os.listdir(tmp_path) == ["state"]


def test_readers_meet_whole_checkpoints_while_writers_replace_them(tmp_path: Path) -> None:
    save(tmp_path, 0)
    done = threading.Event()
    seen: list[int] = []

    def write(first: int) -> None:
        for step in range(first, first + 30):
            save(tmp_path, step, overwrite=True)

    def read() -> None:
        while not done.is_set():
            seen.append(whole_step(read_checkpoint(tmp_path / "state")))

    def write_all() -> list[Any]:
        try:
            return in_threads(lambda: write(100), lambda: write(200))
        finally:
            done.set()

    results = in_threads(write_all, read)
    assert results == [[None, None], None]
    assert seen
    assert step_of(tmp_path / "state") in (129, 229)
    save(tmp_path, 3, overwrite=True)
    assert os.listdir(tmp_path) == ["state"]


# -- failing disks ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be flushed there")
def test_every_file_then_the_folder_is_flushed_before_the_rename_and_the_root_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    events: list[str] = []
    replace, rmtree = os.replace, shutil.rmtree

    def note_flush(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        places = [tmp_path, *tmp_path.rglob("*")]
        (name,) = [place.name for place in places if place.stat().st_ino == inode]
        events.append(f"flush {name}")

    def note_replace(source: Path, target: Path) -> None:
        events.append(f"rename {source.name} to {target.name}")
        replace(source, target)

    def note_rmtree(path: Path, **options: Any) -> None:
        if path.exists():
            events.append(f"delete {path.name}")
        rmtree(path, **options)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(shutil, "rmtree", note_rmtree)
    save(tmp_path, 2, overwrite=True)
    plain = [re.sub("-[0-9a-f]{32}", "", event) for event in events]
    assert plain == [
        "flush model.safetensors",
        "flush optimizer.safetensors",
        "flush tokenizer.json",
        "flush MANIFEST.json",
        "flush .state.tmp",
        "rename .state.tmp to state",  # refused, for there is one
        "rename state to .state.old",
        "rename .state.tmp to state",
        f"flush {tmp_path.name}",
        "delete .state.old",
    ]


class Failpoints:
    """Counts every step of a write that the disk could refuse, and refuses the one it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, error: BaseException) -> None:
        self.root, self.error = str(root), error
        self.count, self.first, self.last = 0, -1, -1
        for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "chmod")):
            monkeypatch.setattr(module, name, self.guard(getattr(module, name)))
        monkeypatch.setattr(checkpoint_files, "save_file", self.guard(save_file))
        real = builtins.open
        guarded = self.guard(real)

        def guarded_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            writes = mode not in ("r", "rb") and str(file).startswith(self.root)
            return (guarded if writes else real)(file, mode, *args, **kwargs)

        monkeypatch.setattr(builtins, "open", guarded_open)

    def guard(self, function: Callable) -> Callable:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.first <= self.count <= self.last:
                raise self.error
            return function(*args, **kwargs)

        return guarded

    def arm(self, first: int, last: int) -> None:
        self.count, self.first, self.last = 0, first, last


def failing_steps(points: Failpoints, write: Callable[[], Any]) -> Iterator[int]:
    """Each step at which `write` could be refused, in turn."""
    points.arm(-1, -1)
    write()
    total = points.count
    assert total > 10
    yield from range(1, total + 1)


@pytest.mark.parametrize("replacing", [False, True], ids=["a new name", "replacing"])
@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        pytest.param(OSError(errno.EIO, "Input/output error"), False, id="one refusal"),
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), True, id="the disk is full from there on"),
    ],
)
def test_whatever_step_the_disk_refuses_the_old_or_the_new_checkpoint_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, replacing: bool, lasting: bool
) -> None:
    points = Failpoints(monkeypatch, tmp_path, error)
    name = "state" if replacing else "next"

    def write_in(root: Path) -> None:
        save(root, 2, name, overwrite=replacing)

    save(tmp_path / "trial", 1)
    for k in failing_steps(points, lambda: write_in(tmp_path / "trial")):
        root = tmp_path / str(k)
        points.arm(-1, -1)
        save(root, 1)
        points.arm(k, 10**9 if lasting else k)
        failed = None
        try:
            write_in(root)
        except CheckpointError as caught:
            failed = caught
        points.arm(-1, -1)
        assert failed is None or str(error) in str(failed)
        assert lasting or (root / "state").is_dir(), "what was set aside is put back at once"
        latest = latest_checkpoint(root)  # a warning would fail the test
        assert latest is not None
        in_place = failed is None or "is in its place" in str(failed)
        assert step_of(latest) == (2 if in_place else 1)
        assert step_of(root / "state") == (2 if in_place and replacing else 1)
        if not in_place:
            assert "What was there before is untouched. Free some space" in str(failed)
            assert os.listdir(root) == ["state"], "the unfinished folder must be gone"
        save(root, 3, name, overwrite=True)
        assert sorted(os.listdir(root)) == sorted({"state", name}), "the next writer removes what was left"


def test_an_interrupt_leaves_the_old_checkpoint_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = Failpoints(monkeypatch, tmp_path, KeyboardInterrupt())
    save(tmp_path / "trial", 1)
    for k in failing_steps(points, lambda: save(tmp_path / "trial", 2, overwrite=True)):
        root = tmp_path / str(k)
        points.arm(-1, -1)
        save(root, 1)
        points.arm(k, k)
        with pytest.raises(KeyboardInterrupt):
            save(root, 2, overwrite=True)
        points.arm(-1, -1)
        assert step_of(root / "state") in (1, 2)
        assert not [name for name in os.listdir(root) if ".tmp-" in name]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
def test_a_real_refusal_in_the_middle_of_a_file_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """The system itself cuts the write off, at sizes from nothing to nearly the largest file."""
    done = python(
        """
        import resource
        root = Path(sys.argv[1])
        save(root, 1)
        largest = max(file.stat().st_size for file in (root / "state").iterdir())
        refused = 0
        for limit in range(0, largest - 16, 37):  # the manifest's time may take some bytes less
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                save(root, 2, overwrite=True)
            except CheckpointError as error:
                refused += 1
                assert "could not be written" in str(error), error
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert os.listdir(root) == ["state"], os.listdir(root)
            assert read_checkpoint(root / "state").manifest["step"] == 1
        print("refused", refused)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 10


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_root_that_may_not_be_written_is_said_so(tmp_path: Path) -> None:
    save(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            save(tmp_path, 2, "next")
        assert step_of(tmp_path / "state") == 1
    finally:
        tmp_path.chmod(0o700)


def test_a_root_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(CheckpointError, match=r"could not be written to .*root"):
        save(tmp_path / "root", 1)
    assert latest_checkpoint(tmp_path / "root") is None


# -- dying programs --------------------------------------------------------------------------------------------------


def python(source: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run source in a fresh interpreter that has `save` and `read_checkpoint`."""
    header = """
    import os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None
    from lossbook.datums.errors import CheckpointError
    from lossbook.trainer.checkpoint.folder import read_checkpoint, write_checkpoint
    """
    parts = [textwrap.dedent(header), inspect.getsource(save), textwrap.dedent(source)]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(parts), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


KILLED_WRITERS = """
points = 0
def maybe_die():
    global points
    points += 1
    if points == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

EVENTS = {"open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "shutil.rmtree"}
def watch(event, arguments):
    if event in EVENTS and str(arguments[0]).startswith(str(base)):
        maybe_die()

def sync(descriptor, real=os.fsync):
    maybe_die()
    real(descriptor)

base = Path(sys.argv[1])
for fatal in range(1, 1000):
    root = base / str(fatal)
    save(root, 1)
    child = os.fork()
    if child == 0:
        os.fsync = sync
        sys.addaudithook(watch)
        save(root, 2, overwrite=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, status
    if status == 0:
        print(fatal - 1)
        break
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_writer_killed_at_any_step_leaves_the_old_or_the_new_checkpoint_whole(tmp_path: Path) -> None:
    done = python(KILLED_WRITERS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20, "every file operation of a write is a place to die"
    steps = []
    for root in sorted(tmp_path.iterdir()):
        assert latest_checkpoint(root) == root / "state"  # a warning would fail: unfinished folders are no checkpoints
        steps.append(step_of(root / "state"))
        save(root, 3, overwrite=True)
        assert os.listdir(root) == ["state"], "the next writer removes what the dead one left"
        assert step_of(root / "state") == 3
    assert set(steps) == {1, 2}


def set_aside(path: Path, mark: str = "0") -> Path:
    """As a writer leaves it that dies between its two renames."""
    aside = path.parent / f".{path.name}.old-{mark * 32}"
    os.rename(path, aside)
    return aside


def test_a_copy_set_aside_by_a_dead_writer_is_moved_back_when_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path, 1)
    set_aside(path)
    assert step_of(path) == 1
    assert "died halfway; reading the one before" in caplog.text
    assert os.listdir(tmp_path) == ["state"]


def test_a_name_whose_only_copy_was_set_aside_still_exists(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    set_aside(path)
    with pytest.raises(CheckpointError, match="'state' exists already"):
        save(tmp_path, 2)
    assert step_of(path) == 1


def test_of_several_copies_set_aside_the_latest_whole_one_is_read(tmp_path: Path) -> None:
    for step, mark in ((1, "c"), (2, "a")):
        set_aside(save(tmp_path, step, overwrite=True), mark)
    broken = set_aside(save(tmp_path, 3, overwrite=True), "b")
    (broken / MANIFEST_NAME).write_bytes(b"{}")
    assert latest_checkpoint(tmp_path) == tmp_path / "state"
    assert step_of(tmp_path / "state") == 2


def test_a_copy_set_aside_is_read_where_it_lies_when_it_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1)
    aside = set_aside(path)

    def read_only(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", read_only)
    checkpoint = read_checkpoint(path)
    assert checkpoint.path == aside
    assert checkpoint.manifest == {"step": 1}


def test_the_leftovers_of_a_dead_writer_are_removed_but_not_the_work_of_a_living_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = tmp_path / f".state.tmp-{'0' * 32}"
    dead.mkdir()
    (dead / "model.safetensors").write_bytes(b"half")
    nested = []

    def save_between(*args: Any, **kwargs: Any) -> None:
        if not nested:  # in the middle of the first write, another writer comes and goes
            nested.append(True)
            save(tmp_path, 1, "other")
        save_file(*args, **kwargs)

    monkeypatch.setattr(checkpoint_files, "save_file", save_between)
    assert step_of(save(tmp_path, 2)) == 2
    assert sorted(os.listdir(tmp_path)) == ["other", "state"]
