"""Searching with hypothesis: for an example that fails a check, made as small as can be, or for one that passes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import NoSuchExample

from ...datums.errors import LossCheckError
from .checks import Check
from .loss_under_test import LossUnderTest

#: Examples per check, and whether the same ones are drawn every time.
PROFILES = {"ci": (15, True), "dev": (15, False), "nightly": (300, False)}
#: Failing examples tried while shrinking one.
MAX_SHRINKS = 100
#: Least number of examples for a check that needs one passing example; the search ends with the first that passes.
MIN_TRIES = 200

Failure = tuple[Mapping[str, Any], BaseException]


def search_for_failure(
    check: Check, loss: LossUnderTest, fixed: Mapping[str, Any], max_examples: int | None
) -> Failure | None:
    """The smallest failing example, with its error; None if the check passes on all."""
    best: list[Failure] = []
    shrinks = 0

    def attempt(example: Mapping[str, Any]) -> None:
        nonlocal shrinks
        shrinks += bool(best)
        if shrinks > MAX_SHRINKS and repr(example) != repr(best[-1][0]):
            return  # stop shrinking: hypothesis only replays the best example
        try:
            check.run(loss, **example, **fixed)
        except Exception as error:
            best.append((example, error))
            raise

    settings = with_settings(max_examples, Phase.shrink)
    search = settings(hypothesis.given(check.examples(loss))(attempt))
    if settings.derandomize:  # by the check's name: without it hypothesis takes the seed from the source text above
        search = hypothesis.seed(zlib.crc32(check.name.encode()))(search)
    try:
        search()
    except Exception as error:  # anything a loss raises on valid data is a failure to report
        return best[-1] if best else ({}, error)
    return None


def search_for_one(
    check: Check,
    loss: LossUnderTest,
    fixed: Mapping[str, Any],
    max_examples: int | None,
    passed: list[Mapping[str, Any]],
) -> Failure | None:
    """None if some example passes, else the last failure.

    passed: examples that passed for other items, which are tried first, since most show one item as well as another. An
    example that is drawn and passes is added.
    """
    last: list[Failure] = []

    def passes(example: Mapping[str, Any]) -> bool:
        try:
            check.run(loss, **example, **fixed)
        except Exception as error:  # as above
            last.append((example, error))
            return False
        return True

    if any(passes(example) for example in passed):
        return None
    settings = with_settings(max(max_examples or 0, MIN_TRIES))
    try:
        passed.append(hypothesis.find(check.examples(loss), passes, settings=settings))
    except NoSuchExample:
        return last[-1]
    except Exception as error:  # as above
        return last[-1] if last else ({}, error)
    return None


def with_settings(max_examples: int | None, *phases: Phase) -> hypothesis.settings:
    """The settings of hypothesis under the profile of LOSSBOOK_PROFILE."""
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
