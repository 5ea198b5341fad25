"""Laws of the functions beside a loss (advantages, KL estimators): run them on drawn examples and report the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossCheckError, did_you_mean
from ..report import CheckResult, Report
from ..run import excused
from ..search import with_settings

#: Tolerance of the laws: an epsilon of 1e-4 added to a deviation of 0.25 or more changes less.
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Law:
    """One law. run(function, example) raises LossCheckError when the example breaks it."""

    run: Callable[[Any, Any], None]
    examples: st.SearchStrategy[Any]


def report_laws(
    name: str,
    function: Any,
    laws: Mapping[str, Law],
    excuses: Mapping[str, str] | None,
    on_fail: Literal["raise", "report"],
    max_examples: int | None,
) -> Report:
    """Run all laws; `excuses`, `on_fail` and `max_examples` are those of `check_advantages`."""
    for excuse in excuses or {}:
        if excuse not in laws:
            raise LossCheckError(f"there is no law {excuse!r}.{did_you_mean(excuse, laws)} Laws: {', '.join(laws)}")
    results = tuple(excused(_run(function, n, law, max_examples), (excuses or {}).get(n)) for n, law in laws.items())
    report = Report(name, results)
    if on_fail == "raise" and not report.passed:
        lines = [f"{name} breaks {len(report.failures)} of {len(report)} laws", *map(str, report.failures)]
        error = LossCheckError("\n".join(lines))
        error.report = report
        raise error
    return report


def _run(function: Any, name: str, law: Law, max_examples: int | None) -> CheckResult:
    def attempt(example: Any) -> None:
        law.run(function, example)

    try:
        with_settings(max_examples, hypothesis.Phase.shrink)(hypothesis.given(law.examples)(attempt))()
    except Exception as error:  # anything the function raises on valid data is a failure to report
        message = str(error) if isinstance(error, LossCheckError) else f"{type(error).__name__}: {error}"
        return CheckResult(name, "failed", message, "", error)
    return CheckResult(name, "passed")


def name_of(function: Any) -> str:
    """A function's name for messages."""
    return getattr(function, "__name__", type(function).__name__)


def same_numbers(values: Tensor, expected: Tensor, what: str, example: Any, tolerance: float = TOLERANCE) -> None:
    """Raise LossCheckError unless both agree within `tolerance`, relative and absolute."""
    if not bool(torch.isclose(values, expected, rtol=tolerance, atol=tolerance).all()):
        raise LossCheckError(f"{what} {shown(values)}, not {shown(expected)}, for {example}")


def shown(values: Tensor) -> str:
    """Numbers for an error message."""
    return str([float(f"{value:.6g}") for value in values.tolist()])
