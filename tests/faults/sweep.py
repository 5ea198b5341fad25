"""Runs of the command line in forked children, each with a failpoint; a script, so that torch is imported once for all.

It reads a JSON object {"flags", "actions", "only"} and works in the current directory, which holds the data. For each action
and number it forks a child that runs the flags until the failpoint acts, then another that goes on; it prints what came of
them. The run `whole` is one to which nothing happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lossbook.cookbook.cli import main
from lossbook.cookbook.run.runs import Run, read_metrics, read_settings
from lossbook.datums import disk
from lossbook.datums.errors import LossbookError
from lossbook.trainer.checkpoint.folder import read_checkpoint

#: Numbers that say how long something took.
TIMES = ("tokens_per_second", "sampling_seconds")


def in_a_child(job: Callable[[], int], failpoint: str | None = None) -> tuple[int, str]:
    """(exit code, standard error) of a forked child; warnings are in its standard error."""
    errors = Path("stderr")
    child = os.fork()
    if child == 0:
        code = 99
        with (
            open(errors, "w") as err,
            open(os.devnull, "w") as out,
            contextlib.redirect_stderr(err),
            contextlib.redirect_stdout(out),
        ):
            try:
                warnings.resetwarnings()
                if failpoint is not None:
                    os.environ[disk.FAILPOINT] = failpoint
                code = job()
            except SystemExit as leaving:
                code = leaving.code if isinstance(leaving.code, int) else 98
            except BaseException:
                traceback.print_exc()
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, errors.read_text()


def recorded(out: Path) -> dict[str, Any]:
    """All that a run has recorded, apart from times, and a hash of the weights it ended with."""
    metrics = [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(out / "metrics.jsonl")]
    files = [*out.glob("*.jsonl"), *out.glob("adapter/*.safetensors"), *out.glob("model/*.safetensors")]
    others = {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name != "metrics.jsonl"
    }
    return {"metrics": metrics, **others}


def operations(log: Path) -> list[str]:
    """What each operation of a run was, without the random part of names."""
    return [re.sub("-[0-9a-f]{32}", "", line) for line in log.read_text().splitlines()]


def checkpoints(out: Path) -> tuple[int, int]:
    """(checkpoints that can be read whole, others)."""
    whole = broken = 0
    for path in (out / "checkpoints").glob("[!.]*"):
        try:
            read_checkpoint(path)
            whole += 1
        except LossbookError:
            broken += 1
    return whole, broken


def can_be_resumed(out: Path) -> bool:
    with contextlib.suppress(LossbookError):
        return bool(read_settings(out))
    return False


def saved_before(done: list[str]) -> int:
    """The step of the last checkpoint that had its name after these operations; 0 without one."""
    steps = [re.fullmatch(r"rename .*/checkpoints/step-(\d+)", line) for line in done]
    return max((int(match[1]) for match in steps if match), default=0)


def case(flags: list[str], action: str, number: int, whole: dict[str, Any], all_done: list[str]) -> dict[str, Any]:
    """What came of one run with a failpoint, and of going on after it."""
    out = Path(f"{action}-{number}")
    code, error = in_a_child(lambda: main([*flags, "--out", str(out)]), f"{action}@{number}")
    result: dict[str, Any] = {"action": action, "number": number, "operation": all_done[number - 1]}
    result |= {"code": code, "error": error.strip(), "checkpoints": checkpoints(out)}
    expected = saved_before(all_done[: number - 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result["steps_lost"] = max(expected - Run(out).last_checkpoint()[0], 0) if out.exists() else 0
    result["hidden"] = [path.name for path in out.rglob(".*")] if code == 1 else []
    more = ["--resume"] if can_be_resumed(out) else []
    result["resumed"], result["resume_error"] = in_a_child(lambda: main([*flags, "--out", str(out), *more]))
    ended = recorded(out) if result["resumed"] == 0 else {}
    result["equal"] = ended == whole
    result["differs"] = [] if ended == whole else [key for key in whole if ended.get(key) != whole[key]]
    steps = [row["step"] for row in ended.get("metrics", ()) if "grad_norm" in row]
    result["steps_twice"] = len(steps) - len(set(steps))
    result["leftovers"] = [path.name for path in out.rglob(".*") if path.name != ".lock"]
    shutil.rmtree(out)
    return result


def numbers_of(done: list[str], only: list[str] | None) -> set[int]:
    """All operations, or the first that each pattern of `only` matches; counted from 1."""
    if only is None:
        return set(range(1, len(done) + 1))
    return {next((i for i, line in enumerate(done, 1) if re.search(pattern, line)), 0) for pattern in only}


def cases(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    flags = order["flags"]
    log = Path("operations")
    os.environ[disk.FAILPOINT] = f"list@{log.resolve()}"
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        assert main([*flags, "--out", "whole"]) == 0
    del os.environ[disk.FAILPOINT]
    whole, done = recorded(Path("whole")), operations(log)
    yield {"operations": done}
    for action in order["actions"]:
        met = [line for line in done if line.startswith("write ")] if action in ("short", "torn") else done
        for number in range(1, len(met) + 1):
            if number in numbers_of(met, order.get("only")):
                yield case(flags, action, number, whole, met)


if __name__ == "__main__":
    for one in cases(json.load(sys.stdin)):
        print(json.dumps(one), flush=True)
