"""Logs are JSON, and no key is in them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from lossbook.integrations.serve.http import logs

KEY = "tml-a-key-of-this-server"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    logs.configure([KEY, "short-key"], stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_keys_are_taken_out_of_texts_values_and_tracebacks(lines: io.StringIO) -> None:
    log = logging.getLogger("any.library")
    log.warning("given %s and postgresql://user:secret@host/db", KEY)
    log.warning("more", extra={"headers": {"X-API-Key": "anything", "also": [f"Bearer {KEY}"]}})
    try:
        raise ValueError(f"{KEY} short-key tml-someone-elses-key eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.abc")
    except ValueError:
        log.exception("failed")
    text = lines.getvalue()
    for secret in (KEY, "short-key", "secret@", "tml-someone", "eyJhbGci", "anything"):
        assert secret not in text
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 3
    assert {"event", "level", "timestamp"} <= set(rows[0])
    assert "ValueError" in rows[2]["exception"]


def test_lines_of_a_request_have_its_id(lines: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(request="abc"):
        logging.getLogger("lossbook.desk").info("loaded")
    assert json.loads(lines.getvalue())["request"] == "abc"
