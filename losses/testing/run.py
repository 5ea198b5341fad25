"""Running checks: `check_loss`, `run_check`, `parametrize_with_checks`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import hypothesis
import torch
from hypothesis import HealthCheck, Phase
from hypothesis.errors import NoSuchExample

from ...datums.errors import LossCheckError, LossContractError, did_you_mean
from ..loss.mixture import Mixture
from ..registry import get_loss
from . import laws as claims
from .checks import Check
from .laws import contract, masking, numerics
from .laws import merging as law
from .loss_under_test import Subject
from .report import CheckResult, Report
from .reproduce import given_settings, reproducer

#: Every check, in the order they run. A loss that fails one of FIRST on its contract cannot be checked any further.
FIRST = (contract.UNREDUCED, law.METRICS_LAW)
CHECKS: tuple[Check, ...] = (*FIRST, *contract.CHECKS, *law.CHECKS, *masking.CHECKS, *numerics.CHECKS, *claims.CHECKS)
#: Examples a check, and whether the same ones are drawn every time.
PROFILES = {"ci": (15, True), "dev": (15, False), "nightly": (300, False)}
#: Failing examples looked at while making one smaller.
MAX_SHRINKS = 100
#: Examples in which something may show that it is alive, at least; the search ends with the first that does.
MIN_TRIES = 40

Inputs = Mapping[str, Sequence[float]]


def check_loss(
    loss: Any,
    *,
    expected_failed_checks: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "report"] = "raise",
    callback: Callable[[CheckResult], Any] | None = None,
    max_examples: int | None = None,
    checks: Iterable[str] | None = None,
    inputs: Inputs | None = None,
    laws: Mapping[str, Mapping[str, Any]] | None = None,
    **config: Any,
) -> Report:
    """Run every check that applies to a loss, in float64, on data drawn from its signature.

    loss: a registered id, "module:function", any loss function (registered or not), a function (data, logprobs_list), a
    `Loss` or a `Mixture`; `config` are its settings, reduction among them.
    expected_failed_checks: {check: reason}. Such a check must fail: a stale excuse is a failure.
    on_fail: "raise" a LossCheckError that holds the whole report (`error.report`), or "report" and leave it to the caller.
    callback: called with each CheckResult as it comes.
    max_examples: a check, instead of the profile's (environment variable LOSSBOOK_PROFILE: ci, dev or nightly).
    checks: run only these, by name.
    inputs: numbers that an input is drawn from, such as {"label": (0, 1)}, where its name does not tell.
    laws: {law: settings}: laws of its family (`lossbook.losses.testing.laws`) to hold it to beside those it claims.
    """
    for law_name in laws or {}:
        _check_named(law_name)
    subject = Subject(get_loss(loss, **config), inputs or {}, laws or {})
    excuses = dict(expected_failed_checks or {})
    for name in excuses:
        _check_named(name)
    results: list[CheckResult] = []
    chosen = [c for c in _chosen(checks) if checks is not None or c not in claims.CHECKS or c.name in subject.claims]
    for result in _results(subject, chosen, excuses, max_examples):
        results.append(result)
        if callback is not None:
            callback(result)
    report = Report(subject.name, tuple(results))
    if on_fail == "raise" and not report.passed:
        error = LossCheckError(_summary(report))
        error.report = report
        raise error
    return report


def run_check(check: str, loss: Any, **example: Any) -> None:
    """Run one check on one example, as a reproducer does. Raises LossCheckError, or whatever the loss raises."""
    laws = {check: example.pop("law")} if "law" in example else {}
    for key in ("outputs", "others"):
        if key in example:
            given = example[key].items()
            example[key] = {n: [torch.as_tensor(t, dtype=torch.float64) for t in ts] for n, ts in given}
    _check_named(check).run(Subject(get_loss(loss), {}, laws), **example)


def parametrize_with_checks(
    losses: Iterable[Any],
    *,
    expected_failed_checks: Mapping[str, Mapping[str, str]] | None = None,
    max_examples: int | None = None,
    checks: Iterable[str] | None = None,
    inputs: Inputs | None = None,
) -> Any:
    """A pytest mark that gives a test the arguments `loss` and `check`, one case a loss and check that applies.

        @parametrize_with_checks(["ppo", my_loss], expected_failed_checks={"my_loss": {"gradient": "straight-through"}})
        def test_my_losses(loss, check):
            check(loss)

    expected_failed_checks: by the loss's id or name.
    """
    import pytest

    cases: list[Any] = []
    chosen = _chosen(checks)
    for given in losses:
        subject = Subject(get_loss(given), inputs or {})
        excuses = dict((expected_failed_checks or {}).get(subject.name, {}))
        for check in chosen:
            if not check.skip(subject):
                bound = BoundCheck(check, excuses.get(check.name), max_examples, inputs or {})
                cases.append(pytest.param(subject.loss, bound, id=f"{_id(subject.loss)}-{check.name}"))
    return pytest.mark.parametrize(("loss", "check"), cases)


@dataclass(frozen=True)
class BoundCheck:
    """A check that a test calls with its loss."""

    check: Check
    excuse: str | None = None
    max_examples: int | None = None
    inputs: Inputs = field(default_factory=dict)

    def __call__(self, loss: Any) -> None:
        """Raise LossCheckError with a reproducer when the loss fails; mark the test as xfailed when that is expected."""
        import pytest

        result = excused(run_one(self.check, Subject(get_loss(loss), self.inputs), self.max_examples), self.excuse)
        if result.is_failure:
            raise LossCheckError(str(result))
        if result.status == "expected-failure":
            pytest.xfail(result.message)


def run_one(check: Check, subject: Subject, max_examples: int | None = None) -> CheckResult:
    """One check on examples that hypothesis draws, with the smallest failing example it can find."""
    reason = check.skip(subject)
    if reason:
        return CheckResult(check.name, "skipped", reason)
    for item in check.items(subject):
        fixed = {"item": item} if item else {}
        search = _search_for_one if check.needs_one else _search_for_failure
        failure = search(check, subject, fixed, max_examples)
        if failure is not None:
            example, error = failure
            message = str(error) if isinstance(error, LossCheckError) else f"{type(error).__name__}: {error}"
            law_settings = {"law": subject.claimed[check.name]} if check.name in subject.claimed else {}
            source = reproducer(check.name, subject.loss, {**example, **fixed, **law_settings}) if example else ""
            return CheckResult(check.name, "failed", message, source, error)
    return CheckResult(check.name, "passed")


def _results(
    subject: Subject, checks: Iterable[Check], excuses: Mapping[str, str], max_examples: int | None
) -> Iterator[CheckResult]:
    """One result a check; nothing more is run once the loss has broken its contract."""
    broken = ""
    for check in checks:
        if broken:
            yield CheckResult(check.name, "skipped", f"not run, for the loss breaks its contract: see {broken}")
            continue
        found = run_one(check, subject, max_examples)
        broken = check.name if check in FIRST and isinstance(found.error, LossContractError) else ""
        yield excused(found, excuses.get(check.name))


def excused(result: CheckResult, excuse: str | None) -> CheckResult:
    """The result in the light of an expectation that it fails."""
    if excuse is None:
        return result
    if result.status == "failed":
        return CheckResult(result.check, "expected-failure", excuse, result.reproducer, result.error)
    why = f"it is skipped: {result.message}" if result.status == "skipped" else "it passes"
    return CheckResult(
        result.check, "failed", f"stale excuse: {result.check} was expected to fail ({excuse}), but {why}"
    )


Failure = tuple[Mapping[str, Any], BaseException]


def _search_for_failure(
    check: Check, subject: Subject, fixed: Mapping[str, Any], max_examples: int | None
) -> Failure | None:
    """The smallest example found on which the check fails."""
    best: list[Failure] = []
    shrinks = 0

    def attempt(example: Mapping[str, Any]) -> None:
        nonlocal shrinks
        shrinks += bool(best)
        if shrinks > MAX_SHRINKS and repr(example) != repr(best[-1][0]):
            return  # small enough: only the best example still counts
        try:
            check.run(subject, **example, **fixed)
        except Exception as error:
            best.append((example, error))
            raise

    try:
        with_settings(max_examples, Phase.shrink)(hypothesis.given(check.examples(subject))(attempt))()
    except Exception as error:  # whatever a loss raises on good data is a finding, and is reported
        return best[-1] if best else ({}, error)
    return None


def _search_for_one(
    check: Check, subject: Subject, fixed: Mapping[str, Any], max_examples: int | None
) -> Failure | None:
    """None when some example passes, else the last failure."""
    last: list[Failure] = []

    def passes(example: Mapping[str, Any]) -> bool:
        try:
            check.run(subject, **example, **fixed)
        except Exception as error:  # as above
            last.append((example, error))
            return False
        return True

    settings = with_settings(max(max_examples or 0, MIN_TRIES))
    try:
        hypothesis.find(check.examples(subject), passes, settings=settings)
    except NoSuchExample:
        return last[-1]
    except Exception as error:  # as above
        return last[-1] if last else ({}, error)
    return None


def with_settings(max_examples: int | None, *phases: Phase) -> hypothesis.settings:
    profile = os.environ.get("LOSSBOOK_PROFILE", "ci")
    if profile not in PROFILES:
        raise LossCheckError(f"LOSSBOOK_PROFILE={profile!r} is none of {', '.join(PROFILES)}")
    examples, is_fixed = PROFILES[profile]
    return hypothesis.settings(
        max_examples=max_examples or examples,
        derandomize=is_fixed,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=[*HealthCheck],  # type: ignore[list-item]
        verbosity=hypothesis.Verbosity.quiet,
        phases=(Phase.generate, *phases),
    )


def _chosen(names: Iterable[str] | None) -> Sequence[Check]:
    return CHECKS if names is None else [_check_named(name) for name in names]


def _check_named(name: str) -> Check:
    for check in CHECKS:
        if check.name == name:
            return check
    names = [check.name for check in CHECKS]
    raise LossCheckError(f"there is no check {name!r}.{did_you_mean(name, names)} Checks: {', '.join(names)}")


def _summary(report: Report) -> str:
    failures = report.failures
    return f"{report.loss} fails {len(failures)} of {len(report)} checks\n" + "\n".join(
        str(result) for result in failures
    )


def _id(loss: Any) -> str:
    """A loss's id with the settings that are not its defaults."""
    if isinstance(loss, Mixture):
        return loss.name.replace(" ", "")
    settings = ",".join(f"{key}={value}" for key, value in given_settings(loss).items())
    return f"{loss.name}({settings})" if settings else loss.name
