"""A server that is killed at any moment: whatever a client was told is in the ledger that the next one opens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from lossbook.integrations.serve.ledger import Ledger
from lossbook.integrations.serve.operations import Answer, Operation

CHILD = Path(__file__).with_name("killed_ledger.py")
KILLS = 20


def killed(url: str, start: int, lines: int, random: Random) -> list[tuple[str, int, str]]:
    """What a child said until it was killed: after so many lines, and some thousandths of a second."""
    command = [sys.executable, "-P", str(CHILD), url, str(start)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines + 1)]
        try:
            child.wait(random.uniform(0, 0.01))
        except subprocess.TimeoutExpired:
            child.kill()
        said += child.stdout.readlines()
    assert child.returncode == -9
    rows = [line.split() for line in said if line.endswith("\n")]
    assert rows[0][0] == "ready"
    return [(what, int(number), request_id) for what, number, request_id in rows[1:]]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_that_was_told_to_a_client_is_lost_by_a_killed_server(new_url: Callable[[], str]) -> None:
    random, url = Random(7), new_url()
    told: dict[int, tuple[str, bool]] = {}
    for kill in range(KILLS):
        start = 1000 * kill
        for what, number, request_id in killed(url, start, random.randrange(30), random):
            told[number] = (request_id, what == "done")
        ledger = Ledger(url)  # the lock of a killed process went with it
        ledger.recover()
        of_this = {number for number in told if number > start}
        scope = f"session:train:{start}"
        model = ledger.model("ann", scope)
        steps = [number for number in of_this if told[number][1]]
        assert model.executed_seq >= max(steps, default=0), "a step that was answered is known to be executed"
        assert (model.state == "lost") == (model.executed_seq > 0)
        for number, (request_id, is_done) in told.items():
            answer, result = ledger.answer("ann", request_id), Answer(f"result {number}".encode())
            if is_done:
                assert answer == result
            elif answer != result:  # which it is when the kill came between the ledger and the client
                assert answer is not None
                assert (answer.category, answer.body) == ("server", b"")
        for number in of_this:
            again = Operation("ann", "optim_step", scope, number, "seq", f"body {number}", None)
            submission = ledger.submit(again)
            assert (submission.request_id, submission.is_new) == (told[number][0], False)
            assert ledger.begin([submission.request_id]) == []
        ledger.close()
