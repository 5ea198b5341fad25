"""Requests that are sent twice, late, backwards, or lost on their way: a server process runs each once, and says what became of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ..graphs.encoding import uploaded
from ..process import Server
from .client import TEXTS, Client, at_once, backward_body, is_one_line, logprobs, metric, sample_body

pytestmark = pytest.mark.slow


def trained(client: Client, steps: int) -> list[float]:
    """Logprobs of a new model after so many undisturbed steps."""
    model = client.model()
    for number in range(steps):
        model.train(2 * number + 1)
    return model.logprobs(2 * steps + 1)


def test_a_request_sent_again_has_the_first_ones_id_and_answer_and_runs_once(client: Client) -> None:
    model = client.model()
    for path, body in (("forward_backward", model.backward(1)), ("optim_step", model.step(2))):
        first = client.told(path, body)["request_id"]
        answer = client.result(first).content
        assert client.told(path, body)["request_id"] == first
        assert client.result(first).content == answer
    assert model.logprobs(3) == trained(client, 1)


def test_fifty_clients_that_send_one_request_at_once_get_one_id_and_it_runs_once(client: Client) -> None:
    model = client.model()
    for path, body in (("forward_backward", model.backward(1)), ("optim_step", model.step(2))):
        answers = at_once(50, lambda path=path, body=body: client.post(path, body))
        assert {answer.status_code for answer in answers} == {200}
        (request_id,) = {answer.json()["request_id"] for answer in answers}
        results = at_once(50, lambda request_id=request_id: client.result(request_id).content)
        assert len(set(results)) == 1
    assert model.logprobs(3) == trained(client, 1)


def test_a_number_of_another_request_is_refused_for_good(client: Client) -> None:
    model = client.model()
    model.train(1)
    for path, body in (
        ("optim_step", model.step(2, 0.5)),
        ("optim_step", model.step(1)),
        ("forward_backward", model.backward(1, weight=2.0)),
        ("forward_backward", model.backward(2)),
    ):
        for _ in range(2):
            answer = client.post(path, body)
            assert answer.status_code == 400, "409 would be sent again for five minutes"
            assert is_one_line(answer)


@contextlib.contextmanager
def deaf(server: Server) -> Iterator[str]:
    """The address of a proxy that hands one request to the server, hears the whole answer, and then cuts the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken, _ = listener.accept()
                    with taken, socket.create_connection(("127.0.0.1", server.port)) as onward:
                        taken.settimeout(0.3)
                        with contextlib.suppress(TimeoutError):
                            while part := taken.recv(65536):
                                onward.sendall(part)
                        assert onward.recv(65536), "the server answers, and nobody hears it"

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_step_whose_answer_is_lost_is_one_step(client: Client, server: Server) -> None:
    """The socket dies after the server has answered the submission, and again after the step has run."""
    model = client.model()
    model.logprobs(1, forward=False)
    with deaf(server) as address, Client(address) as unlucky:
        for _ in range(2):
            with pytest.raises(Exception, match=r"(?i)disconnect|reset|closed|peer"):
                unlucky.post("optim_step", model.step(2))
        request_id = client.told("optim_step", model.step(2))["request_id"]
        client.result(request_id)
        with pytest.raises(Exception, match=r"(?i)disconnect|reset|closed|peer"):
            unlucky.poll(request_id)
    assert client.told("optim_step", model.step(2))["request_id"] == request_id
    assert client.outcome(request_id)["metrics"]
    assert model.logprobs(3) == trained(client, 1)


def test_chunks_that_arrive_backwards_run_by_number(client: Client) -> None:
    inorder, backwards = client.model(), client.model()
    parts = [TEXTS[:1], TEXTS[1:2], TEXTS[2:]]
    ends = []
    for model, order in ((inorder, (1, 2, 3)), (backwards, (3, 2, 1))):
        ids = {n: client.told("forward_backward", model.backward(n, texts=parts[n - 1]))["request_id"] for n in order}
        chunks = [logprobs(client.result(ids[n])) for n in (1, 2, 3)]
        client.asked("optim_step", model.step(4))
        ends.append((chunks, model.logprobs(5)))
    assert ends[0] == ends[1]


def test_a_number_that_never_comes_fails_those_behind_it_and_names_itself(ann: Client) -> None:
    model = ann.model()
    waiting = [ann.told("optim_step", model.step(number))["request_id"] for number in (3, 2)]
    for request_id in waiting:
        told = ann.outcome(request_id)
        assert told["category"] == "server"
        assert "request 1 " in told["error"]
    model.train(4)


def weighted(logprobs: torch.Tensor, weights: torch.Tensor) -> Any:
    """A loss of a client's own."""
    return -(logprobs * weights).sum(), {"custom/weight:sum": weights.sum()}


def test_models_checkpoints_and_losses_asked_for_twice_are_the_first_ones(client: Client) -> None:
    model = client.model()
    model.train(1)
    session, name = model.session_id, {"path": "once"}
    graph, inputs = uploaded(weighted, {"logprobs": 1, "weights": 1})
    loss = {"name": "weighted", "graph": graph, "inputs": inputs}
    requests = [
        ("create_model", {"session_id": session, "model_seq_id": 5, "base_model": "tiny", "lora_config": {"rank": 2}}),
        ("save_weights", {"model_id": model.model_id, "seq_id": 3, **name}),
        ("save_weights_for_sampler", {"model_id": model.model_id, "seq_id": 4, **name}),
        ("save_weights_for_sampler", {"model_id": model.model_id, "seq_id": 5, "sampling_session_seq_id": 1}),
        ("save_weights_external", {"model_id": model.model_id, "seq_id": 6, **name}),
        ("create_custom_loss", {"session_id": session, "custom_loss_seq_id": 0, **loss}),
    ]
    for path, body in requests:
        first, second = (client.told(path, body)["request_id"] for _ in range(2))
        assert first == second
        results = [client.result(first).content for _ in range(2)]
        assert results[0] == results[1]
        assert b'"error"' not in results[0], results[0]
    load = {
        "session_id": session,
        "model_seq_id": 6,
        "path": f"tinker://{model.model_id}/weights/once",
        "optimizer": True,
    }
    assert client.asked("load_weights", load) == client.asked("load_weights", load)
    here = client.get(f"/api/v1/sessions/{session}").json()
    assert sorted(here["training_run_ids"]) == sorted(f"{session}:train:{number}" for number in (0, 5, 6))
    checkpoints = client.get(f"/api/v1/training_runs/{model.model_id}/checkpoints").json()["checkpoints"]
    assert len(checkpoints) == 3


def test_a_thousand_polls_that_nobody_waits_for_leave_nothing(guarded: Server, ann: Client) -> None:
    """A poll without an answer ends with 408 and the queue's state; a client that hangs up leaves no waiter."""
    model = ann.model()
    request_id = ann.told("optim_step", model.step(2))["request_id"]  # waits for request 1
    body = json.dumps({"request_id": request_id}).encode()
    head = (
        f"POST /api/v1/retrieve_future HTTP/1.1\r\nhost: localhost\r\nx-api-key: {ann.http.headers['x-api-key']}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    for _ in range(10):
        sockets = [socket.create_connection(("127.0.0.1", guarded.port)) for _ in range(100)]
        for one in sockets:
            one.sendall(head.encode() + body)
        for one in sockets:
            one.close()
    assert ann.result(request_id).json()["category"] == "server"
    until = time.monotonic() + 120
    while (left := metric(ann, "lossbook_requests_running")) > 1 and time.monotonic() < until:
        time.sleep(0.05)
    assert left == 1, "the request for the metrics itself"
    assert metric(ann, 'lossbook_requests_total{method="POST",route="/api/v1/retrieve_future"') >= 1000, (
        "all have ended"
    )


def test_a_poll_without_a_result_ends_in_time_and_says_how_the_queue_is(ann: Client) -> None:
    model = ann.model()
    request_id = ann.told("optim_step", model.step(2))["request_id"]
    begun = time.monotonic()
    answer = ann.poll(request_id)
    assert (answer.status_code, answer.json()) == (408, {"queue_state": "active"})
    assert time.monotonic() - begun > 0.65, "held for 70 % of `--hold-seconds` at least: an early answer is asked again"
    assert ann.outcome(request_id)["category"] == "server"


def test_the_result_of_a_client_that_went_away_is_there_when_it_comes_back(client: Client, server: Server) -> None:
    with Client(server.url) as first:
        model = first.model()
        request_id = first.told("forward_backward", model.backward(1))["request_id"]
        with contextlib.suppress(Exception):
            first.http.post("/api/v1/retrieve_future", json={"request_id": request_id}, timeout=0.001)
    assert logprobs(client.result(request_id))


def test_a_failure_is_the_same_http_200_with_its_category_each_time(client: Client) -> None:
    model = client.model()
    request_id = client.told("forward_backward", model.backward(1, loss="cross_entropi"))["request_id"]
    answers = [client.result(request_id) for _ in range(3)]
    assert {answer.content for answer in answers} == {answers[0].content}
    told = answers[0].json()
    assert (answers[0].status_code, told["category"]) == (200, "user")
    assert "cross_entropy" in told["error"]
    model.train(2)


@pytest.mark.parametrize(
    "request_id", ["abc", "-1", " 7 ", "1_0", "١٢", "1" + "0" * 30, "", "a\x00b", 7, None, [], 1.5]
)
def test_odd_ids_of_futures_are_refused_and_never_a_server_error(client: Client, request_id: object) -> None:
    answer = client.post("retrieve_future", {"request_id": request_id})
    assert answer.status_code in (400, 404, 422), answer.text
    assert is_one_line(answer)


def test_one_bad_sample_among_those_of_other_clients_fails_alone(client: Client, server: Server) -> None:
    """Samples of one sampler that wait are decoded together."""
    sampler = client.sampler(client.session())
    bodies = [sample_body(sampler, number, tokens=(1, 2, 10**6) if number == 3 else (1, 2, 3)) for number in range(8)]
    numbers = itertools.count()
    ids = at_once(8, lambda: (lambda n: (n, client.told("asample", bodies[n])["request_id"]))(next(numbers)))
    for number, request_id in ids:
        answer = client.result(request_id)
        if number == 3:
            assert answer.json()["category"] == "user"
        else:
            assert answer.headers["content-type"] == "application/x-protobuf", answer.text


def test_one_bad_datum_fails_its_request_alone(client: Client) -> None:
    """Another model's request, sent at the same time, is as if it were alone; and so is the next one of this model."""
    session = client.session()
    one, other = client.model(0, session), client.model(1, session)
    bad = client.told("forward_backward", one.backward(1, texts=[*TEXTS, (1, 10**6, 2)]))["request_id"]
    good = client.told("forward_backward", other.backward(1))["request_id"]
    told = client.outcome(bad)
    assert told["category"] == "user"
    assert "datum 3" in told["error"]
    assert logprobs(client.result(good)) == one.logprobs(2, forward=False)


@pytest.mark.parametrize(
    ("content", "kind", "statuses"),
    [
        pytest.param(b"\xff" * 100, "application/x-protobuf", (400,), id="bytes that are no message"),
        pytest.param(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "application/x-protobuf", (400,), id="a huge length"),
        pytest.param(b"\x1a" * 5000, "application/x-protobuf", (400,), id="nothing but tags"),
        pytest.param(b"{}", "application/json", (400, 415), id="JSON"),
        pytest.param(b"", "application/x-protobuf", (400, 422), id="nothing"),
        pytest.param(b"x", "text/plain", (415,), id="text"),
    ],
)
def test_what_is_no_message_is_refused_at_once(
    client: Client, content: bytes, kind: str, statuses: tuple[int, ...]
) -> None:
    answer = client.http.post("/api/v1/forward_backward", content=content, headers={"content-type": kind})
    assert answer.status_code in statuses, answer.text
    assert is_one_line(answer)


def test_an_sdk_that_is_too_old_is_told_to_upgrade(client: Client) -> None:
    answers = [client.post("forward", {}), client.post("forward_backward", {"forward_backward_input": {}})]
    assert [answer.status_code for answer in answers] == [400, 415]
    assert all("pip install -U tinker" in answer.text for answer in answers)


def test_numbers_that_are_not_finite_never_stand_bare_in_json(client: Client) -> None:
    """A step on gradients that overflow, and a session with NaN in its metadata."""
    model = client.model()
    client.result(client.told("forward_backward", model.backward(1, weight=3e38))["request_id"])
    told = client.result(client.told("optim_step", model.step(2))["request_id"]).text
    json.loads(told, parse_constant=lambda word: pytest.fail(f"{word} in {told}"))
    status = client.get("/api/status").text
    json.loads(status, parse_constant=lambda word: pytest.fail(f"{word} in the status"))


@pytest.mark.parametrize(
    ("loss", "config", "words"),
    [
        ("ppo_", {}, "ppo"),
        ("ppo", {"clip_lo": 0.8}, "clip_low"),
        ("ppo", {"clip_low_threshold": 1.2, "clip_high_threshold": 0.8}, "clip"),
    ],
)
def test_a_loss_or_setting_that_is_none_is_refused_with_what_there_is(
    client: Client, loss: str, config: dict[str, float], words: str
) -> None:
    model = client.model()
    told = client.outcome(client.told("forward_backward", model.backward(1, loss=loss, config=config))["request_id"])
    assert told["category"] == "user"
    assert words in told["error"]


def test_a_model_that_is_not_there_or_has_ended_is_refused_with_its_id(client: Client) -> None:
    session = client.session()
    unknown = f"{session}:train:77"
    for path, body in (
        ("forward_backward", backward_body(unknown, 1)),
        ("optim_step", {"model_id": unknown, "seq_id": 1, "adam_params": {}}),
        ("get_info", {"model_id": unknown}),
        ("save_weights", {"model_id": unknown, "seq_id": 1, "path": "a"}),
    ):
        answer = client.post(path, body)
        assert answer.status_code == 404
        assert unknown in answer.text
    model = client.model(0, session)
    ids = []
    for number in range(1, 40, 2):
        ids.append(client.told("forward_backward", model.backward(number))["request_id"])
        ids.append(client.told("optim_step", model.step(number + 1))["request_id"])
    finish = {"reason": {"type": "interrupted"}}
    assert client.post(f"sessions/{session}/finish", finish).status_code == 204
    ends = [client.result(one) for one in ids]  # all have one, and none is a server error
    assert {answer.status_code for answer in ends} == {200}
    failed = [answer.json() for answer in ends if b'"error"' in answer.content]
    assert all("has ended" in one["error"] or "ended with its session" in one["error"] for one in failed), failed
    late = client.post("optim_step", model.step(41))
    assert late.status_code == 404
    assert model.model_id in late.text
