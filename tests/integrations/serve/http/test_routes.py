"""What every address answers, around a desk without models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from lossbook.integrations.serve.http.app import create_app
from lossbook.integrations.serve.operations import Answer
from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.settings import ServeSettings
from lossbook.integrations.serve.wire.messages import messages

from . import asgi
from .fake import FakeDesk

SETTINGS = ServeSettings(hold_seconds=0.02)


@pytest.fixture
def desk() -> FakeDesk:
    return FakeDesk(SETTINGS)


@pytest.fixture
def client(desk: FakeDesk) -> Iterator[TestClient]:
    with TestClient(create_app(SETTINGS, desk), base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, path: str, **fields: Any) -> Any:
    return client.post(f"/api/v1/{path}", json=fields)


STEP = {"model_id": "s:train:0", "seq_id": 3, "adam_params": {"learning_rate": 1e-3}}


def forward_backward(**changes: Any) -> bytes:
    request = messages().ForwardBackwardRequest(model_id="s:train:0", seq_id=1, loss_fn="cross_entropy")
    datum = request.data.add()
    datum.model_input.add().encoded_text.tokens = b"\1\0\0\0\2\0\0\0"
    for name, value in changes.items():
        setattr(request, name, value)
    return request.SerializeToString()


PROTO = {"content-type": "application/x-protobuf"}


def test_a_step_is_promised_and_its_result_is_told_in_the_end(client: TestClient, desk: FakeDesk) -> None:
    promise = post(client, "optim_step", **STEP).json()
    assert promise["model_id"] == "s:train:0"
    operation = desk.operations[promise["request_id"]]
    assert (operation.owner, operation.kind, operation.scope, operation.number, operation.counter) == (
        "local",
        "optim_step",
        "s:train:0",
        3,
        "seq",
    )
    waiting = post(client, "retrieve_future", request_id=promise["request_id"])
    assert (waiting.status_code, waiting.json()) == (408, {"queue_state": "active"})
    desk.answers[promise["request_id"]] = Answer(b'{"metrics": {}}')
    for _ in range(2):
        assert post(client, "retrieve_future", request_id=promise["request_id"]).json() == {"metrics": {}}


def test_the_same_request_has_the_same_hash_whatever_the_order_of_its_fields(
    client: TestClient, desk: FakeDesk
) -> None:
    post(client, "optim_step", **STEP)
    post(client, "optim_step", **dict(reversed(STEP.items())))
    post(client, "optim_step", **{**STEP, "adam_params": {"learning_rate": 2e-3}})
    first, again, other = (one.body_hash for one in desk.operations.values())
    assert first == again != other


def test_a_failure_is_http_200_with_its_category_each_time(client: TestClient, desk: FakeDesk) -> None:
    request_id = post(client, "optim_step", **STEP).json()["request_id"]
    desk.answers[request_id] = Answer(error="no gradients", category="user")
    for _ in range(2):
        answer = post(client, "retrieve_future", request_id=request_id)
        assert (answer.status_code, answer.json()) == (200, {"error": "no gradients", "category": "user"})


def test_protobuf_is_answered_as_protobuf(client: TestClient, desk: FakeDesk) -> None:
    answer = client.post("/api/v1/forward_backward", content=forward_backward(), headers=PROTO)
    request_id = answer.json()["request_id"]
    assert desk.operations[request_id].kind == "forward_backward"
    desk.answers[request_id] = Answer(b"\n\0", "application/x-protobuf")
    result = post(client, "retrieve_future", request_id=request_id)
    assert (result.content, result.headers["content-type"]) == (b"\n\0", "application/x-protobuf")
    client.post("/api/v1/forward_backward", content=forward_backward(forward_only=True, seq_id=2), headers=PROTO)
    assert [one.kind for one in desk.operations.values()] == ["forward_backward", "forward"]


@pytest.mark.parametrize(
    "request_id", ["abc", "-1", " 7 ", "1_0", "١٢", "1" + "0" * 30, "", "../x", "a" * 10_000, "\0", "'; drop table"]
)
def test_ids_that_nobody_gave_are_refused_and_never_a_server_error(client: TestClient, request_id: str) -> None:
    assert post(client, "retrieve_future", request_id=request_id).status_code in (400, 404, 422)


@pytest.mark.parametrize("request_id", [None, 7, [], {}, True, 1e400])
def test_ids_of_other_types_are_refused(client: TestClient, request_id: Any) -> None:
    body = json.dumps({"request_id": request_id})
    answer = client.post("/api/v1/retrieve_future", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    ("path", "content_type", "body", "statuses"),
    [
        pytest.param(
            "forward_backward", "application/x-protobuf", b"\xff" * 99, (400,), id="bytes that are no protobuf"
        ),
        pytest.param(
            "forward_backward", "application/x-protobuf", b"\x0a" + b"\xff" * 9 + b"\x7f", (400,), id="a huge length"
        ),
        pytest.param("forward_backward", "application/x-protobuf", b"", (400, 422), id="nothing"),
        pytest.param("forward_backward", "application/json", b"{}", (415,), id="JSON where protobuf is due"),
        pytest.param("forward_backward", "text/plain", b"x", (415,), id="text where protobuf is due"),
        pytest.param("optim_step", "application/x-protobuf", b"\n\0", (415,), id="protobuf where JSON is due"),
        pytest.param("optim_step", "text/plain", b"{}", (415,), id="a form's text"),
        pytest.param("optim_step", "application/json", b"[" * 100_000, (400,), id="nested 100,000 deep"),
        pytest.param("optim_step", "application/json", b'{"a":1,"a":2}', (400,), id="a key twice"),
        pytest.param("optim_step", "application/json", b'{"a":"\\ud800"}', (400,), id="half a surrogate pair"),
        pytest.param("optim_step", "application/json", b'{"a":NaN}', (400,), id="NaN"),
        pytest.param("optim_step", "application/json", b"[]", (400, 422), id="a list"),
        pytest.param("optim_step", "application/json", b"\xff\xfe", (400,), id="no UTF-8"),
        pytest.param("forward", "application/json", b"{}", (400,), id="the address of old SDKs"),
    ],
)
def test_bytes_that_are_no_request_are_refused_in_one_line(
    client: TestClient, path: str, content_type: str, body: bytes, statuses: tuple[int, ...]
) -> None:
    answer = client.post(f"/api/v1/{path}", content=body, headers={"content-type": content_type})
    assert answer.status_code in statuses
    assert "\n" not in answer.json()["detail"]


def test_an_old_sdk_is_told_to_upgrade(client: TestClient) -> None:
    assert "pip install -U tinker" in client.post("/api/v1/forward_backward", json={}).json()["detail"]


def test_the_number_of_a_refused_request_is_noted_so_that_nobody_waits_for_it(
    client: TestClient, desk: FakeDesk
) -> None:
    assert post(client, "optim_step", **{**STEP, "adam_params": {"learning_rate": "much"}}).status_code == 422
    assert desk.used == [("local", "s:train:0", "seq", 3)]


def test_a_retried_session_is_the_same_session(client: TestClient) -> None:
    headers = {"x-idempotency-key": "k"}
    bodies = [client.post("/api/v1/create_session", json={"tags": []}, headers=headers).json() for _ in range(2)]
    assert bodies[0] == bodies[1]
    assert post(client, "session_heartbeat", session_id=bodies[0]["session_id"]).status_code == 200
    assert post(client, "session_heartbeat", session_id="session-0").status_code == 404


def test_a_session_ends_with_a_reason(client: TestClient, desk: FakeDesk) -> None:
    answer = post(client, "sessions/session-1/finish", reason={"type": "errored"}, detail="it fell")
    assert (answer.status_code, answer.content) == (204, b"")
    assert desk.finished == [("local", "session-1", "errored", "it fell")]
    assert post(client, "sessions/session-1/finish", reason={"type": "other"}).status_code == 422


def test_samples_are_promised_with_an_id_for_each(client: TestClient) -> None:
    asked = {
        "sampling_session_id": "s:sample:0",
        "seq_id": 0,
        "num_samples": 3,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1]}]},
        "sampling_params": {"max_tokens": 4},
    }
    promise = post(client, "asample", **asked).json()
    assert len(set(promise["sample_sequence_ids"])) == 3


def test_an_error_of_ours_tells_the_client_an_incident_and_nothing_else(
    client: TestClient, desk: FakeDesk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.raises = lambda: RuntimeError("/root/secret/path of tml-a-secret-key")
    answer = post(client, "optim_step", **STEP)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "RuntimeError, incident " in answer.json()["detail"]
    poll = post(client, "retrieve_future", request_id="x")
    assert (poll.status_code, poll.json()["category"]) == (200, "server")
    assert "secret" not in poll.text
    told = [record for record in caplog.records if getattr(record, "incident", None)]
    assert answer.json()["detail"].split("incident ")[1].startswith(told[0].incident)  # type: ignore[attr-defined]


def test_a_database_that_does_not_answer_makes_polls_wait_and_submissions_come_again(
    client: TestClient, desk: FakeDesk
) -> None:
    desk.raises = lambda: Refused(503, "the database does not answer", retry_after=5)
    step, poll = post(client, "optim_step", **STEP), post(client, "retrieve_future", request_id="x")
    assert (step.status_code, step.headers["retry-after"]) == (503, "5")
    assert (poll.status_code, poll.headers["retry-after"]) == (429, "5")


@pytest.mark.parametrize("path", ["forward", "forward_backward"])
def test_a_pass_in_json_hears_which_sdk_is_needed_and_its_number_is_not_waited_for(
    client: TestClient, desk: FakeDesk, path: str
) -> None:
    refused = post(client, path, model_id="s:train:0", seq_id=4, forward_input={"data": []})
    assert refused.status_code in (400, 415)
    assert "0.22.3 or newer" in refused.json()["detail"]
    assert desk.used == [("local", "s:train:0", "seq", 4)]


def test_an_sdk_that_is_too_old_to_train_hears_so_when_its_session_begins(client: TestClient, desk: FakeDesk) -> None:
    refused = post(client, "create_session", tags=[], sdk_version="0.18.2")
    assert (refused.status_code, desk.sessions) == (400, {})
    assert "this client has 0.18.2: pip install -U tinker" in refused.json()["detail"]


def test_a_server_that_stops_takes_no_work_but_tells_results(client: TestClient, desk: FakeDesk) -> None:
    request_id = post(client, "optim_step", **STEP).json()["request_id"]
    desk.answers[request_id] = Answer(b"{}")
    assert client.get("/readyz").status_code == 200
    client.app.state.context.is_stopping = True  # type: ignore[attr-defined]
    refused = post(client, "optim_step", **STEP)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert post(client, "create_session", tags=[]).status_code == 503
    assert post(client, "retrieve_future", request_id=request_id).status_code == 200
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_a_client_that_goes_away_leaves_no_poll_behind(desk: FakeDesk) -> None:
    app = create_app(ServeSettings(hold_seconds=1000), desk)

    async def polls() -> int:
        desk.operations["a"] = None  # type: ignore[assignment]
        gone = asyncio.Event()
        body = json.dumps({"request_id": "a"}).encode()
        headers = [("host", "localhost"), ("content-type", "application/json")]
        asked = [
            asyncio.ensure_future(asgi.ask(app, "/api/v1/retrieve_future", headers=headers, parts=[body], gone=gone))
            for _ in range(100)
        ]
        while desk.waiting < 100:
            await asyncio.sleep(0.01)
        gone.set()
        await asyncio.wait_for(asyncio.gather(*asked), 60)
        return desk.waiting

    assert asyncio.run(polls()) == 0


def test_config_and_capabilities_are_what_the_sdk_reads(client: TestClient) -> None:
    tinker = pytest.importorskip("tinker")
    flags = post(client, "client/config", sdk_version="0.38.0").json()
    config = tinker.types.ClientConfigResponse.model_validate(flags)
    for_older_releases = {"proto_write_fwdbwd", "fwd_via_fwdbwd", "create_model_via_load_weights"}
    assert set(flags) - for_older_releases <= set(type(config).model_fields)
    assert not config.parallel_fwdbwd_chunks
    assert post(client, "client/dynamic_config", sdk_version="0.38.0").status_code == 200
    assert client.get("/api/v1/get_server_capabilities").json()["supported_models"]
    assert post(client, "telemetry", events=[]).json() == {"status": "accepted"}


def test_numbers_are_there_for_prometheus(client: TestClient, desk: FakeDesk) -> None:
    post(client, "optim_step", **STEP)
    client.get("/nowhere/at/all")
    text = client.get("/metrics").text
    assert 'lossbook_requests_total{method="POST",route="/api/v1/optim_step",status="200"} 1.0' in text
    assert 'route="unknown",status="404"' in text
    assert "lossbook_desk_queues_waiting 0.0" in text


def test_the_status_page_asks_this_server_alone(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/api/status").json()["queues"] == {"waiting": 0}


def test_every_answer_has_the_id_of_its_request(client: TestClient) -> None:
    ids = [client.get(path).headers["x-request-id"] for path in ("/healthz", "/nowhere", "/healthz")]
    assert len(set(ids)) == 3


def test_the_document_names_every_address(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/api/v1/forward_backward", "/api/v1/asample", "/api/v1/retrieve_future", "/healthz"} <= set(paths)
    assert "$ref" not in json.dumps(paths["/api/v1/optim_step"]["post"]["requestBody"])
