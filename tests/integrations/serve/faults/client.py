"""A client of a server process that is not the SDK: it sends what it likes, as often as it likes, and sees every status."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from lossbook.integrations.serve.wire.messages import messages

API = "/api/v1/"
PROTOBUF = "application/x-protobuf"
TEXTS = ((1, 2, 3, 4, 5), (7, 8, 9), (3, 3, 3, 3))
#: Seconds for what takes a moment on a machine that does much else.
PATIENCE = 400.0


class Client:
    """Asks a server over sockets. key: sent as X-API-Key, if there is one."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {} if key is None else {"x-api-key": key}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.http = httpx.Client(base_url=url, headers=headers, timeout=PATIENCE, limits=limits)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *args: object) -> None:
        self.http.close()

    def post(self, path: str, body: dict[str, Any] | bytes, **headers: str) -> httpx.Response:
        """A POST below /api/v1/: JSON, or bytes as protobuf."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, bytes):
            return self.http.post(f"{API}{path}", content=body, headers={"content-type": PROTOBUF, **sent})
        return self.http.post(f"{API}{path}", json=body, headers=sent)

    def get(self, path: str) -> httpx.Response:
        """A GET of any path."""
        return self.http.get(path)

    def told(self, path: str, body: dict[str, Any] | bytes) -> dict[str, Any]:
        """The JSON of a POST that is answered by 200."""
        answer = self.post(path, body)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()

    def poll(self, request_id: str) -> httpx.Response:
        """One poll."""
        return self.post("retrieve_future", {"request_id": request_id}, accept=PROTOBUF)

    def result(self, request_id: str) -> httpx.Response:
        """What a request came to, after as many polls as that takes."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            answer = self.poll(request_id)
            if answer.status_code != 408:
                return answer
            time.sleep(0.01)
        raise AssertionError(f"nothing came of {request_id}")

    def outcome(self, request_id: str) -> dict[str, Any]:
        """The JSON that a request came to: its result, or `error` and `category`."""
        answer = self.result(request_id)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()

    def asked(self, path: str, body: dict[str, Any] | bytes) -> dict[str, Any]:
        """Submit and wait: the JSON of a result that is none of a failure."""
        told = self.outcome(self.told(path, body)["request_id"])
        assert "error" not in told, told
        return told

    def session(self) -> str:
        """A new session."""
        return self.told("create_session", {"tags": [], "sdk_version": "0.38.0"})["session_id"]

    def model(self, number: int = 0, session_id: str | None = None) -> Model:
        """A new model."""
        body = {
            "session_id": session_id or self.session(),
            "model_seq_id": number,
            "base_model": "tiny",
            "lora_config": {"rank": 2, "seed": 3},
        }
        return Model(self, self.asked("create_model", body)["model_id"])

    def sampler(self, session_id: str) -> str:
        """A sampler of the base model."""
        body = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "tiny"}
        return self.told("create_sampling_session", body)["sampling_session_id"]


class Model:
    """A model of a client. Numbers of requests are the caller's."""

    def __init__(self, client: Client, model_id: str) -> None:
        self.client, self.model_id = client, model_id

    @property
    def session_id(self) -> str:
        """The session that it lives in."""
        return self.model_id.partition(":")[0]

    def backward(self, number: int, *, forward: bool = False, **changes: Any) -> bytes:
        """The body of a forward_backward. See `backward_body`."""
        return backward_body(self.model_id, number, forward=forward, **changes)

    def step(self, number: int, learning_rate: float = 0.05) -> dict[str, Any]:
        """The body of an optim_step."""
        return {"model_id": self.model_id, "seq_id": number, "adam_params": {"learning_rate": learning_rate}}

    def train(self, number: int) -> None:
        """A step, of two requests from this number on."""
        self.logprobs(number, forward=False)
        self.client.asked("optim_step", self.step(number + 1))

    def logprobs(self, number: int, *, forward: bool = True) -> list[float]:
        """Logprobs of all positions."""
        request_id = self.client.told("forward_backward", self.backward(number, forward=forward))["request_id"]
        return logprobs(self.client.result(request_id))


def logprobs(answer: httpx.Response) -> list[float]:
    """Logprobs in a result of forward_backward."""
    assert answer.headers["content-type"] == PROTOBUF, answer.text
    output = messages().ForwardBackwardOutput.FromString(answer.content)
    arrays = [np.frombuffer(one.fields["logprobs"].data, "<f4") for one in output.loss_fn_outputs]
    return np.concatenate(arrays).tolist()


def backward_body(
    model_id: str,
    number: int,
    texts: Sequence[Sequence[int]] = TEXTS,
    *,
    forward: bool = False,
    loss: str = "cross_entropy",
    weight: float = 1.0,
    config: dict[str, float] | None = None,
) -> bytes:
    """The message of a forward_backward on texts, each token of one weight."""
    request = messages().ForwardBackwardRequest(model_id=model_id, seq_id=number, loss_fn=loss, forward_only=forward)
    for name, value in (config or {}).items():
        request.loss_fn_config_v2[name].number = value
    for text in texts:
        datum = request.data.add()
        datum.model_input.add().encoded_text.tokens = np.array(text[:-1], "<i4").tobytes()
        _put(datum.loss_fn_inputs["target_tokens"], np.array(text[1:], "<i8"), messages().DTYPE_INT64)
        _put(datum.loss_fn_inputs["weights"], np.full(len(text) - 1, weight, "<f4"), messages().DTYPE_FLOAT32)
    return request.SerializeToString()


def _put(tensor: Any, values: np.ndarray, dtype: int) -> None:
    tensor.dense, tensor.dtype = values.tobytes(), dtype
    tensor.shape.extend(values.shape)


def sample_body(sampler: str, number: int, tokens: Sequence[int] = (1, 2, 3), count: int = 1, most: int = 4) -> Any:
    """The body of an asample."""
    return {
        "sampling_session_id": sampler,
        "seq_id": number,
        "num_samples": count,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": list(tokens)}]},
        "sampling_params": {"max_tokens": most, "stop": [], "temperature": 1.0, "seed": 1},
    }


def at_once(count: int, call: Any) -> list[Any]:
    """What as many threads get from a call at one time."""
    with ThreadPoolExecutor(count) as threads:
        return [one.result() for one in [threads.submit(call) for _ in range(count)]]


def metric(client: Client, name: str) -> float:
    """The sum of a metric of the server over its labels."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def is_one_line(answer: httpx.Response) -> bool:
    """Whether a refusal is JSON with one line, and nothing of the server in it."""
    text = json.loads(answer.content)["detail"]
    return "\n" not in text and len(text) < 400 and "Traceback" not in text and "/lossbook" not in text
