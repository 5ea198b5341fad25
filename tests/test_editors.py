"""What an editor knows of lossbook after the documented installation: a type checker reads a user's script against it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import lossbook
import lossbook as lb
from lossbook.losses import Loss, Mixture, Positive, stats
from lossbook.losses.testing import check_loss
from lossbook.losses.supervised import poly1

reveal_type(lossbook.get_loss("grpo"))
reveal_type(lossbook.get_loss("trl:grpo", clip_high=1.28))
reveal_type(lossbook.get_loss("prime:default"))
reveal_type(lossbook.get_loss("one_of_my_own"))
reveal_type(0.9 * lb.get_loss("grpo") + 0.1 * lb.get_loss("cross_entropy"))
training = lb.ServiceClient().create_lora_training_client(base_model="tiny", rank=8)
reveal_type(training)
datum = lb.datum_from_tokens_weights([1, 2], [0.0, 1.0])
future = training.forward_backward([datum], "ppo")
reveal_type(future.result().metrics)
training.forward_backwards
"""


def diagnostics(script: Path) -> list[dict]:
    """What pyright says about a script outside the repository, with the packages of the interpreter that runs the tests."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(script)]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)["generalDiagnostics"]


@pytest.mark.slow
def test_a_type_checker_resolves_lossbook_and_knows_what_its_calls_return(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    said = diagnostics(script)
    types = [one["message"] for one in said if one["severity"] == "information"]
    assert [text.partition('" is "')[2].rstrip('"') for text in types] == [
        "Loss",
        "Loss",
        "Mixture",
        "Loss | Mixture",
        "Mixture",
        "TrainingClient",
        "dict[str, float]",
    ]
    (error,) = [one["message"] for one in said if one["severity"] == "error"]
    assert 'Cannot access attribute "forward_backwards"' in error


#: A place where an id is due is `""`.
UNFINISHED = """
import lossbook as lb
from lossbook.integrations.transformers import with_loss

lb.get_loss("")
lb.describe_loss("")
lb.rollout_correction("")
with_loss(object, "")
training = lb.ServiceClient().create_lora_training_client("tiny")
training.forward([], loss_fn="")
training.forward_backward([], "")
"""


class LanguageServer:
    """pyright as an editor runs it, over a folder with one script."""

    def __init__(self, folder: Path) -> None:
        start = "import sys; from pyright.langserver import entrypoint; sys.exit(entrypoint())"
        command = [sys.executable, "-c", start, "--stdio"]
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        root = {"uri": folder.as_uri(), "name": "script"}
        capabilities = {"workspace": {"configuration": True}}
        self.answer(
            "initialize", processId=None, rootUri=root["uri"], workspaceFolders=[root], capabilities=capabilities
        )
        self.send(method="initialized", params={})

    def end(self) -> None:
        """End it with the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def send(self, **message: Any) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.process.stdin.flush()

    def answer(self, method: str, **params: Any) -> Any:
        """What it answers to a request; it may ask for its own settings meanwhile."""
        self.send(id=method, method=method, params=params)
        assert self.process.stdout is not None
        while True:
            length = 0
            while header := self.process.stdout.readline().strip():
                length = int(header.rpartition(b":")[2]) if header.startswith(b"Content-Length") else length
            assert length, "the language server ended"
            message = json.loads(self.process.stdout.read(length))
            if message.get("id") == method and "method" not in message:
                return message["result"]
            if "id" in message and "method" in message:
                settings = {"python": {"pythonPath": sys.executable}}
                asked = [
                    settings.get(item.get("section"), {}) for item in (message.get("params") or {}).get("items", [])
                ]
                self.send(id=message["id"], result=asked)


@pytest.mark.slow
def test_editors_complete_the_ids_of_losses_wherever_one_is_due(tmp_path: Path) -> None:
    script = tmp_path / "unfinished.py"
    script.write_text(UNFINISHED, encoding="utf-8")
    server = LanguageServer(tmp_path)
    stop = threading.Timer(240, server.end)  # a hang ends the test with "the language server ended"
    stop.start()
    try:
        document = {"uri": script.as_uri(), "languageId": "python", "version": 1, "text": UNFINISHED}
        server.send(method="textDocument/didOpen", params={"textDocument": document})
        places = [(n, line.index('""') + 1) for n, line in enumerate(UNFINISHED.splitlines()) if '""' in line]
        assert len(places) == 6
        for line, character in places:
            where = {"textDocument": document, "position": {"line": line, "character": character}}
            offered = server.answer("textDocument/completion", **where)
            labels = {item["label"].strip('"') for item in (offered or {}).get("items", ())}
            assert labels >= {"grpo", "cross_entropy", "dpo"}, UNFINISHED.splitlines()[line]
    finally:
        stop.cancel()
        server.end()
        server.process.communicate()


def test_the_installation_is_one_that_editors_follow() -> None:
    # A path file or a copy in site-packages; pip's import hook alone is invisible to them. `make` installs it so.
    import lossbook

    places = [Path(path) / "lossbook" / "__init__.py" for path in sys.path]
    assert any(place.exists() for place in places), "lossbook is imported through a hook: install it with `make lint`"
    assert Path(lossbook.__file__).resolve() == ROOT / "__init__.py"
