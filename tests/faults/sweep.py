"""Runs of the command line in forked children, each with a failpoint; a script, so that torch is imported once for all.

It reads a JSON object {"flags", "actions" or "damage", "only", "turns"} and works in the current directory, which holds the data. For each
action and number (with "turns" the actions take turns, an operation each) it forks a child that runs the flags until the failpoint acts, then another that goes on; for each way of
damage and file, a child that goes on with it. It prints what came of them. The run `whole` is one to which nothing happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
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
#: Where a child names its modules.
_FOLDER = tempfile.TemporaryDirectory(prefix="imported-")
IMPORTED = Path(_FOLDER.name) / "modules"


def import_what_a_child_did() -> None:
    """Import here what an undisturbed child has imported, so that the next ones need not: that takes longer than their work."""
    if IMPORTED.exists():
        for name in IMPORTED.read_text().splitlines():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        IMPORTED.unlink()


def child_of(job: Callable[[], int], errors: Path, failpoint: str | None = None) -> int:
    """The id of a forked child that does the job; what it writes to standard error goes into a file."""
    child = os.fork()
    if child != 0:
        return child
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
            if failpoint is None:
                IMPORTED.write_text("\n".join(sys.modules))
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 98
        except BaseException:
            traceback.print_exc()
    os._exit(code)


def in_a_child(job: Callable[[], int], failpoint: str | None = None) -> tuple[int, str]:
    """(exit code, standard error) of a forked child; warnings are in its standard error."""
    errors = Path("stderr")
    _, status = os.waitpid(child_of(job, errors, failpoint), 0)
    import_what_a_child_did()
    return os.waitstatus_to_exitcode(status), errors.read_text()


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


def damaged(path: Path, how: str) -> None:
    """Damage a file: cut off half or all of it, or change a bit at its beginning, middle or end."""
    content = bytearray(path.read_bytes())
    if how in ("half", "empty"):
        del content[0 if how == "empty" else len(content) // 2 :]
    else:
        content[{"first bit": 0, "middle bit": len(content) // 2, "last bit": len(content) - 2}[how]] ^= 1
    path.write_bytes(content)


def damage_cases(order: dict[str, Any], whole: dict[str, Any], done: list[str]) -> Iterator[dict[str, Any]]:
    """Of a run that was killed before its export: each file damaged in each way, then going on."""
    flags, last = (
        order["flags"],
        next(i for i, line in enumerate(done, 1) if re.search(r"make .*(adapter|model)\.tmp", line)),
    )
    killed = Path("killed")
    in_a_child(lambda: main([*flags, "--out", str(killed)]), f"kill@{last}")
    files = sorted(path.relative_to(killed) for path in killed.rglob("*") if path.is_file() and path.stat().st_size > 2)
    for file in files:
        if order.get("only") and not any(re.search(pattern, str(file)) for pattern in order["only"]):
            continue
        for how in order["damage"]:
            out = Path("damaged")
            shutil.copytree(killed, out)
            damaged(out / file, how)
            code, error = in_a_child(lambda out=out: main([*flags, "--out", str(out), "--resume"]))
            ended = recorded(out) if code == 0 else {}
            yield {
                **{"file": str(file), "how": how, "code": code, "error": error.strip(), "equal": ended == whole},
                **{"differs": [key for key in whole if ended.get(key) != whole[key]] if ended else []},
            }
            shutil.rmtree(out)


def numbers_of(done: list[str], only: list[str] | None) -> set[int]:
    """All operations, or the first that each pattern of `only` matches; counted from 1."""
    if only is None:
        return set(range(1, len(done) + 1))
    return {
        i for pattern in only for i in [next((i for i, line in enumerate(done, 1) if re.search(pattern, line)), 0)] if i
    }


def cases(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    flags = order["flags"]
    log = Path("operations")
    os.environ[disk.FAILPOINT] = f"list@{log.resolve()}"
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        assert main([*flags, "--out", "whole"]) == 0
    del os.environ[disk.FAILPOINT]
    whole, done = recorded(Path("whole")), operations(log)
    yield {"operations": done}
    if "damage" in order:
        yield from damage_cases(order, whole, done)
    actions = order.get("actions", ())
    for turn, action in enumerate(actions):
        met = [line for line in done if line.startswith("write ")] if action in ("short", "torn") else done
        for number in sorted(numbers_of(met, order.get("only"))):
            if not order.get("turns") or number % len(actions) == turn:
                yield case(flags, action, number, whole, met)


if __name__ == "__main__":
    for one in cases(json.load(sys.stdin)):
        print(json.dumps(one), flush=True)
