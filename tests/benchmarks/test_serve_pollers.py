"""Two hundred clients that poll a server process leave its memory as it is, and others are answered meanwhile."""

from __future__ import annotations

import asyncio
import importlib

import pytest


@pytest.mark.slow
def test_two_hundred_clients_that_poll_leave_memory_flat_and_others_are_answered() -> None:
    (row,) = [asyncio.run(importlib.import_module("serve_pollers").run(clients=200, seconds=5, hold=0.5))]
    assert row["statuses"] == "200 408"
    assert row["polls"] > 200, "one of each at least, and some have polled again"
    assert row["growth"] < 1.05
    assert row["MiB after"] - row["MiB before"] < 60
