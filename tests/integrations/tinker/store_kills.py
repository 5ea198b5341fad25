"""Saves, overwrites, deletions and changes of one checkpoint, each killed at each of its operations in turn; a script, so that
torch is imported once for all: what is killed is a forked child.

`python store_kills.py` works in the current directory, and prints a JSON object for each case.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lossbook.datums import disk
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


def in_child(job: Callable[[], None], failpoint: str) -> int:
    """The exit code of a forked child that does a job under a failpoint."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.environ[disk.FAILPOINT] = failpoint
            job()
            code = 0
        finally:
            os._exit(code)
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
    code = in_child(lambda: JOBS[name](store, run), f"kill@{number}")
    after = listed(store, run)
    expires = [one.expires_at is not None for one in store.checkpoints(run)]
    save(store, run, "next", 3)
    left = [str(path) for path in root.rglob(".*") if path.name != ".tinker.json.tmp"]
    result = {"job": name, "code": code, "listed": after, "expires": expires, "later": listed(store, run), "left": left}
    shutil.rmtree(root)
    return result


def main() -> None:
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
    main()
