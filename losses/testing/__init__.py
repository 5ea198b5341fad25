"""The conformance kit: one call checks a loss against the laws that every loss must obey.

    from torch import Tensor
    from lossbook.losses import stats
    from lossbook.losses.testing import check_loss

    def likelihood(logprobs: Tensor, *, floor: float = -20.0):
        return -logprobs.clamp(min=floor), {"floored": stats.mean(logprobs < floor)}

    print(check_loss(likelihood))

The function need not be registered, and no data or model is needed: datums are drawn from its signature. A failing
check prints the smallest failing example as Python source that reproduces the failure. In pytest:

    from lossbook.losses.testing import parametrize_with_checks

    @parametrize_with_checks([likelihood, "ppo"])
    def test_my_losses_obey_the_laws(loss, check):
        check(loss)

A check that a loss fails for a good reason is excused by name: `expected_failed_checks={"gradient": "straight-through"}`.
An excuse that is no longer needed is a failure. `check_advantages`, `check_kl_estimator` and `check_divergence` check the
functions beside a loss. `strategies` draws datums for your own tests; `plugin` adds the pytest fixture `check_loss` and
the option `--lossbook-profile`. Needs the extra `lossbook[testing]` (hypothesis).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import strategies
    from .beside.advantages import check_advantages
    from .beside.divergence import check_divergence
    from .beside.kl import check_kl_estimator
    from .report import CheckResult, Report
    from .run import CHECKS, check_loss, parametrize_with_checks, run_check

#: The module of each public name. Loaded on first use, because `plugin` and `report` do not need hypothesis.
_HOMES = {
    "CHECKS": "run",
    "CheckResult": "report",
    "Report": "report",
    "check_advantages": "beside.advantages",
    "check_kl_estimator": "beside.kl",
    "check_divergence": "beside.divergence",
    "check_loss": "run",
    "parametrize_with_checks": "run",
    "run_check": "run",
    "strategies": "strategies",
}

__all__ = [
    "CHECKS",
    "CheckResult",
    "Report",
    "check_advantages",
    "check_divergence",
    "check_kl_estimator",
    "check_loss",
    "parametrize_with_checks",
    "run_check",
    "strategies",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_HOMES[name]}", __name__)
    return module if name == _HOMES[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
