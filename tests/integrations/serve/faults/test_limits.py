"""What is too large, too many, too slow, too deep or from elsewhere is refused by a server process, which stays as it was."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import pickle
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from lossbook.integrations.serve.wire.messages import messages

from ..process import Server
from .client import API, PROTOBUF, TEXTS, Client, at_once, backward_body, is_one_line, metric, sample_body
from .conftest import ANN, LIMITS

zstd = pytest.importorskip("backports.zstd", reason="pip install 'lossbook[serve]'")
pytestmark = pytest.mark.slow
MIB = 2**20


def resident(server: Server) -> int:
    """Bytes of memory that a server's process has."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def highest(server: Server) -> int:
    """The most bytes of memory that a server's process ever had."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, ""),
        ({"x-api-key": ""}, ""),
        ({"x-api-key": "tml-key-of-nobody-000"}, ""),
        ({"x-api-key": ANN[:-1]}, ""),
        ({"x-api-key": f"{ANN}0"}, ""),
        ({"authorization": "Bearer"}, ""),
        ({"authorization": f"Basic {ANN}"}, ""),
        ({"cookie": f"x-api-key={ANN}"}, ""),
        ({}, f"?api_key={ANN}"),
        ({}, f"?x-api-key={ANN}"),
    ],
)
def test_without_a_known_key_every_route_answers_401_in_the_same_words(
    guarded: Server, headers: dict[str, str], query: str
) -> None:
    with httpx.Client(base_url=guarded.url, headers=headers) as client:
        answers = [
            client.get(f"{API}sessions{query}"),
            client.post(f"{API}create_session{query}", json={"tags": []}),
            client.post(f"{API}forward_backward{query}", content=b"\xff"),
            client.get(f"{API}nothing{query}"),
            client.get(f"/metrics{query}"),
            client.get(f"/openapi.json{query}"),
        ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert ANN not in guarded.said()


def raw(server: Server, head: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """What the server answers to these bytes, until it closes the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(f"{head}host: localhost\r\nx-api-key: {ANN}\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for part in parts:
                if select.select([connection], [], [], pause)[0]:
                    break  # it is answered before it was sent
                connection.sendall(part)
            while part := connection.recv(65536):
                answer += part
    return answer


POST = f"POST {API}forward_backward HTTP/1.1\r\ncontent-type: {PROTOBUF}\r\n"


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(guarded: Server) -> None:
    begun = time.monotonic()
    answer = raw(guarded, POST, b"content-length: 100000000000\r\n\r\n")
    assert answer.split()[1] == b"413"
    assert b"body_bytes" in answer
    assert time.monotonic() - begun < 120


def test_a_body_without_a_length_is_cut_off_at_the_limit(guarded: Server) -> None:
    before = highest(guarded)
    chunk = b"100000\r\n" + bytes(MIB) + b"\r\n"
    answer = raw(guarded, POST, b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 64)
    assert answer.split()[1] == b"413"
    assert highest(guarded) - before < 32 * MIB


def test_a_body_and_headers_that_come_a_byte_at_a_time_are_given_up(guarded: Server) -> None:
    for parts in ((b"content-length: 1000\r\n\r\n", *[b"x"] * 12), (*[b"a"] * 12,)):
        answer = raw(guarded, POST, *parts, pause=0.3)
        assert answer.split()[1] == b"408", answer
    with Client(guarded.url) as client:
        assert client.get("/healthz").status_code == 200


def frame(data: bytes, *, sized: bool) -> bytes:
    """A frame of zstd, whose header says how large it becomes, or does not."""
    if sized:
        return zstd.compress(data)
    compressor = zstd.ZstdCompressor()
    return compressor.compress(data) + compressor.flush()


def lying(size: int) -> bytes:
    """A frame whose header says that it becomes this many bytes."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"


BODY = backward_body("a:train:0", 1)
BOMB = bytes(64 * MIB)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        pytest.param(frame(BOMB, sized=True), "zstd", id="a bomb that says its size"),
        pytest.param(frame(BOMB, sized=False), "zstd", id="a bomb that does not"),
        pytest.param(lying(8 * 2**30), "zstd", id="a header of 8 GiB"),
        pytest.param(lying(2**40), "zstd", id="a header of 1 TiB"),
        pytest.param(zstd.compress(BODY)[:-3], "zstd", id="cut off"),
        pytest.param(zstd.compress(BODY) * 2, "zstd", id="two frames"),
        pytest.param(zstd.compress(BODY) + b"more", "zstd", id="bytes after it"),
        pytest.param(b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd", "zstd", id="a frame to skip"),
        pytest.param(BODY, "zstd", id="not compressed"),
        pytest.param(BODY, "br", id="an unknown encoding"),
        pytest.param(BODY, "gzip, zstd", id="two encodings"),
        pytest.param(zstd.compress(zstd.compress(BODY)), "zstd", id="compressed twice"),
    ],
)
def test_a_compressed_body_is_refused_in_bounded_memory(
    guarded: Server, ann: Client, body: bytes, encoding: str
) -> None:
    before = highest(guarded)
    answer = ann.post("forward_backward", body, content_encoding=encoding)
    assert answer.status_code in (400, 413, 415), answer.text
    assert is_one_line(answer)
    assert highest(guarded) - before < LIMITS["body_bytes"] + 64 * MIB


def test_counts_and_numbers_beyond_every_reason_are_refused_by_the_limits_name(client: Client) -> None:
    session = client.session()
    sampler, model = client.sampler(session), client.model(0, session)
    sample: dict[str, Any] = sample_body(sampler, 0)
    params = sample["sampling_params"]
    chunk = {"type": "encoded_text", "tokens": [1]}
    asked: list[tuple[str, dict[str, Any] | bytes, str]] = [
        ("forward_backward", b"\x1a\x00" * 10**6, "datums"),
        ("forward_backward", _long(model.model_id, 10**7), "tokens"),
        ("forward_backward", _chunks(model.model_id, 10**5), "chunks"),
        ("asample", {**sample, "num_samples": 5_000_000}, "samples"),
        ("asample", {**sample, "topk_prompt_logprobs": 10**9}, "top_k"),
        ("asample", {**sample, "topk_sample_logprobs": 10**9}, "top_k"),
        ("asample", {**sample, "sampling_params": {**params, "max_tokens": 10**9}}, "sampled_tokens"),
        ("asample", {**sample, "sampling_params": {**params, "stop": ["a"] * 10**4}}, "stop_strings"),
        ("asample", {**sample, "prompt": {"chunks": [chunk] * 10**5}}, "chunks"),
        (
            "create_model",
            {"session_id": session, "model_seq_id": 3, "base_model": "tiny", "lora_config": {"rank": 10**6}},
            "lora_rank",
        ),
    ]
    for path, body, limit in asked:
        begun = time.monotonic()
        answer = client.post(path, body)
        assert (answer.status_code, limit in answer.text) == (400, True), (path, limit, answer.text)
        assert time.monotonic() - begun < 120
    model.train(1)


def _long(model_id: str, tokens: int) -> bytes:
    request = messages().ForwardBackwardRequest(model_id=model_id, seq_id=90, loss_fn="cross_entropy")
    request.data.add().model_input.add().encoded_text.tokens = bytes(4 * tokens)
    return request.SerializeToString()


def _chunks(model_id: str, count: int) -> bytes:
    request = messages().ForwardBackwardRequest(model_id=model_id, seq_id=91, loss_fn="cross_entropy")
    datum = request.data.add()
    for _ in range(count):
        datum.model_input.add().encoded_text.tokens = bytes(4)
    return request.SerializeToString()


def test_more_sessions_models_and_requests_than_a_key_may_have_are_429_and_others_go_on(
    guarded: Server, ben: Client
) -> None:
    """Ben asks for everything he can; Ann's work goes on meanwhile."""
    with Client(guarded.url, ANN) as ann:
        hers = ann.model()
        sessions: list[str] = []
        while (answer := ben.post("create_session", {"tags": []})).status_code == 200:
            sessions.append(answer.json()["session_id"])
            assert len(sessions) <= LIMITS["sessions_per_key"]
        refused(answer, "sessions_per_key")
        models = [ben.model(0, sessions[0])]
        body = {"session_id": sessions[0], "base_model": "tiny", "lora_config": {"rank": 2}}
        while (answer := ben.post("create_model", {**body, "model_seq_id": len(models)})).status_code == 200:
            ben.result(answer.json()["request_id"])
            models.append(models[0])
            assert len(models) <= LIMITS["models_per_key"]
        refused(answer, "models_per_key")
        numbers = itertools.count(2)
        waiting: list[str] = []
        answer = None
        while answer is None:  # on a slow machine the first have failed before the last came, and leave room
            answers = at_once(30, lambda: [ben.post("optim_step", models[0].step(next(numbers))) for _ in range(3)])
            for one in itertools.chain(*answers):
                if one.status_code == 200:
                    waiting.append(one.json()["request_id"])
                else:
                    answer = one
            assert len(waiting) < 2000
        refused(answer, "requests_per_key")
        hers.train(1)
        assert ben.outcome(waiting[-1])["category"] == "server"  # they waited for request 1, which never came
        for session_id in sessions:
            assert ben.post(f"sessions/{session_id}/finish", {"reason": {"type": "success"}}).status_code == 204
        assert ben.post("create_session", {"tags": []}).status_code == 200


def refused(answer: httpx.Response, limit: str) -> None:
    assert answer.status_code == 429, answer.text
    assert limit in answer.text
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("[" * 50_000 + "]" * 50_000, id="nested lists"),
        pytest.param('{"a":' * 30_000 + "1" + "}" * 30_000, id="nested objects"),
        pytest.param('{"session_id":"a","session_id":"b"}', id="a key twice"),
        pytest.param('{"session_id":"\\ud800"}', id="a lone surrogate"),
        pytest.param('{"session_id":NaN}', id="NaN"),
        pytest.param('{"session_id":1e999}', id="infinity"),
        pytest.param('{"session_id":' + "9" * 5000 + "}", id="a number of 5000 digits"),
        pytest.param('{"session_id":"a"', id="no end"),
        pytest.param("\ufeff{}", id="a mark of the byte order"),
        pytest.param('"text"', id="no object"),
    ],
)
def test_json_that_is_deep_doubled_or_odd_is_refused(ann: Client, body: str) -> None:
    answer = ann.http.post(
        f"{API}session_heartbeat",
        content=body.encode("utf-8", "surrogatepass"),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code in (400, 413, 422), answer.text
    assert is_one_line(answer)


def test_a_million_keys_are_refused(client: Client) -> None:
    body = "{" + ",".join(f'"k{i}":0' for i in range(10**6 + 1)) + "}"
    answer = client.http.post(
        f"{API}session_heartbeat", content=body.encode(), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, "json_values" in answer.text) == (400, True), answer.text


def test_addresses_in_requests_are_not_followed(client: Client) -> None:
    """Images at addresses, in samples and in training, and weights at addresses: refused, and nobody is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        place = f"http://127.0.0.1:{listener.getsockname()[1]}/image.png"
        session = client.session()
        sampler = client.sampler(session)
        for number, location in enumerate((place, "file:///etc/passwd", "tinker://image")):
            asked = sample_body(sampler, number)
            asked["prompt"]["chunks"] = [{"type": "image_asset_pointer", "location": location, "format": "png"}]
            answer = client.post("asample", asked)
            if answer.status_code == 200:
                assert client.outcome(answer.json()["request_id"])["category"] == "user"
            else:
                assert answer.status_code == 400
        for number, path in enumerate((place, "file:///etc/passwd", "/etc/passwd", "tinker://../../etc/x/weights/y")):
            load = {"session_id": session, "model_seq_id": number, "path": path, "optimizer": True}
            answer = client.post("load_weights", load)
            assert answer.status_code == 200
            assert client.outcome(answer.json()["request_id"])["category"] == "user"
            assert client.post("weights_info", {"tinker_path": path}).status_code in (400, 404)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param("".join(f"x{i}: y\r\n" for i in range(200)), id="200 headers"),
        pytest.param(f"x: {'y' * 200_000}\r\n", id="a header of 200 KB"),
    ],
)
def test_floods_of_headers_are_refused(guarded: Server, headers: str) -> None:
    answer = raw(guarded, f"GET {API}sessions HTTP/1.1\r\n{headers}", b"\r\n")
    assert answer.split()[1] == b"431"


def test_a_page_of_another_site_gets_no_answer_and_no_permission(client: Client) -> None:
    """Without keys: a preflight, a request with a foreign Origin, a form, and a name that somebody's DNS gives for 127.0.0.1."""
    evil = {"origin": "http://evil.example"}
    asked = {**evil, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    answers = [
        client.http.options(f"{API}create_session", headers=asked),
        client.http.post(f"{API}create_session", json={"tags": []}, headers=evil),
        client.http.post(f"{API}create_session", json={"tags": []}, headers={"origin": "null"}),
        client.http.post(f"{API}create_session", json={"tags": []}, headers={"host": "evil.example"}),
        client.http.get("/api/status", headers={"host": "evil.example:8000"}),
        client.http.post(f"{API}create_session", data={"tags": "a"}),
        client.http.post(f"{API}create_session", content=b'{"tags":[]}', headers={"content-type": "text/plain"}),
    ]
    assert [answer.status_code for answer in answers] == [403, 403, 403, 403, 403, 415, 415]
    everything = [*answers, client.get("/"), client.get("/api/status")]
    assert not [name for answer in everything for name in answer.headers if name.startswith("access-control")]


def test_errors_tell_clients_no_path_key_or_traceback(guarded: Server, ann: Client) -> None:
    model = ann.model()
    model.train(1)
    texts = [
        ann.post("weights_info", {"tinker_path": f"tinker://{model.model_id}/weights/none"}).text,
        ann.post("create_model", {"session_id": 1}).text,
        ann.get(f"{API}training_runs/..%2f..%2fetc").text,
        ann.post("forward_backward", b"\xff").text,
    ]
    load = {"session_id": model.session_id, "model_seq_id": 1, "path": "tinker://a/weights/b", "optimizer": True}
    wrong = {**load, "model_seq_id": 2, "path": str(guarded.root)}
    for body in (load, wrong):
        texts.append(ann.result(ann.told("load_weights", body)["request_id"]).text)
    create = {"session_id": model.session_id, "model_seq_id": 3, "base_model": "/etc/passwd"}
    texts.append(ann.result(ann.told("create_model", create)["request_id"]).text)
    for text in texts:
        assert json.loads(text)
        assert str(guarded.root.parent) not in text.replace(f'"{guarded.root}', ""), text
        assert ANN not in text
        assert "Traceback" not in text
        assert "site-packages" not in text


def test_the_base_models_are_those_that_the_server_was_given(ann: Client, tmp_path: Path) -> None:
    """No file, no hub id, no code of a client's choice."""
    session = ann.session()
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "evil.Model"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit(1)")
    for number, name in enumerate((str(tmp_path), "../tiny", "gpt2", "tiny/../tiny", "")):
        body = {"session_id": session, "model_seq_id": number, "base_model": name, "trust_remote_code": True}
        answer = ann.post("create_model", {**body, "lora_config": {"rank": 2}})
        if answer.status_code == 200:
            told = ann.outcome(answer.json()["request_id"])
            assert told["category"] == "user"
            assert "tiny" in told["error"]
        else:
            assert answer.status_code in (400, 422)
        sampling = {"session_id": session, "sampling_session_seq_id": number, "base_model": name}
        assert ann.post("create_sampling_session", sampling).status_code in (400, 422)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_that_others_reach_does_not_start_without_keys(tmp_path: Path, host: str) -> None:
    command = "from lossbook.cookbook.cli import command; command()"
    flags = ["serve", "--host", host, "--port", "0", "--root", str(tmp_path / "root")]
    done = subprocess.run([sys.executable, "-c", command, *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode not in (0, None)
    assert "--keys" in done.stderr
    assert "--insecure" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "root").exists()


def test_python_and_pickles_are_taken_from_nobody(client: Client, tmp_path: Path) -> None:
    """Names of modules as losses, source and pickles as graphs, other content types: refused, and nothing of them has run."""
    model = client.model()
    touched = tmp_path / "touched"
    source = f"import pathlib; pathlib.Path({str(touched)!r}).touch()"
    names = ("os:system", "ppo+os:system", "tinker:ppo+os:system", "subprocess:run+ppo", source)
    for number, name in enumerate(names, start=1):
        told = client.outcome(client.told("forward_backward", model.backward(number, loss=name))["request_id"])
        assert told["category"] == "user", told
    evil = pickle.dumps(_Touch(touched))
    node = {"op": "call_function", "name": "a", "target": "builtins.exec", "args": [source], "kwargs": {}}
    graphs: list[Any] = [
        {"source": source},
        {"format": 1, "nodes": source},
        {"format": 1, "nodes": [node]},
        {"format": 1, "nodes": [{**node, "target": "os.system"}]},
        {"format": 1, "nodes": [{**node, "op": "get_attr", "target": "__class__.__globals__"}]},
        {"format": 0, "pickle": base64.b64encode(evil).decode()},
        base64.b64encode(evil).decode(),
    ]
    for number, graph in enumerate(graphs):
        body = {"session_id": model.session_id, "custom_loss_seq_id": number, "name": "x", "graph": graph}
        answer = client.post("create_custom_loss", {**body, "inputs": [{"name": "logprobs", "rank": 1}]})
        if answer.status_code == 200:
            assert client.outcome(answer.json()["request_id"])["category"] == "user"
        else:
            assert answer.status_code in (400, 422), answer.text
    for kind in ("application/python-pickle", "application/octet-stream", "text/x-python"):
        for path in ("forward_backward", "create_custom_loss", "optim_step"):
            assert client.http.post(f"{API}{path}", content=evil, headers={"content-type": kind}).status_code == 415
    assert client.post("forward_backward", evil).status_code == 400
    assert not touched.exists()
    model.train(len(names) + 1)


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_ids_cannot_be_guessed(ann: Client) -> None:
    sessions = [ann.session() for _ in range(2)]
    model = ann.model(0, sessions[0])
    requests = [
        ann.told("forward_backward", model.backward(number, texts=TEXTS[:1]))["request_id"] for number in (1, 2)
    ]
    for ids in (sessions, requests):
        assert len(ids[0]) >= 22
        same = sum(a == b for a, b in zip(*ids, strict=True))
        assert same < len(ids[0]) / 2
    assert metric(ann, "lossbook_requests_total") > 0
