"""Tinker's exceptions are made, caught and pickled as the SDK's, and failures of lossbook become them."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from typing import Any

import httpx
import pytest

from lossbook.datums.errors import LossConfigError, ModelError, WorkerDiedError
from lossbook.integrations import tinker
from lossbook.integrations.tinker.errors import as_tinker_error, refusal

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    sdk = pytest.importorskip("tinker", reason="the official SDK comes with lossbook[dev]")

NAMES = sorted(
    name for name in sdk.__all__ if inspect.isclass(getattr(sdk, name)) and issubclass(getattr(sdk, name), Exception)
)
RESPONSE = httpx.Response(418, request=httpx.Request("GET", "http://somewhere"))


def made(t: Any, name: str) -> Any:
    """An error as code of the SDK makes it."""
    kind = getattr(t, name)
    if name in ("TinkerError", "ExperimentalWarning"):
        return kind("why")
    if name == "RequestFailedError":
        return kind("why", "request", t.types.RequestErrorCategory.User)
    if name == "APIError":
        return kind("why", RESPONSE.request, body=None)
    if name == "APIResponseValidationError":
        return kind(RESPONSE, {"a": 1})
    if name == "APIConnectionError":
        return kind(request=RESPONSE.request)
    if name == "APITimeoutError":
        return kind(RESPONSE.request)
    return kind("why", response=RESPONSE, body={"a": 1})


@pytest.mark.parametrize("name", NAMES)
def test_an_error_stands_where_it_stands_in_the_sdk(name: str) -> None:
    ours = [kind.__name__ for kind in getattr(tinker, name).__mro__]
    assert ours == [kind.__name__ for kind in getattr(sdk, name).__mro__]
    if name in ("TinkerError", "ExperimentalWarning"):
        return  # made as any exception is
    assert (
        inspect.signature(getattr(tinker, name)).parameters.keys()
        == inspect.signature(getattr(sdk, name)).parameters.keys()
    )


@pytest.mark.parametrize("name", sorted({*NAMES} - {"APIError"}))  # the SDK's own APIError cannot be copied
def test_an_error_carries_what_it_carries_in_the_sdk_also_when_it_is_copied(name: str) -> None:
    ours, theirs = made(tinker, name), made(sdk, name)
    assert vars(ours).keys() == vars(theirs).keys()
    assert getattr(ours, "status_code", None) == getattr(theirs, "status_code", None)
    for again in (copy.copy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(again) is type(ours)
        assert str(again) == str(ours)
        assert vars(again).keys() == vars(ours).keys()


def test_refusals_and_timeouts_need_no_package_that_only_the_sdk_installs() -> None:
    assert type(refusal(tinker.NotFoundError, "x").response).__module__ == tinker.Timeout.__module__ == "httpx2"


@pytest.mark.parametrize(("kind", "status"), [(tinker.NotFoundError, 404), (tinker.BadRequestError, 400)])
def test_a_refusal_has_the_status_of_its_class(kind: Any, status: int) -> None:
    cause = ModelError("beyond")
    error = refusal(kind, "no run of that name", cause)
    assert (error.status_code, error.response.status_code, error.message) == (status, status, "no run of that name")
    assert error.__cause__ is cause


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (ModelError("too long"), "user"),
        (LossConfigError("no beta"), "user"),
        (WorkerDiedError("gone"), "server"),
        (OSError("full"), "server"),
        (MemoryError(), "server"),
    ],
)
def test_a_failure_says_whose_mistake_it_was(error: Exception, category: str) -> None:
    failed = as_tinker_error(error, "call 3")
    assert isinstance(failed, tinker.RequestFailedError)
    assert (failed.category, failed.message, failed.request_id, failed.__cause__) == (
        category,
        str(error),
        "call 3",
        error,
    )


@pytest.mark.parametrize("error", [ZeroDivisionError(), refusal(tinker.NotFoundError, "x"), KeyboardInterrupt()])
def test_what_lossbook_did_not_raise_stays_itself(error: BaseException) -> None:
    assert as_tinker_error(error, "call") is error


def test_a_note_about_the_call_before_is_part_of_the_message() -> None:
    error = ModelError("too long.")
    error.add_note("optim_step did not run.")
    assert str(as_tinker_error(error, "call")) == "too long. optim_step did not run."
