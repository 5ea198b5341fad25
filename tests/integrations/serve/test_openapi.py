"""Requests made up from the OpenAPI document, valid and not, against a server process with a real desk."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from .process import Server

schemathesis = pytest.importorskip("schemathesis")
pytestmark = pytest.mark.slow
EXAMPLES = 25


@schemathesis.serializer("application/x-protobuf")
def protobuf(context: Any, value: Any) -> bytes:
    """Any bytes: what is no message is a request too."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


def test_no_request_is_answered_by_a_server_error(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            asked += _check(operation, mode)
    assert asked > 1000
    assert '"exception"' not in server.said()


def _check(operation: Any, mode: Any) -> int:
    """Ask an address many things; returns how many."""
    statuses: list[int] = []

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call(timeout=300)
        statuses.append(response.status_code)
        assert response.status_code < 500, f"{operation.label}: {response.status_code} {response.content[:300]!r}"
        if response.status_code >= 400:
            body = json.loads(response.content)
            assert "\n" not in str(body.get("detail", "")), operation.label
            assert "Traceback" not in str(body), operation.label

    with contextlib.suppress(Unsatisfiable):  # nothing can be made up that is wrong in this way
        ask()
    return len(statuses)
