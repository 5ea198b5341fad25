"""Run the tests of the 136 rows and write docs/reliability.md: `python docs/make_reliability_page.py [ROW ...]`.

Rows and their tests are in tests/faults/rows.py. Outcomes are kept in tests/faults/outcomes.json, so that a few rows can be run
again alone; `--page` writes the page without running a test.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
TESTS = ROOT / "tests"
OUTCOMES = TESTS / "faults" / "outcomes.json"
SOAK = TESTS / "faults" / "soak.json"

HEAD = """# Reliability

What lossbook promises when something goes wrong, and the test of each promise. `python docs/make_reliability_page.py` runs the
tests and writes this page; a test fails while the page is not what the rows and the outcomes make.

- A call that fails changes nothing: weights, gradients, moments, counts and random state are as before, and the client goes on.
- A run that is killed at any moment goes on, with `--resume`, to the metrics, samples and weights of a run that nobody killed, bit
  for bit on a CPU with as many threads. It repeats the steps after its last checkpoint; no step counts twice.
- A file or folder that lossbook writes is whole or not there; a full or failing disk is one line, and nothing half is left.
- A damaged file is refused by its name, or passed over for the newest whole checkpoint, in words.
- The process does not grow.

## Failpoints

All writing goes through `lossbook/datums/disk.py`. `LOSSBOOK_FAILPOINT=ACTION@N` makes the N-th operation of a process fail:

| action | what happens |
|---|---|
| `kill@7` | SIGKILL before the seventh operation |
| `enospc@7`, `eio@7`, `enospc@7+` | the disk is full or fails, once or from there on |
| `short@7`, `torn@7` | half of the seventh write arrives, then the disk is full, or the process is killed |
| `truncate@7`, `flip@7` | half of the seventh write is lost, or one of its bits is another, and nobody says so |
| `kill@2:rename` | counts operations of one kind: `make`, `write`, `sync`, `rename`, `remove` |
| `list@FILE` | nothing happens; FILE gets a line for each operation |

Unset, a write asks for one environment variable and nothing else.

The sweeps of a whole run let two of these actions take turns, an operation each; with `LOSSBOOK_EVERY_FAILPOINT=1` each is tried at
every operation.
"""


def load_rows() -> Any:
    """The module tests/faults/rows.py."""
    spec = spec_from_file_location("rows", TESTS / "faults" / "rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["rows"] = module
    spec.loader.exec_module(module)
    return module


class Recorder:
    """A pytest plugin: runs the wanted tests alone and keeps how they ended, and what those of tests/faults/ printed."""

    def __init__(self, wanted: set[str]) -> None:
        self.wanted = wanted
        self.outcomes: dict[str, Counter[str]] = {name: Counter() for name in wanted}
        self.figures: dict[str, list[str]] = {}

    def name_of(self, node: str) -> str:
        path, *_, function = node.partition("[")[0].split("::")
        return f"{path.removeprefix('tests/')}::{function}"

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        items[:] = [item for item in items if self.name_of(item.nodeid) in self.wanted]

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = self.name_of(report.nodeid)
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[name][report.outcome] += 1
        if report.when == "call" and name.startswith("faults/"):
            self.figures.setdefault(name, []).extend(line for line in report.capstdout.splitlines() if line.strip())


def run(names: set[str]) -> None:
    """Run tests and keep their outcomes."""
    import pytest

    recorder = Recorder(names)
    files = sorted({str(TESTS / name.partition("::")[0]) for name in names})
    pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *files], plugins=[recorder])
    kept = json.loads(OUTCOMES.read_text()) if OUTCOMES.exists() else {"outcomes": {}, "figures": {}}
    kept["outcomes"] |= {name: dict(count) for name, count in recorder.outcomes.items() if count}
    kept["figures"] |= recorder.figures
    known = {test for row in load_rows().ROWS for test in row.tests}
    kept = {part: {name: value for name, value in kept[part].items() if name in known} for part in kept}
    OUTCOMES.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def result(row: Any, outcomes: dict[str, dict[str, int]]) -> str:
    """What came of a row's tests, in words."""
    if row.waits:
        return row.waits
    counts = [outcomes.get(test, {}) for test in row.tests]
    failed = sum(count.get("failed", 0) for count in counts)
    if failed:
        return f"**{failed} fail**"
    if not all(count.get("passed") for count in counts):
        return "not run"
    passed = sum(count["passed"] for count in counts)
    waiting = sum(count.get("not run", 0) for count in counts)
    return f"holds, {passed} case{'s' if passed > 1 else ''}{f'; {waiting} not run' if waiting else ''}"


def line(row: Any, outcomes: dict[str, dict[str, int]]) -> str:
    tests = "<br>".join(f"`{test}`" for test in row.tests)
    note = f" ({row.note})" if row.note else ""
    return f"| {row.id} | {row.fault} | {row.right}{note} | {result(row, outcomes)} | {tests} |\n"


def figures(kept: dict[str, Any]) -> str:
    """What the sweeps and state machines counted."""
    lines = [text for name in sorted(kept["figures"]) for text in kept["figures"][name]]
    return "".join(f"- {text}\n" for text in lines) or "- not run\n"


def soak() -> str:
    """Every fifth minute of the last soak."""
    if not SOAK.exists():
        return "Not run.\n"
    record = json.loads(SOAK.read_text())
    samples, calls = (
        record["samples"],
        {k: n for k, n in record["calls"].items() if k not in ("rounds", "clients made")},
    )
    names = [name for name in samples[0] if name not in ("minutes", "rounds")]
    chosen = [*samples[:: max(len(samples) // 6, 1)][:6], samples[-1]]
    table = f"| minutes | rounds | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}\n"
    for one in chosen:
        values = " | ".join(f"{one[name]:g}" for name in names)
        table += f"| {one['minutes']:.0f} | {one['rounds']:g} | {values} |\n"
    failed = calls["failed as it must"]
    made = record["calls"]["clients made"]
    return f"{table}\n{sum(calls.values()):,} calls, {failed:,} of them failing as they must, on {made} clients.\n"


def page() -> str:
    """The whole page."""
    rows = load_rows()
    kept = json.loads(OUTCOMES.read_text()) if OUTCOMES.exists() else {"outcomes": {}, "figures": {}}
    results = [result(row, kept["outcomes"]) for row in rows.ROWS]
    holds = sum(text.startswith("holds") for text in results)
    waiting = sum(bool(row.waits) for row in rows.ROWS)
    text = HEAD + f"\n## What was counted\n\n{figures(kept)}"
    text += f"\n## A soak of mixed work\n\n`python tests/faults/soak.py --minutes 30`, on one thread, after `gc.collect()`:\n\n{soak()}"
    text += (
        f"\n## The rows\n\n{len(rows.ROWS)} rows: {holds} hold, {waiting} wait for what they need, "
        f"{len(rows.ROWS) - holds - waiting} neither. Tests are below `tests/`; a case is one parameter set of one of them.\n"
    )
    for title, table in rows.TABLES.items():
        text += (
            f"\n### {title}\n\n| row | what happens | what must come of it | result | tests |\n|---|---|---|---|---|\n"
        )
        text += "".join(line(row, kept["outcomes"]) for row in table)
    return text


def main() -> None:
    rows = load_rows()
    only = sys.argv[1:]
    names = {test for row in rows.ROWS if not only or row.id in only for test in row.tests}
    if only != ["--page"]:
        run(names)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
