"""`lossbook doctor`: what this machine has, what is missing and what for, and whether a training step works."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from ..run.loggers import quiet_libraries

State = Literal["ok", "note", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    state    ok; note: optional, and not there; warn: it works, but look at it; FAIL: what must work does not
    """

    state: State
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<5} {self.subject:<22} {self.text}"


def main(self_test: bool = True) -> int:
    """Print what was found, a line a subject. The exit code is 1 when something that must work does not.

    Args:
        self_test: make a training step, a checkpoint and a sample with a model built in code, some seconds.
    """
    quiet_libraries()
    from . import checks
    from .self_test import self_tests

    sections: dict[str, Callable[[], Iterable[Finding]]] = {
        "this machine": checks.machine,
        "packages": checks.packages,
        "losses": checks.losses,
        "files": checks.files,
        "environment": checks.environment,
    }
    if self_test:
        sections["self test"] = self_tests
    found: list[Finding] = []
    for title, look in sections.items():
        print(f"\n{title}" if found else title)
        for finding in examined(look, title):
            found.append(finding)
            print(f"  {finding}", flush=True)
    print(f"\n{verdict(found)}")
    return 1 if any(finding.state == "FAIL" for finding in found) else 0


def examined(look: Callable[[], Iterable[Finding]], title: str) -> Iterable[Finding]:
    """What a check finds; one that raises has failed, and the others go on."""
    try:
        yield from look()
    except Exception as error:  # a broken installation raises anything, and the report must still come
        yield Finding("FAIL", title, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def verdict(found: Iterable[Finding]) -> str:
    """The last line."""
    failed = [finding.subject for finding in found if finding.state == "FAIL"]
    warned = [finding.subject for finding in found if finding.state == "warn"]
    if failed:
        return f"does not work: {', '.join(failed)}"
    return "all that must work does" + (f"; look at: {', '.join(warned)}" if warned else "")
