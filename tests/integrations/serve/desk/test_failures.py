"""Clients hear their own mistakes in words without places on the disk, and of all else a number of the log."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook import errors
from lossbook.integrations.serve.desk.failures import failure_of, without_paths
from lossbook.integrations.serve.ledger import Ledger
from lossbook.integrations.serve.operations import Answer, Operation
from lossbook.integrations.serve.refusals import Refused

from .server import Client, started

OPERATION = Operation("a", "optim_step", "m", 1, "seq", "", None)
PART = st.text("abcXYZ019._-", min_size=1, max_size=12)


@given(st.lists(PART, min_size=2, max_size=5), st.text("abc ,:'\"\n", max_size=20))
def test_no_place_on_the_disk_is_told(parts: list[str], words: str) -> None:
    path = "/" + "/".join(parts)
    told = without_paths(f"{words} {path} {words} '{path}'")
    assert path not in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "text",
    [
        "tinker://session-00:train:0/weights/a",
        "a loss per token/sequence",
        "see https://example.org/a/b",
        "1/2 of it",
        "0/3/4",
    ],
)
def test_what_is_no_place_is_told_as_it_is(text: str) -> None:
    assert without_paths(text) == text


def test_hidden_places_are_not_told_with_what_lies_below_them() -> None:
    assert without_paths("no /srv/x/owners/a.b/runs: ask", ["/srv/x"]) == "no the server's folder ask"


def test_a_users_mistake_is_told_and_a_bug_is_a_number_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    told = failure_of(errors.UnknownLossError("no loss 'x'"), OPERATION, [])
    assert (told.message, told.category) == ("no loss 'x'", "user")
    assert failure_of(Refused(400, "graph: too large"), OPERATION, []).category == "user"
    assert failure_of(Refused(503, "the database is locked"), OPERATION, []).category == "server"
    for error in (KeyError("secret"), errors.WorkerDiedError("secret"), MemoryError("secret"), OSError(28, "secret")):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            hidden = failure_of(error, OPERATION, [])
        assert hidden.category == "server"
        assert "secret" not in hidden.message
        incident = hidden.message.partition("incident ")[2].partition(":")[0]
        assert incident in caplog.text
        assert "secret" in caplog.text


class Shaky(Ledger):
    """A ledger whose database answers no other write."""

    finished = 0

    def finish(self, request_id: str, answer: Answer, **changes: Any) -> bool:
        """As in a ledger, every other time."""
        self.finished += 1
        if self.finished % 2:
            raise Refused(503, "the database is locked", retry_after=5)
        return super().finish(request_id, answer, **changes)


def test_a_database_in_trouble_delays_answers_and_loses_none(tmp_path: Path) -> None:
    async def main() -> None:
        desk = await started(tmp_path, Shaky)
        client = await Client.begin(desk)
        model = await client.model()
        losses = await model.train(2)
        assert losses[0] != losses[1]
        assert desk.trouble is None
        await desk.close(grace=5)

    asyncio.run(main())
