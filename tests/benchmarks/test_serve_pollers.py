"""Two hundred clients that poll a server process leave its memory as it is, and the answers to others quick."""

from __future__ import annotations

import asyncio
import importlib

import pytest


@pytest.mark.slow
def test_two_hundred_clients_that_poll_leave_memory_flat_and_short_answers_quick() -> None:
    (row,) = [asyncio.run(importlib.import_module("serve_pollers").run(clients=200, seconds=5, hold=0.5))]
    assert row["statuses"] == "200 408"
    assert row["polls"] > 400, "all have polled more than once"
    assert row["growth"] < 1.05
    assert row["MiB after"] - row["MiB before"] < 60
    assert row["short ms, median"] < 2000, "on a machine that does much else"
