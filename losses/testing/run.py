"""Running checks: `check_loss`, `run_check`, `parametrize_with_checks`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from ...datums.errors import LossCheckError, LossContractError, did_you_mean
from ..loss.loss import Loss
from ..registry import get_loss
from ..spec.top import TOP_TOKENS
from . import laws as family_laws
from .checks import Check
from .laws import contract, data, masking, merging, mixtures, numerics, state
from .loss_under_test import LossUnderTest
from .outside import restored
from .report import CheckResult, Report
from .reproduce import given_settings, reproducer
from .search import search_for_failure, search_for_one

#: A loss that raises LossContractError in one of these is not checked further.
FIRST = (contract.UNREDUCED, merging.METRICS_LAW)
#: Every check, in the order they run.
CHECKS: tuple[Check, ...] = (
    *FIRST,
    *contract.CHECKS,
    *state.CHECKS,
    *merging.CHECKS,
    *mixtures.CHECKS,
    *masking.CHECKS,
    *data.CHECKS,
    *numerics.CHECKS,
    *family_laws.CHECKS,
)
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

    loss: a registered id, "module:function", any loss function (registered or not), a fn(data, logprobs_list), a `Loss`
    or a `Mixture`, whose parts get the checks that are about one loss (results `part/check`). config: its settings, including the reduction.
    expected_failed_checks: {check: reason}, {"part/check": reason} for a part of a mixture. Such a check must fail; if it
    passes, that is a failure (a stale excuse).
    on_fail: "raise" a LossCheckError that holds the whole report (`error.report`), or "report" to only return it.
    callback: called with each CheckResult as it is made.
    max_examples: examples per check, instead of the profile's (environment variable LOSSBOOK_PROFILE: ci, dev, nightly).
    checks: names of the only checks to run.
    inputs: values to draw an input from, such as {"label": (0, 1)}, where its name does not say.
    laws: {law: settings}: family laws (`lossbook.losses.testing.laws`) to check besides those it is registered with.
    """
    for law_name in laws or {}:
        _check_named(law_name)
    loss_under_test = LossUnderTest(get_loss(loss, **config), inputs or {}, laws or {})
    excuses = dict(expected_failed_checks or {})
    for name in excuses:
        _check_named(name.rpartition("/")[2])
    results: list[CheckResult] = []
    for result in _results_of_all(loss_under_test, checks, excuses, max_examples):
        results.append(result)
        if callback is not None:
            callback(result)
    report = Report(loss_under_test.name, tuple(results))
    if on_fail == "raise" and not report.passed:
        error = LossCheckError(_summary(report))
        error.report = report
        raise error
    return report


def run_check(check: str, loss: Any, **example: Any) -> None:
    """Run one check on one example, as a reproducer does. Raises LossCheckError, or what the loss raises."""
    laws = {check: example.pop("law")} if "law" in example else {}
    for key in ("outputs", "others"):
        if key in example:
            dtypes = {name: torch.int64 if name == TOP_TOKENS else torch.float64 for name in example[key]}
            example[key] = {n: [torch.as_tensor(t, dtype=dtypes[n]) for t in ts] for n, ts in example[key].items()}
    _check_named(check).run(LossUnderTest(get_loss(loss), {}, laws), **example)


def parametrize_with_checks(
    losses: Iterable[Any],
    *,
    expected_failed_checks: Mapping[str, Mapping[str, str]] | None = None,
    max_examples: int | None = None,
    checks: Iterable[str] | None = None,
    inputs: Inputs | None = None,
) -> Any:
    """A pytest mark with the arguments `loss` and `check`: one case for each loss and each check that applies to it.

        @parametrize_with_checks(["ppo", my_loss], expected_failed_checks={"my_loss": {"gradient": "straight-through"}})
        def test_my_losses(loss, check):
            check(loss)

    expected_failed_checks: {id or name of the loss: {check: reason}}.
    """
    import pytest

    cases: list[Any] = []
    chosen = _chosen(checks)
    for given in losses:
        loss = LossUnderTest(get_loss(given), inputs or {})
        excuses = dict((expected_failed_checks or {}).get(loss.name, {}))
        own = [(loss, check) for check in chosen if not not_checked(check, loss)]
        for part, check in [*own, *_left_to_parts(loss, chosen)]:
            bound = BoundCheck(check, excuses.get(check.name), max_examples, inputs or {})
            name = _id(loss.wrapped) if part is loss else f"{_id(loss.wrapped)}/{_id(part.wrapped)}"
            cases.append(pytest.param(part.wrapped, bound, id=f"{name}-{check.name}"))
    return pytest.mark.parametrize(("loss", "check"), cases)


@dataclass(frozen=True)
class BoundCheck:
    """The argument `check` of a parametrized test, to be called with its loss."""

    check: Check
    excuse: str | None = None
    max_examples: int | None = None
    inputs: Inputs = field(default_factory=dict)

    def __call__(self, loss: Any) -> None:
        """Raise LossCheckError with a reproducer when the check fails; mark the test as xfailed when that is expected."""
        import pytest

        loss_under_test = LossUnderTest(get_loss(loss), self.inputs)
        result = excused(run_one(self.check, loss_under_test, self.max_examples), self.excuse)
        if result.is_failure:
            raise LossCheckError(str(result))
        if result.status == "expected-failure":
            pytest.xfail(result.message)


def run_one(check: Check, loss: LossUnderTest, max_examples: int | None = None) -> CheckResult:
    """One check on examples that hypothesis draws; a failure holds the smallest failing example."""
    reason = not_checked(check, loss)
    if reason:
        return CheckResult(check.name, "skipped", reason)
    passed: list[Mapping[str, Any]] = []
    for item in check.items(loss):
        fixed = {"item": item} if item else {}
        with restored():
            if check.needs_one:
                failure = search_for_one(check, loss, fixed, max_examples, passed)
            else:
                failure = search_for_failure(check, loss, fixed, max_examples)
        if failure is not None:
            example, error = failure
            message = str(error) if isinstance(error, LossCheckError) else f"{type(error).__name__}: {error}"
            law_settings = {"law": loss.extra_laws[check.name]} if check.name in loss.extra_laws else {}
            source = reproducer(check.name, loss.wrapped, {**example, **fixed, **law_settings}) if example else ""
            return CheckResult(check.name, "failed", message, source, error)
    return CheckResult(check.name, "passed", loss.note)


def _results_of_all(
    loss: LossUnderTest, checks: Iterable[str] | None, excuses: Mapping[str, str], max_examples: int | None
) -> Iterator[CheckResult]:
    """The results of the loss; of a mixture then those of its parts, as `part/check`, for what only a part can answer."""
    chosen = _chosen(checks)
    if checks is None:
        chosen = [check for check in chosen if check not in family_laws.CHECKS or check.name in loss.laws]
    yield from _results(loss, chosen, excuses, max_examples)
    for part, check in _left_to_parts(loss, _chosen(checks)):
        result = replace(run_one(check, part, max_examples), check=f"{part.name}/{check.name}")
        yield excused(result, excuses.get(result.check))


def _left_to_parts(loss: LossUnderTest, checks: Iterable[Check]) -> list[tuple[LossUnderTest, Check]]:
    """(part, check): what applies to a part of a mixture, and not to the mixture."""
    if loss.only is not None:
        return []
    left = [check for check in checks if not_checked(check, loss)]
    parts = [LossUnderTest(part, loss.inputs) for part in loss.parts]
    return [(part, check) for part in parts for check in left if not not_checked(check, part)]


def not_checked(check: Check, loss: LossUnderTest) -> str:
    """Why a check does not apply to a loss; "" if it does."""
    exception = loss.laws.get(check.name)
    return check.skip(loss) or (f"the loss says why not: {exception}" if isinstance(exception, str) else "")


def _results(
    loss: LossUnderTest, checks: Iterable[Check], excuses: Mapping[str, str], max_examples: int | None
) -> Iterator[CheckResult]:
    """One result per check; once the loss has broken its contract, the remaining checks are skipped."""
    broken = ""
    for check in checks:
        if broken:
            yield CheckResult(check.name, "skipped", f"not run, because the loss breaks its contract: see {broken}")
            continue
        result = run_one(check, loss, max_examples)
        broken = check.name if check in FIRST and isinstance(result.error, LossContractError) else ""
        yield excused(result, excuses.get(check.name))


def excused(result: CheckResult, excuse: str | None) -> CheckResult:
    """The result of a check that is expected to fail, if there is an excuse for it."""
    if excuse is None:
        return result
    if result.status == "failed":
        return CheckResult(result.check, "expected-failure", excuse, result.reproducer, result.error)
    why = f"it is skipped: {result.message}" if result.status == "skipped" else "it passes"
    return CheckResult(
        result.check, "failed", f"stale excuse: {result.check} was expected to fail ({excuse}), but {why}"
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
    """A loss's id, with the settings that differ from its defaults."""
    if not isinstance(loss, Loss):
        return loss.name.replace(" ", "")
    settings = ",".join(f"{key}={value}" for key, value in given_settings(loss).items())
    return f"{loss.name}({settings})" if settings else loss.name
