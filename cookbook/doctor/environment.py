"""`lossbook doctor`: checks of this machine, its packages, and a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..run.loggers import quiet_libraries
from ..terminal import show
from .finding import Finding


def main(self_test: bool = True) -> int:
    """Check this machine and print one line per check. The exit code is 1 when a required check failed.

    Args:
        self_test: also make training steps, a checkpoint and a sample with a tiny built-in model; takes some seconds.
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
    findings: list[Finding] = []
    for title, check in sections.items():
        print(f"\n{title}" if findings else title)
        for finding in guarded(check, title):
            findings.append(finding)
            show(f"  {finding}")
    print(f"\n{verdict(findings)}")
    return 1 if any(finding.state == "FAIL" for finding in findings) else 0


def guarded(check: Callable[[], Iterable[Finding]], title: str) -> Iterable[Finding]:
    """The findings of a check; if it raises, a failure in place of the rest, so that later checks still run."""
    try:
        yield from check()
    except Exception as error:  # a broken installation can raise anything
        yield Finding("FAIL", title, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def verdict(findings: Sequence[Finding]) -> str:
    """The last line of the report."""
    failed = [finding.subject for finding in findings if finding.state == "FAIL"]
    warned = [finding.subject for finding in findings if finding.state == "warn"]
    if failed:
        return f"failed: {', '.join(failed)}"
    return "all required checks passed" + (f"; warnings: {', '.join(warned)}" if warned else "")
