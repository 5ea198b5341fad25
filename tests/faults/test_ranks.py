"""A checkpoint that two ranks write, one of which is killed or has no space at any operation: the old one or the new one is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lossbook.datums import disk
from lossbook.datums.errors import CheckpointError
from lossbook.trainer.checkpoint.folder import latest_checkpoint, read_checkpoint
from lossbook.trainer.ranks import Ranks

from ..trainer.checkpoint.test_ranks import assert_read, save
from ..trainer.ranks.processes import RankProcesses

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

KILLS = Path(__file__).with_name("rank_kills.py")


@pytest.mark.parametrize("action", ["kill", "torn"])
def test_wherever_a_rank_is_killed_while_ranks_save_a_resumed_run_ends_as_one_that_was_not(
    action: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(KILLS), action],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) >= (19 if action == "kill" else 6)
    assert {one["rank"] for one in cases} == {0, 1}
    for one in cases:
        other = 1 - one["rank"]
        assert one["codes"][one["rank"]] == -9, one
        assert one["codes"][other] == 99, f"the other rank raises, and soon: {one}"
        assert one["resumed"] == [0, 0], one
        assert one["there"] == ["state"], one
    assert {one["left"] for one in cases if one["rank"] == 1} == {1}, "nothing is in its place before all have written"
    print(
        f"two ranks that save, {action} at each operation of each: {len(cases)} cases, the new checkpoint left in "
        f"{sum(one['left'] == 2 for one in cases)} of them; all resumed to the same weights, moments and random state"
    )


def swept(ranks: Ranks, root: Path, action: str, rank: int, lasting: bool) -> list[dict[str, Any]]:
    """What came of an action at each operation of one rank's save, in turn; over an old checkpoint, which is written anew each time."""
    cases: list[dict[str, Any]] = []
    number = 0
    while True:
        number += 1
        save(ranks, root, 1, overwrite=True)
        whole = os.listdir(root) == ["state"]
        failpoint, told = f"{action}@{number}{'+' if lasting else ''}", None
        if ranks.rank == rank:
            os.environ[disk.FAILPOINT] = failpoint
        try:
            save(ranks, root, 2, overwrite=True)
        except CheckpointError as error:
            told = str(error)
        acted = any(ranks.gather(disk.hits.get(failpoint, 0) >= number or told is not None))
        os.environ.pop(disk.FAILPOINT, None)
        disk.hits.clear()
        if not acted:
            return cases
        step = read_checkpoint(root / "state", ranks=ranks).manifest["step"]
        assert_read(ranks, root, step)
        assert latest_checkpoint(root) == root / "state"
        cases.append({"number": number, "told": told, "step": step, "whole": whole, "there": os.listdir(root)})


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("action", ["enospc", "eio", "enospc from there on", "short", "truncate", "flip"])
def test_wherever_the_disk_of_a_rank_fails_all_are_told_and_the_old_or_the_new_one_is_whole(
    action: str,
    rank: int,
    ranks: RankProcesses,
    tmp_path: Path,
) -> None:
    lasting = "from" in action
    first, second = ranks.run(swept, tmp_path, action.split()[0], rank, lasting)
    assert [one["told"] is None for one in first] == [one["told"] is None for one in second]
    writes = 3 if rank == 0 else 1  # weights, the random state, the tokenizer; the manifest's is one more
    assert len(first) >= (writes if action in ("short", "truncate", "flip") else 2 * writes)
    for one, other in zip(first, second, strict=True):
        assert one["step"] == other["step"]
        assert one["whole"], "the next save removes what was left"
        in_place = one["told"] is None or "is in its place" in one["told"]
        assert one["step"] == (2 if in_place else 1), one
        if not in_place and not lasting:
            assert one["there"] == ["state"], one
    print(
        f"two ranks that save, {action} at each operation of rank {rank}: {len(first)} cases, the old checkpoint left in "
        f"{sum(one['step'] == 1 for one in first)} of them"
    )
