"""Mutation testing of `losses/`: change one operator, number or comparison at a time, and see whether a test fails.

    python tests/mutation/mutate.py                       # every module of losses/ that computes
    python tests/mutation/mutate.py losses/policy/*.py    # some modules
    python tests/mutation/mutate.py --again               # the survivors once more, after tests were added
    python tests/mutation/mutate.py --page-only           # write docs/mutation.md from what was judged so far

Verdicts are appended to `--log`, and a run goes on where an earlier one stopped: a mutant whose line reads as it did is not
judged twice. No file is changed. `equivalent.toml` lists survivors that compute the same, with the reason.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import runner
from mutants import Mutant, mutants_of
from runner import OPTIONS, ROOT, TESTS, MutationLoop, start_nursery

LOG, PAGE = ROOT / ".cache" / "mutation.jsonl", ROOT / "docs" / "mutation.md"
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
#: What a verdict is known by.
IDENTITY = ("file", "operator", "before", "after", "function", "number")


def modules() -> list[Path]:
    """Every module of losses/ that computes, without the conformance kit and the cards."""
    files = sorted((ROOT / "losses").rglob("*.py"))
    return [p for p in files if not {"testing", "cards"}.intersection(p.parts) and p.name != "__init__.py"]


def verdicts_in(log: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The latest verdict of each change that was judged."""
    rows = map(json.loads, log.read_text(encoding="utf-8").splitlines()) if log.exists() else ()
    return {tuple(str(row[key]) for key in IDENTITY): row for row in rows}


def reasons() -> dict[tuple[str, str, str], str]:
    """{(file, line before, line after): why it computes the same}."""
    if not EQUIVALENT.exists():
        return {}
    tables = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return {(one["file"], one["before"], one["after"]): one["why"] for one in tables.get("equivalent", ())}


def page(mutants: Sequence[Mutant], verdicts: dict[tuple[str, ...], dict[str, Any]]) -> str:
    """docs/mutation.md."""
    judged = [(m, verdicts[m.identity]) for m in mutants if m.identity in verdicts]
    survivors = [m for m, row in judged if not row["noticed"]]
    same = reasons()
    equal = [m for m in survivors if (m.file, m.before, m.after) in same]
    rest = [m for m in survivors if m not in equal]
    seconds = sum(row["seconds"] for _, row in judged)
    by_file: dict[str, Counter[bool]] = {}
    for mutant, row in judged:
        by_file.setdefault(mutant.file, Counter())[row["noticed"]] += 1
    lines = [
        "<!-- Made by tests/mutation/mutate.py (`make mutation`). -->",
        "",
        "# Mutation testing",
        "",
        "One operator, number, comparison or branch of `losses/` is changed at a time, to see whether a test fails. The conformance kit",
        "and the cards are left out, and so is what a loss only declares for them. A test fails when a line of this page is no longer in",
        "the code.",
        "",
        f"{len(judged)} of {len(mutants)} mutants judged, {len(survivors)} survived ({_share(survivors, judged)}): {len(equal)} compute the",
        f"same, which leaves {len(rest)} ({_share(rest, judged)}). It took {seconds / 3600:.1f} hours of clock time, all workers together.",
        "",
        "| module | mutants | survived |",
        "|---|---|---|",
        *(f"| {name} | {sum(c.values())} | {c[False]} |" for name, c in sorted(by_file.items())),
        "",
        "## Survived",
        "",
        "| where | was | became |",
        "|---|---|---|",
        *(f"| {m.file} | `{_cell(m.before)}` | `{_cell(m.after)}` |" for m in rest),
        "",
        "## Survived, and computes the same",
        "",
        "| where | was | became | why |",
        "|---|---|---|---|",
        *(
            f"| {m.file} | `{_cell(m.before)}` | `{_cell(m.after)}` | {_cell(same[m.file, m.before, m.after])} |"
            for m in equal
        ),
    ]
    return "\n".join(lines) + "\n"


def _share(some: Sequence[Any], judged: Sequence[Any]) -> str:
    return f"{100 * len(some) / max(len(judged), 1):.1f} %"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def judge(waiting: Any, mutants: Sequence[Mutant], results: Any, cache: Path, budget: float) -> None:
    """Judge the mutants whose numbers `waiting` gives, and put (number, verdict) into a queue."""
    import pytest

    start_nursery()
    numbers = {id(m): i for i, m in enumerate(mutants)}

    def given() -> Iterator[Mutant]:
        while (number := waiting.get()) is not None:
            yield mutants[number]

    def report(mutant: Mutant, noticed: bool, by: str, seconds: float) -> None:
        results.put((numbers[id(mutant)], {"noticed": noticed, "by": by, "seconds": round(seconds, 3)}))

    code = pytest.main([*OPTIONS, *TESTS], plugins=[MutationLoop(given(), report, cache, budget)])
    results.put((-1, int(code) in (0, 5)))


def verdicts_of(
    mutants: Sequence[Mutant], jobs: int, cache: Path, budget: float
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, verdict) of every mutant, in the order they finish."""
    context = multiprocessing.get_context("fork")
    results, waiting = context.Queue(), context.Queue()
    for number in [*range(len(mutants)), *[None] * jobs]:
        waiting.put(number)
    workers = [context.Process(target=judge, args=(waiting, mutants, results, cache, budget)) for _ in range(jobs)]
    for worker in workers:
        worker.start()
        while not cache.exists() and worker.is_alive():  # the first one notes which tests call what
            time.sleep(1)
    finished = 0
    while finished < jobs:
        number, verdict = results.get()
        if number >= 0:
            yield number, verdict
        elif verdict:
            finished += 1
        else:
            sys.exit("a worker stopped early: do the tests pass without any mutation?")


def run(mutants: Sequence[Mutant], log: Path, jobs: int, budget: float) -> None:
    """Judge mutants, and append each verdict to the log."""
    cache = log.with_suffix(".reach.json")
    log.parent.mkdir(parents=True, exist_ok=True)
    began, survived = time.monotonic(), 0
    with log.open("a", encoding="utf-8") as file:
        for done, (number, verdict) in enumerate(verdicts_of(mutants, jobs, cache, budget), start=1):
            own = {key: getattr(mutants[number], key) for key in (*IDENTITY, "line")}
            print(json.dumps({**own, **verdict}), file=file, flush=True)
            survived += not verdict["noticed"]
            pace = (time.monotonic() - began) / done
            print(
                f"\r{done}/{len(mutants)} survived {survived} ({pace:.2f} s each)", end="", file=sys.stderr, flush=True
            )


def chosen(all_mutants: Sequence[Mutant], files: Iterable[Path], log: Path, *, again: bool) -> list[Mutant]:
    """Those of some files (all without any) that are not judged yet; with `again` the survivors too that nothing explains."""
    names = {str(p.resolve().relative_to(ROOT)) for p in files}
    known, same = verdicts_in(log), reasons()
    all_mutants = [m for m in all_mutants if not again or (m.file, m.before, m.after) not in same]
    done = {key for key, row in known.items() if row["noticed"] or not again}
    return [m for m in all_mutants if m.identity not in done and (not names or m.file in names)]


def main() -> None:
    """Run the command line above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", type=Path)
    parser.add_argument("--again", action="store_true", help="judge the survivors of earlier runs once more")
    parser.add_argument("--page-only", action="store_true", help="judge nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of tests that one mutant meets at most")
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    log, report = arguments.log.resolve(), arguments.page.resolve()
    os.environ |= {"CI": "true", "OMP_NUM_THREADS": "1"}  # CI: the same examples for every mutant
    everything = [m for path in modules() for m in mutants_of(path, ROOT)]
    waiting = [] if arguments.page_only else chosen(everything, arguments.modules, log, again=arguments.again)
    os.chdir(ROOT)
    if waiting:
        run(waiting, log, min(arguments.jobs, len(waiting)), arguments.budget)
    report.write_text(page(everything, verdicts_in(log)), encoding="utf-8")
    print(f"\n{report}", file=sys.stderr)


if __name__ == "__main__":
    assert runner
    main()
