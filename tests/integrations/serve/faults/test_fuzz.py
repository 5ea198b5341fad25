"""Damaged messages of a model's own requests, over HTTP: each is refused, fails by its sender's fault, or runs; the model goes on."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..process import Server
from .client import PROTOBUF, Client, is_one_line, sample_body

pytestmark = pytest.mark.slow
EXAMPLES = 100
#: What a length may claim to be, what nests without an end, and numbers that are none.
ODD = [b"\xff" * 9 + b"\x01", b"\x1a\xff\xff\xff\xff\x0f", b"\x0b" * 200, b"\x1a\x80\x01" * 50, b"\x00\x00\xc0\x7f" * 4]


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[float, int, bytes]]:
    """Where, over how many bytes, and with what a message is damaged."""
    odd = st.binary(max_size=8) | st.sampled_from(ODD)
    return draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), odd), min_size=1, max_size=4))


def damaged(message: bytes, where: list[tuple[float, int, bytes]]) -> bytes:
    """The message with the damage."""
    data = bytearray(message)
    for place, length, new in where:
        at = int(place * len(data))
        data[at : at + length] = new
    return bytes(data)


def is_answered(client: Client, path: str, body: bytes, kind: str) -> None:
    """Send it, look at what comes of it."""
    answer = client.http.post(f"/api/v1/{path}", content=body, headers={"content-type": kind})
    assert answer.status_code in (200, 400, 404, 413, 415, 422), (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert is_one_line(answer), answer.text
        return
    poll = client.poll(answer.json()["request_id"])
    assert poll.status_code in (200, 408), poll.text
    if poll.headers["content-type"] != PROTOBUF and "error" in poll.json():
        told = poll.json()
        assert told["category"] == "user", told
        assert "\n" not in told["error"]


def test_damaged_messages_are_refused_or_fail_by_their_senders_fault(server: Server) -> None:
    """Each is the next request of a model, whose number is used in the end whatever became of it."""
    with Client(server.url) as client:
        model, numbers = client.model(), itertools.count(1)

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=(HealthCheck.too_slow,))
        @given(where=damages(), forward=st.booleans())
        def send(where: list[tuple[float, int, bytes]], forward: bool) -> None:
            number = next(numbers)
            is_answered(client, "forward_backward", damaged(model.backward(number, forward=forward), where), PROTOBUF)
            is_answered(client, "forward_backward", model.backward(number, forward=True), PROTOBUF)

        send()
        model.train(next(numbers))
        assert '"exception"' not in server.said()


def test_damaged_json_is_refused_or_fails_by_its_senders_fault(server: Server) -> None:
    with Client(server.url) as client:
        model, numbers = client.model(), itertools.count(1)
        sampler = client.sampler(model.session_id)

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=(HealthCheck.too_slow,))
        @given(where=damages(), which=st.integers(0, 3))
        def send(where: list[tuple[float, int, bytes]], which: int) -> None:
            number = next(numbers)
            bodies = [
                ("optim_step", model.step(number)),
                ("save_weights", {"model_id": model.model_id, "seq_id": number, "path": f"a{number}"}),
                (
                    "load_weights",
                    {"model_id": model.model_id, "seq_id": number, "path": "tinker://a/weights/b", "optimizer": True},
                ),
                ("asample", sample_body(sampler, number)),
            ]
            path, body = bodies[which]
            is_answered(client, path, damaged(json.dumps(body).encode(), where), "application/json")
            is_answered(client, "forward_backward", model.backward(number, forward=True), PROTOBUF)

        send()
        model.train(next(numbers))
        assert '"exception"' not in server.said()
