"""A process that takes and answers requests until it is killed, and prints what it would have told its clients.

`python killed_ledger.py URL START`: a line `taken NUMBER ID` or `done NUMBER ID` for each, after the ledger has it.
"""

from __future__ import annotations

import sys

from lossbook.integrations.serve.ledger import Ledger
from lossbook.integrations.serve.operations import Answer, Operation


def main(url: str, number: int) -> None:
    ledger = Ledger(url)
    ledger.recover()
    ledger.add_session("ann", "session", idempotency_key="one")
    scope = f"session:train:{number}"
    ledger.add_model("ann", scope, "session", {})
    say("ready", 0, "-")
    while True:
        number += 1
        request_id = ledger.submit(
            Operation("ann", "optim_step", scope, number, "seq", f"body {number}", None)
        ).request_id
        say("taken", number, request_id)
        ledger.begin([request_id])
        if number % 3:
            ledger.finish(request_id, Answer(f"result {number}".encode()), model_id=scope, executed_seq=number)
            say("done", number, request_id)


def say(what: str, number: int, request_id: str) -> None:
    print(what, number, request_id, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
