"""`lossbook export` that is killed, or has no space, at any operation leaves the old export or the new one, whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from lossbook.datums import disk

from .forked import Runner

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

EXPORT = ["export", "whole", "out", "--overwrite"]


def files(folder: Path) -> dict[str, bytes] | None:
    """The content of each file of an export; None where there is no such folder."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("action", ["kill", "enospc"])
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_old_or_the_new_export_is_whole_and_the_next_one_leaves_nothing_else(
    action: str, form: str, tmp_path: Path
) -> None:
    flags, out = [*EXPORT, "--format", form], tmp_path / "out"
    with contextlib.closing(Runner(tmp_path)) as runner:
        before = set(os.listdir(tmp_path))
        done = runner.order(flags=flags, failpoint=f"list@{tmp_path / 'operations'}")
        assert done["code"] == 0, done["error"]
        operations, new = (tmp_path / "operations").read_text().splitlines(), files(out)
        (tmp_path / "operations").unlink()
        assert new
        seen = []
        for number in range(1, len(operations) + 1):
            (out / "README.md").write_text("of an older export")
            old = files(out)
            done = runner.order(flags=flags, failpoint=f"{action}@{number}")
            assert done["code"] in ((-9,) if action == "kill" else (0, 1)), done["error"]
            assert "Traceback" not in done["error"], done["error"]
            seen.append(files(out))
            assert seen[-1] in ((old, new, None) if action == "kill" else (old, new)), operations[number - 1]
            assert runner.order(flags=flags)["code"] == 0
            assert files(out) == new
            assert set(os.listdir(tmp_path)) - before - {"stderr"} == {"out"}
        assert seen.count(None) <= 1, "between the two renames the old one lies beside"
        print(
            f"lossbook export --format {form}: {len(operations)} operations, {len(seen)} times {action}: whole after each"
        )


def test_the_failpoints_are_off_unless_asked_for() -> None:
    assert disk.FAILPOINT not in os.environ
