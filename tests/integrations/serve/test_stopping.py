"""A server is stopped: work ends, models go to the disk, and clients go on when it runs again."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from .process import Server, finished, program, run_program, serving

pytestmark = pytest.mark.slow


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ask(server: Server, path: str, **fields: Any) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of a request; its fields as JSON make it a POST."""
    data = json.dumps(fields).encode() if fields else None
    request = urllib.request.Request(f"{server.url}{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.loads(answer.read() or b"null"), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null"), dict(error.headers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_idle_server_ends_with_exit_code_0(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path / "root") as server:
        assert ask(server, "/readyz")[0] == 200
        assert server.stop(number) == 0
        assert '"stopped"' in server.said()


def test_a_client_trains_on_after_its_server_was_stopped_and_started_again(tmp_path: Path, server: Server) -> None:
    port = str(free_port())
    with serving(tmp_path / "root", "--port", port) as first:
        training = program(first, "interrupted", "half")
        assert training.stdout is not None
        assert training.stdout.readline().strip() == "half"
        assert first.stop() == 0
    with serving(tmp_path / "root", "--port", port):
        losses = finished(training, "\n")["losses"]
    undisturbed = program(server, "interrupted", "half")
    assert losses == finished(undisturbed, "\n")["losses"]


def busy(server: Server) -> tuple[str, str]:
    """Give the server work for a while; returns a session and the id of the last request."""
    _, session, _ = ask(server, "/api/v1/create_session", tags=[], sdk_version="0.38.0")
    session_id = session["session_id"]
    _, made, _ = ask(
        server, "/api/v1/create_sampling_session", session_id=session_id, sampling_session_seq_id=0, base_model="tiny"
    )
    promise: dict[str, Any] = {}
    for number in range(3):
        _, promise, _ = ask(
            server,
            "/api/v1/asample",
            sampling_session_id=made["sampling_session_id"],
            seq_id=number,
            num_samples=200,
            prompt={"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
            sampling_params={"max_tokens": 400, "stop": [], "temperature": 1.0},
        )
    return session_id, promise["request_id"]


def test_a_stop_with_work_under_way_refuses_more_and_ends_within_its_grace(tmp_path: Path) -> None:
    with serving(tmp_path / "root", "--grace-seconds", "5", "--hold-seconds", "1") as server:
        session_id, request_id = busy(server)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        statuses = []
        while server.process.poll() is None and time.monotonic() - begun < 300:
            try:
                status, told, headers = ask(server, "/api/v1/create_session", tags=[], sdk_version="0.38.0")
            except OSError:  # the connection was refused, or cut: the server is gone
                break
            if status == 503:
                statuses.append(status)
                assert headers["retry-after"]
                assert "stopped" in told["detail"]
                break
            time.sleep(0.02)
        assert statuses, "the server ended before it could refuse"
        assert server.process.wait(120) == 0
        assert "Traceback" not in server.said()
    with serving(tmp_path / "root", "--hold-seconds", "1") as again:
        status, told, _ = ask(again, "/api/v1/retrieve_future", request_id=request_id)
        assert status == 200
        assert told is None or "error" not in told or told["category"] == "server"
        assert ask(again, "/api/v1/session_heartbeat", session_id=session_id)[0] in (200, 404, 410)


def test_a_second_signal_ends_the_server_at_once(tmp_path: Path) -> None:
    with serving(tmp_path / "root", "--grace-seconds", "1000") as server:
        busy(server)
        server.process.send_signal(signal.SIGTERM)
        while '"stopping"' not in server.said():
            time.sleep(0.05)
        assert server.stop(signal.SIGTERM) == 128 + signal.SIGTERM


def test_no_key_is_in_anything_that_the_server_writes(tmp_path: Path) -> None:
    key, other = "tml-first-secret-of-the-tests", "tml-second-secret-of-the-tests"
    file = tmp_path / "keys.txt"
    file.write_text(f"{key}\n{other}\n")
    with serving(tmp_path / "root", "--keys-file", str(file)) as server:
        run_program(server, "keys", key=key)
        assert ask(server, "/api/v1/sessions")[0] == 401
        assert key not in "\n".join(server.lines)
        assert server.stop() == 0
    written = [path for path in (*(tmp_path / "root").rglob("*"), server.log) if path.is_file()]
    assert len(written) > 5
    for path in written:
        assert not any(secret.encode() in path.read_bytes() for secret in (key, other)), path
