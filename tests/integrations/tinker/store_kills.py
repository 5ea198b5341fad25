"""Saves, overwrites, deletions and changes of one checkpoint, each killed at each of its operations in turn; a script, so that
torch is imported once for all: what is killed is a forked child.

`python store_kills.py kills` works in the current directory, and prints a JSON object for each case. `python store_kills.py race`
lets several processes change and read the same few checkpoints at once, and prints what is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from lossbook.datums import disk
from lossbook.datums.errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError
from lossbook.integrations.tinker.store import Store
from lossbook.trainer.checkpoint.folder import read_checkpoint, write_checkpoint


def save(store: Store, run: str, name: str, value: int) -> None:
    with store.saving(run, "weights", name, overwrite=True, user_metadata={"value": str(value)}) as path:
        tensors = {"weights": {"a": torch.tensor(float(value))}}
        write_checkpoint(path.parent, path.name, tensors=tensors, manifest={"kind": "training", "value": value})


JOBS: dict[str, Callable[[Store, str], None]] = {
    "save": lambda store, run: save(store, run, "new", 2),
    "overwrite": lambda store, run: save(store, run, "old", 2),
    "delete": lambda store, run: store.delete(f"tinker://{run}/weights/old"),
    "set_ttl": lambda store, run: store.set_ttl(f"tinker://{run}/weights/old", 3600),
}


def started(job: Callable[[], None], failpoint: str | None) -> int:
    """A forked child that does a job, under a failpoint."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            if failpoint is not None:
                os.environ[disk.FAILPOINT] = failpoint
            job()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return child


def ended(child: int) -> int:
    """Its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def listed(store: Store, run: str) -> dict[str, int]:
    """What is listed, each of it read and verified; its record must be of the same save."""
    values = {}
    for one in store.checkpoints(run):
        checkpoint = read_checkpoint(store.locate(one.path).folder)
        assert one.user_metadata == {"value": str(checkpoint.manifest["value"])}, one
        assert checkpoint.tensors["weights"]["a"] == checkpoint.manifest["value"], one
        values[one.name] = checkpoint.manifest["value"]
    return values


def case(name: str, number: int, base: Path) -> dict[str, Any]:
    """What came of one kill."""
    root = Path("killed")
    shutil.copytree(base, root)
    store = Store(root)
    (run,) = [one.run_id for one in store.runs()]
    code = ended(started(lambda: JOBS[name](store, run), f"kill@{number}"))
    after = listed(store, run)
    expires = [one.expires_at is not None for one in store.checkpoints(run)]
    save(store, run, "next", 3)
    left = [str(path) for path in root.rglob(".*") if path.name != ".tinker.json.tmp"]
    result = {"job": name, "code": code, "listed": after, "expires": expires, "later": listed(store, run), "left": left}
    shutil.rmtree(root)
    return result


def race(processes: int = 4, rounds: int = 60) -> None:
    """What is listed is whole at any time, and nobody meets an error but that a name is not there, or is taken."""
    store = Store("race")
    run = store.new_run(store.new_session(), base_model="tiny")
    children = [started(partial(change_and_read, run, seed, rounds), None) for seed in range(processes)]
    codes = [ended(child) for child in children]
    save(store, run, "last", 1)
    left = [str(path) for path in Path("race").rglob(".*")]
    print(json.dumps({"codes": codes, "listed": listed(store, run), "left": left}), flush=True)


def change_and_read(run: str, seed: int, rounds: int) -> None:
    """Change one of two checkpoints in some way, and read one, over and over."""
    draw, store = Random(seed), Store("race")
    for number in range(rounds):
        name = draw.choice("ab")
        path = store.path_of(run, "weights", name)
        ways = [
            partial(save, store, run, name, 1000 * seed + number),
            partial(store.delete, path),
            partial(store.set_ttl, path, 3600),
            partial(store.publish, path, number % 2 == 0),
        ]
        with contextlib.suppress(CheckpointNotFoundError, CheckpointExistsError):
            draw.choice(ways)()
        with contextlib.suppress(CheckpointNotFoundError):
            verify(store, path)


def verify(store: Store, path: str) -> None:
    """Read a checkpoint that others may replace meanwhile: whole, or not there any more."""
    for _ in range(20):
        stored = store.locate(path)
        try:
            checkpoint = read_checkpoint(stored.folder)
        except CheckpointError:  # it is gone, or another one; a whole one stays
            continue
        assert checkpoint.tensors["weights"]["a"] == checkpoint.manifest["value"], path
        return


def kills() -> None:
    base = Path("base")
    store = Store(base)
    run = store.new_run(store.new_session(), base_model="tiny")
    save(store, run, "old", 1)
    for name in JOBS:
        number, code = 0, -9
        while code == -9:
            number += 1
            result = case(name, number, base)
            code = result["code"]
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    {"kills": kills, "race": race}[sys.argv[1]]()
