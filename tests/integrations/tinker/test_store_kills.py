"""A program that is killed at any operation of a save, a deletion or a change: what is listed is whole, and nothing is half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

KILLS = Path(__file__).with_name("store_kills.py")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

#: What may be listed after a kill, by job: as before, or as after.
ALLOWED = {
    "save": ({"old": 1}, {"old": 1, "new": 2}),
    "overwrite": ({"old": 1}, {"old": 2}),
    "delete": ({"old": 1}, {}),
    "set_ttl": ({"old": 1}, {"old": 1}),
}


def output_of(mode: str, folder: Path) -> list[dict[str, Any]]:
    """What store_kills.py prints."""
    done = subprocess.run(
        [sys.executable, "-P", str(KILLS), mode],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_processes_that_change_the_same_checkpoints_at_once_meet_whole_ones_alone(tmp_path: Path) -> None:
    (after,) = output_of("race", tmp_path)
    assert after["codes"] == [0, 0, 0, 0]
    assert after["left"] == [], "nothing that was set aside stays"
    assert after["listed"].pop("last") == 1
    assert after["listed"].keys() <= {"a", "b"}


def test_wherever_a_program_is_killed_what_is_listed_is_what_was_or_what_was_to_be(tmp_path: Path) -> None:
    cases: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in output_of("kills", tmp_path):
        cases[one["job"]].append(one)
    assert {
        job: len(of) > least for (job, of), least in zip(cases.items(), (12, 12, 3, 3), strict=True)
    } == dict.fromkeys(ALLOWED, True)
    for job, of in cases.items():
        before, after = ALLOWED[job]
        for one in of:
            assert one["code"] in (-9, 0), one
            assert one["listed"] in (before, after), one
            assert one["later"] == {**one["listed"], "next": 3}, one
            assert one["left"] == [], f"the next writer removes what a dead one left: {one}"
        assert of[-1]["code"] == 0, of[-1]
        assert of[-1]["listed"] == after, of[-1]
        assert of[0]["listed"] == before, of[0]
    assert cases["set_ttl"][0]["expires"] == [False]
    assert cases["set_ttl"][-1]["expires"] == [True]
    print(
        f"killed at {sum(map(len, cases.values())) - len(cases)} operations of {', '.join(cases)}: nothing half is listed"
    )
