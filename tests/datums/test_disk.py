"""Files and folders are whole or not there, at whatever operation the disk fails or the process dies."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lossbook.datums import disk

OLD, NEW = "what was there\n" * 20, "what is written now\n" * 20
fork_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def _counted_anew() -> None:
    disk.hits.clear()


def file(folder: Path) -> None:
    disk.write_file(folder / "it", NEW)


def whole_folder(folder: Path) -> None:
    with disk.new_folder(folder / "it") as scratch:
        disk.write_new(scratch / "a", NEW.encode())
        disk.make_folder(scratch / "more")
        disk.write_file(scratch / "more" / "b", NEW)


def rows(folder: Path) -> None:
    disk.append(folder / "it", NEW)


def content(folder: Path) -> str | dict[str, str] | None:
    """What a reader of `it` meets; of a folder, the text of each file."""
    path = folder / "it"
    if path.is_dir():
        return {str(one.relative_to(path)): one.read_text() for one in sorted(path.rglob("*")) if one.is_file()}
    return path.read_text() if path.exists() else None


def before(write: Callable[[Path], None], folder: Path) -> None:
    """What `it` is before."""
    folder.mkdir()
    if write is whole_folder:
        (folder / "it").mkdir()
        (folder / "it" / "old").write_text(OLD)
    else:
        (folder / "it").write_text(OLD)


def places(write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations of one write."""
    log = tmp_path / "list"
    before(write, tmp_path / "trial")
    monkeypatch.setenv(disk.FAILPOINT, f"list@{log}")
    write(tmp_path / "trial")
    monkeypatch.delenv(disk.FAILPOINT)
    return [line.split()[0] for line in log.read_text().splitlines()]


WRITERS = [pytest.param(write, id=write.__name__) for write in (file, whole_folder, rows)]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("action", ["enospc", "eio", "short"])
@pytest.mark.parametrize("lasting", ["", "+"], ids=["once", "from there on"])
def test_when_the_disk_refuses_any_operation_the_old_or_the_new_content_is_whole(
    write: Callable[[Path], None], action: str, lasting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = places(write, tmp_path, monkeypatch)
    count = operations.count("write") if action == "short" else len(operations)
    assert count
    for number in range(1, count + 1):
        folder = tmp_path / str(number)
        before(write, folder)
        old = content(folder)
        monkeypatch.setenv(disk.FAILPOINT, f"{action}@{number}{lasting}")
        disk.hits.clear()
        failed = None
        try:
            write(folder)
        except OSError as error:
            failed = error
        monkeypatch.delenv(disk.FAILPOINT)
        new = OLD + NEW if write is rows else content(tmp_path / "trial")
        assert content(folder) in ([old, new] if failed else [new])
        assert failed is None or failed.errno == (errno.EIO if action == "eio" else errno.ENOSPC)
        if write is not rows:
            write(folder)
            assert content(folder) == new
            assert os.listdir(folder) == ["it"], "the next writer removes what was left"


@fork_only
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the child writes files and nothing else
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("action", ["kill", "torn"])
def test_when_the_process_is_killed_at_any_operation_the_old_or_the_new_content_is_whole(
    write: Callable[[Path], None], action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = places(write, tmp_path, monkeypatch)
    new, seen = content(tmp_path / "trial"), []
    for number in range(1, (operations.count("write") if action == "torn" else len(operations)) + 1):
        folder = tmp_path / str(number)
        before(write, folder)
        old = content(folder)
        monkeypatch.setenv(disk.FAILPOINT, f"{action}@{number}")
        assert in_a_child(lambda folder=folder: write(folder)) == -signal.SIGKILL
        monkeypatch.delenv(disk.FAILPOINT)
        if write is rows:
            assert str(content(folder)).startswith(OLD), "a line that was cut is for the reader to drop"
            continue
        write_again = file if write is file else whole_folder
        seen.append(content(folder))
        assert seen[-1] in (old, new, None)
        if seen[-1] is None:  # between two renames: the next writer puts the old folder back before it begins
            with pytest.raises(ZeroDivisionError), disk.new_folder(folder / "it"):
                raise ZeroDivisionError
            assert content(folder) == old
        write_again(folder)
        assert content(folder) == new
        assert os.listdir(folder) == ["it"]
    if write is not rows and action == "kill":
        assert old in seen
        assert new in seen


def in_a_child(job: Callable[[], None]) -> int:
    """How a forked process ends that does the job; as `subprocess` reports it."""
    child = os.fork()
    if child == 0:
        try:
            job()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("action", ["truncate", "flip"])
def test_silent_damage_leaves_another_content_and_says_nothing(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(disk.FAILPOINT, f"{action}@1")
    file(tmp_path)
    damaged = (tmp_path / "it").read_bytes()
    differ = [a ^ b for a, b in zip(damaged, NEW.encode(), strict=False) if a != b]
    assert (differ == [1]) if action == "flip" else damaged == NEW.encode()[: len(NEW) // 2]


def test_a_folder_that_another_process_is_filling_stays(tmp_path: Path) -> None:
    with disk.new_folder(tmp_path / "it") as first:
        (first / "a").write_text("of the first")
        with disk.new_folder(tmp_path / "it") as second:
            (second / "a").write_text("of the second")
    assert content(tmp_path) == {"a": "of the first"}
    assert os.listdir(tmp_path) == ["it"]


def test_without_replace_the_first_to_finish_stays(tmp_path: Path) -> None:
    with disk.new_folder(tmp_path / "it", replace=False) as first:
        (first / "a").write_text("of the first")
        with disk.new_folder(tmp_path / "it", replace=False) as second:
            (second / "a").write_text("of the second")
    assert content(tmp_path) == {"a": "of the second"}
    assert os.listdir(tmp_path) == ["it"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(OLD)
    (tmp_path / "it").symlink_to("real")
    file(tmp_path)
    assert (tmp_path / "it").is_symlink()
    assert (tmp_path / "real").read_text() == NEW


def test_a_device_is_written_to_and_stays_a_device() -> None:
    disk.write_file(Path(os.devnull), NEW)
    assert not Path(os.devnull).is_file()


def test_the_operations_can_be_counted_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(disk.FAILPOINT, "eio@2:rename")
    file(tmp_path)
    with pytest.raises(OSError, match="Input/output error"):
        file(tmp_path)
    file(tmp_path)


@pytest.mark.parametrize("setting", ["", "kill", "kill@0", "melt@3", "kill@1:read", "short@2:rename:x"])
def test_a_misspelt_failpoint_is_an_error(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(disk.FAILPOINT, setting)
    with pytest.raises(ValueError, match="is no failpoint"):
        file(tmp_path)
