"""A process that has imported everything and runs the command line in forked children, an order per line of its input.

An order is a JSON object: `flags` of the command line, with perhaps a `failpoint` (also `stop@N`: SIGTERM at the N-th operation);
`recorded`, a folder whose numbers are wanted; or `together`, flags that two children run at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sweep import child_of, in_a_child, recorded

from lossbook.cookbook.cli import main
from lossbook.datums import disk


def stop_at(number: int, flags: list[str]) -> int:
    """Run the flags and send SIGTERM to this process at an operation on the disk."""
    seen = [0]
    failpoint = disk.failpoint

    def stopping(operation: Any, path: Path) -> str | None:
        seen[0] += 1
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return failpoint(operation, path)

    disk.failpoint = stopping
    return main(flags)


def done(order: dict[str, Any]) -> dict[str, Any]:
    """What came of an order."""
    if "recorded" in order:
        return recorded(Path(order["recorded"]))
    if "together" in order:
        children = [child_of(lambda: main(order["together"]), Path(f"stderr-{i}")) for i in (0, 1)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return {"codes": codes, "error": "".join(Path(f"stderr-{i}").read_text() for i in (0, 1))}
    flags, failpoint = order["flags"], order.get("failpoint")
    if failpoint is not None and failpoint.startswith("stop@"):
        code, error = in_a_child(lambda: stop_at(int(failpoint.removeprefix("stop@")), flags))
    else:
        code, error = in_a_child(lambda: main(flags), failpoint)
    return {"code": code, "error": error.strip()}


if __name__ == "__main__":
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps({**done(order), "number": order["number"]}), flush=True)
