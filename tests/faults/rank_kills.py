"""Two ranks that go on from a checkpoint, of which one is killed at each operation of the save in turn; a script, so that torch is
imported once for all: every rank is a forked child.

`python rank_kills.py ACTION` works in the current directory, and prints a JSON object for each case.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parents[1]
sys.modules["tests"] = tests = types.ModuleType("tests")
tests.__path__ = [str(TESTS)]

from lossbook.datums import disk  # noqa: E402
from lossbook.trainer.checkpoint.folder import latest_checkpoint, read_checkpoint  # noqa: E402
from lossbook.trainer.ranks import ALONE, Ranks  # noqa: E402
from tests.trainer.checkpoint.test_resharding import State, assert_same  # noqa: E402
from tests.trainer.ranks.process import join  # noqa: E402

#: Seconds after which a collective that waits for a dead rank raises, and after which a child is held to hang.
TIMEOUT, HANGS = 30.0, 90.0
SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
meetings = 0


def on_two_ranks(job: Callable[..., None], *args: Any, failpoints: dict[int, str] | None = None) -> list[int]:
    """Exit codes of two forked children that run job(ranks, failpoint, *args); 124 for one that hangs."""
    global meetings
    meetings += 1
    meeting = str(Path(f"meeting-{meetings}").resolve())
    children = [_child(rank, meeting, job, (failpoints or {}).get(rank), args) for rank in range(2)]
    codes, deadline = [0, 0], time.monotonic() + HANGS
    for rank, child in enumerate(children):
        done, status = 0, 0
        while not done and time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.0 if done else 0.01)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        codes[rank] = os.waitstatus_to_exitcode(status) if done else 124
    Path(meeting).unlink(missing_ok=True)
    return codes


def _child(rank: int, meeting: str, job: Callable[..., None], failpoint: str | None, args: tuple[Any, ...]) -> int:
    child = os.fork()
    if child != 0:
        return child
    code = 99
    try:
        with open(f"stderr-{rank}", "w") as errors:
            os.dup2(errors.fileno(), 2)
            torch.set_num_threads(1)
            job(join(rank, 2, meeting, TIMEOUT), failpoint, *args)
            code = 0
    except BaseException:
        Path(f"traceback-{rank}").write_text(traceback.format_exc())
    os._exit(code)


def to_step(ranks: Ranks, failpoint: str | None, steps: int, source: Path | None, root: Path) -> None:
    """Go on from a checkpoint, or begin, up to a number of steps, and save `root/state`. The failpoint is on in the save alone."""
    state = State(ranks, "untied", other_weights=source is not None, **SIZES)
    if source is not None:
        state.load(source)
    while state.optimizer.meta()["steps"] < steps:
        state.step()
    if failpoint is not None:
        os.environ[disk.FAILPOINT] = failpoint
    state.save(root, "state")


def case(action: str, rank: int, number: int, done: str) -> dict[str, Any]:
    """What came of one kill."""
    root = Path(f"{action}-{rank}-{number}")
    shutil.copytree("old", root)
    codes = on_two_ranks(to_step, 2, root / "state", root, failpoints={rank: f"{action}@{number}"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an unfinished folder is no damaged checkpoint
        latest = latest_checkpoint(root)
    assert latest == root / "state", latest
    left = read_checkpoint(root / "state").manifest["optimizer"]["steps"]
    resumed = on_two_ranks(to_step, 2, root / "state", root)
    last, expected = read_checkpoint(root / "state"), read_checkpoint(Path("new") / "state")
    assert last.manifest == expected.manifest
    assert_same(last.tensors, expected.tensors, ("weights", "optimizer", "random"))
    result = {
        "rank": rank,
        "operation": done,
        "codes": codes,
        "left": left,
        "resumed": resumed,
        "there": os.listdir(root),
    }
    shutil.rmtree(root)
    return result


def main(action: str) -> None:
    State(ALONE, "untied", **SIZES).step()  # all that children import is imported here
    for folder, steps, source in (("old", 1, None), ("new", 2, Path("old") / "state")):
        assert on_two_ranks(to_step, steps, source, Path(folder)) == [0, 0], Path("traceback-0").read_text()
    shutil.copytree("old", "listed")
    listing = {rank: f"list@{Path(f'operations-{rank}').resolve()}" for rank in range(2)}
    assert on_two_ranks(to_step, 2, Path("old") / "state", Path("listed"), failpoints=listing) == [0, 0]
    for rank in range(2):
        done = Path(f"operations-{rank}").read_text().splitlines()
        for number, line in enumerate([one for one in done if action == "kill" or one.startswith("write ")], 1):
            print(json.dumps(case(action, rank, number, line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
