"""Requests of our own, for what the SDK cannot do: send the same one twice.

The messages are those of the installed `tinker` package, so nothing of the protocol is written down here but paths and fields.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...datums.extras import require
from .material import Example

#: (path, body, headers) -> (status, content type, body).
Post = Callable[[str, bytes | Mapping[str, Any], Mapping[str, str]], tuple[int, str, bytes]]
_PROTOBUF = "application/x-protobuf"


class WireError(Exception):
    """A request that was refused, or whose future failed; the message is the server's."""


def http_post(address: str, key: str, timeout: float) -> Post:
    """Posts through httpx, which comes with the SDK."""
    httpx = require("httpx", "serve", "raw requests to a server")
    client = httpx.Client(base_url=address, headers={"X-API-Key": key}, timeout=timeout)

    def post(path: str, body: bytes | Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str, bytes]:
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        response = client.post(path, headers=dict(headers), **content)
        return response.status_code, response.headers.get("content-type", ""), response.content

    return post


class Wire:
    """The few calls that are made raw; each names its number, so that a caller may send it twice."""

    def __init__(self, post: Post, timeout: float) -> None:
        self._post = post
        self._timeout = timeout
        self.messages = require("tinker.proto.tinker_public_pb2", "serve", "raw requests to a server")

    def json(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON answer of a request. Raises WireError for a status that is not 2xx."""
        return json.loads(self._sent(path, body, {}))

    def submitted(self, path: str, body: bytes | Mapping[str, Any]) -> str:
        """The id of the promise that a request gets."""
        headers = {"Content-Type": _PROTOBUF} if isinstance(body, bytes) else {}
        return json.loads(self._sent(path, body, headers))["request_id"]

    def answer(self, request_id: str, *, protobuf: bool = False) -> Any:
        """A promise's answer: bytes, or what JSON holds. Raises WireError where it failed, TimeoutError."""
        headers = {"Accept": _PROTOBUF if protobuf else "application/json"}
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            body = {"request_id": request_id, "allow_metadata_only": False}
            status, kind, content = self._post("/api/v1/retrieve_future", body, headers)
            if status == 408 or (status == 200 and b'"try_again"' in content[:200]):
                time.sleep(0.05)
                continue
            if status != 200 or (protobuf and _PROTOBUF not in kind):
                raise WireError(f"retrieve_future answered {status} {kind}: {content[:200].decode(errors='replace')}")
            if protobuf:
                return content
            answered = json.loads(content)
            if "error" in answered:
                raise WireError(str(answered["error"]))
            return answered
        raise TimeoutError

    def _sent(self, path: str, body: bytes | Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
        status, _, content = self._post(f"/api/v1/{path}", body, headers)
        if not 200 <= status < 300:
            raise WireError(f"{path} answered {status}: {content[:200].decode(errors='replace')}")
        return content


@dataclass
class RawModel:
    """A model in training, by raw requests; `times` is how often each is sent."""

    wire: Wire
    model_id: str

    @classmethod
    def made(cls, wire: Wire, model: str, rank: int, seed: int) -> RawModel:
        """A new session with one model."""
        session = wire.json("create_session", {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0"})["session_id"]
        body = {
            "session_id": session,
            "model_seq_id": 0,
            "base_model": model,
            "lora_config": {"rank": rank, "seed": seed, "train_unembed": True, "train_mlp": True, "train_attn": True},
            "type": "create_model",
        }
        return cls(wire, wire.answer(wire.submitted("create_model", body))["model_id"])

    def forward_backward(
        self, seq_id: int, examples: Sequence[Example], *, times: int = 1, forward: bool = False
    ) -> Any:
        """The decoded answer of a cross-entropy call; all copies are sent before any is answered."""
        body = self.request(seq_id, examples, forward)
        ids = [self.wire.submitted("forward_backward", body) for _ in range(times)]
        answers = [self.wire.answer(one, protobuf=True) for one in ids]
        return self.wire.messages.ForwardBackwardOutput.FromString(answers[-1])

    def optim_step(self, seq_id: int, adam: Mapping[str, float], *, times: int = 1) -> None:
        """One step, sent that often."""
        body = {"model_id": self.model_id, "seq_id": seq_id, "adam_params": dict(adam), "type": "optim_step"}
        for one in [self.wire.submitted("optim_step", body) for _ in range(times)]:
            self.wire.answer(one)

    def logprobs(self, seq_id: int, examples: Sequence[Example]) -> np.ndarray:
        """Logprobs of all positions of all examples, one after the other."""
        messages, output = self.wire.messages, self.forward_backward(seq_id, examples, forward=True)
        return np.concatenate(
            [decoded(record.fields["logprobs"], messages.DTYPE_BFLOAT16) for record in output.loss_fn_outputs]
        )

    def request(self, seq_id: int, examples: Sequence[Example], forward: bool = False) -> bytes:
        """The body of a cross-entropy call."""
        messages = self.wire.messages
        request = messages.ForwardBackwardRequest(
            model_id=self.model_id, seq_id=seq_id, loss_fn="cross_entropy", forward_only=forward
        )
        for example in examples:
            datum = request.data.add()
            datum.model_input.add().encoded_text.tokens = example.tokens.astype("<i4").tobytes()
            for name, value in example.inputs.items():
                whole = np.issubdtype(value.dtype, np.integer)
                tensor = datum.loss_fn_inputs[name]
                tensor.dense = value.astype("<i8" if whole else "<f4").tobytes()
                tensor.dtype = messages.DTYPE_INT64 if whole else messages.DTYPE_FLOAT32
                tensor.shape.extend(value.shape)
        return request.SerializeToString()


def decoded(tensor: Any, bfloat16: int) -> np.ndarray:
    """A `BatchedTensor` as float64, whether it travelled as float32 or as bfloat16."""
    if tensor.dtype == bfloat16:
        wide = np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64)
    return np.frombuffer(tensor.data, "<f4").astype(np.float64)
