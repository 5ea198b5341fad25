"""Requests that arrive twice: a server of the protocol's bytes on the Tinker door, which counts them once, or does not."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lossbook.integrations import tinker
from lossbook.integrations.conform import ConformSettings, Connection, check_server
from lossbook.integrations.conform.material import Example, as_datum
from lossbook.integrations.conform.wire import Wire, WireError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    messages = pytest.importorskip("tinker.proto.tinker_public_pb2", reason="the official SDK comes with lossbook[dev]")

PROTOBUF, JSON = "application/x-protobuf", "application/json"


class FakeServer:
    """As much of a server as raw requests need. counts_once: a number that comes again gets the first one's promise."""

    def __init__(self, *, counts_once: bool = True, keeps_answers: bool = True) -> None:
        self.counts_once, self.keeps_answers = counts_once, keeps_answers
        self.service = tinker.ServiceClient()
        self.models: dict[str, Any] = {}
        self.samplers: dict[str, Any] = {}
        self.promises: dict[Any, str] = {}
        self.answers: dict[str, tuple[str, bytes]] = {}
        self.polls = itertools.count()
        self.ids = itertools.count()

    def post(self, path: str, body: bytes | Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str, bytes]:
        call = path.rpartition("/")[2]
        if call == "retrieve_future":
            assert isinstance(body, Mapping)
            return self.retrieved(body["request_id"])
        if call == "create_session":
            return self.said({"session_id": f"session-{next(self.ids)}"})
        if call == "create_sampling_session":
            assert isinstance(body, Mapping)
            key = f"sampler-{next(self.ids)}"
            self.samplers[key] = self.service.create_sampling_client(base_model=body["base_model"]).result()
            return self.said({"sampling_session_id": key})
        request: Any = messages.ForwardBackwardRequest.FromString(body) if isinstance(body, bytes) else body
        scope = getattr(request, "model_id", None) or request.get("model_id") or request.get("sampling_session_id")
        number = request.seq_id if isinstance(body, bytes) else request.get("seq_id")
        if not self.counts_once or number is None or (scope, number) not in self.promises:
            promise = f"request-{next(self.ids)}"
            self.answers[promise] = getattr(self, call)(request)
            self.promises[scope, number] = promise
        return self.said({"request_id": self.promises[scope, number]})

    def retrieved(self, request_id: str) -> tuple[int, str, bytes]:
        if next(self.polls) % 3 == 0:
            return 408, JSON, b'{"queue_state": "active"}'
        if request_id not in self.answers:
            return 404, JSON, b'{"error": "no such request"}'
        kind, content = self.answers[request_id] if self.keeps_answers else self.answers.pop(request_id)
        return 200, kind, content

    def said(self, answer: Mapping[str, Any]) -> tuple[int, str, bytes]:
        return 200, JSON, json.dumps(answer).encode()

    def create_model(self, request: Mapping[str, Any]) -> tuple[str, bytes]:
        lora = request["lora_config"]
        made = self.service.create_lora_training_client(request["base_model"], rank=lora["rank"], seed=lora["seed"])
        model_id = f"{request['session_id']}:train:{request['model_seq_id']}"
        self.models[model_id] = made.result()
        return JSON, json.dumps({"model_id": model_id}).encode()

    def optim_step(self, request: Mapping[str, Any]) -> tuple[str, bytes]:
        model = self.models[request["model_id"]]
        model.optim_step(tinker.AdamParams(**request["adam_params"])).result()
        return JSON, b'{"metrics": null}'

    def forward_backward(self, request: Any) -> tuple[str, bytes]:
        model = self.models[request.model_id]
        call = model.forward if request.forward_only else model.forward_backward
        output = call([as_datum(tinker, self.read(one)) for one in request.data], request.loss_fn).result()
        answer = messages.ForwardBackwardOutput(metrics={"loss:sum": output.metrics["loss:sum"]})
        rows = [one["logprobs"].to_numpy().astype("<f4") for one in output.loss_fn_outputs]
        record = answer.loss_fn_outputs.add(num_datums=len(rows))
        record.fields["logprobs"].data = b"".join(row.tobytes() for row in rows)
        record.fields["logprobs"].dtype = messages.DTYPE_FLOAT32
        return PROTOBUF, answer.SerializeToString()

    def asample(self, request: Mapping[str, Any]) -> tuple[str, bytes]:
        prompt = tinker.ModelInput.from_ints(request["prompt"]["chunks"][0]["tokens"])
        params = tinker.SamplingParams(**request["sampling_params"])
        sampler = self.samplers[request["sampling_session_id"]]
        answer = messages.SampleResponse()
        for one in sampler.sample(prompt, request["num_samples"], params).result().sequences:
            answer.sequences.add(tokens=np.array(one.tokens, "<i4").tobytes())
        return PROTOBUF, answer.SerializeToString()

    def read(self, datum: Any) -> Example:
        tokens = np.frombuffer(datum.model_input[0].encoded_text.tokens, "<i4")
        inputs = {
            name: np.frombuffer(one.dense, "<i8" if one.dtype == messages.DTYPE_INT64 else "<f4").reshape(
                tuple(one.shape)
            )
            for name, one in datum.loss_fn_inputs.items()
        }
        return Example(tokens, inputs)


def verdicts(small: ConformSettings, server: FakeServer) -> dict[str, str]:
    connection = Connection("raw", tinker, lambda: server.service, lambda timeout: Wire(server.post, timeout))
    return {one.id: one.verdict for one in check_server(connection, small, ["retry.*"]).findings}


def test_a_server_that_counts_each_number_once_keeps_the_promises_of_retries(small: ConformSettings) -> None:
    assert set(verdicts(small, FakeServer()).values()) == {"holds"}


@pytest.mark.slow
def test_a_server_that_runs_a_request_again_breaks_them(small: ConformSettings) -> None:
    assert verdicts(small, FakeServer(counts_once=False)) == {
        "retry.gradient": "fails",
        "retry.step": "fails",
        "retry.sample": "fails",
        "retry.answer": "holds",
    }


@pytest.mark.slow
def test_a_server_that_forgets_an_answer_when_it_was_read_breaks_that_promise(small: ConformSettings) -> None:
    broken = {name for name, verdict in verdicts(small, FakeServer(keeps_answers=False)).items() if verdict == "fails"}
    assert broken == {"retry.gradient", "retry.step", "retry.sample", "retry.answer"}  # all fetch an answer twice


def test_a_refusal_is_quoted(small: ConformSettings) -> None:
    wire = Wire(lambda path, body, headers: (400, JSON, b'{"detail": "seq_id: must be 1 or more"}'), small.timeout)
    with pytest.raises(WireError, match=r"optim_step answered 400.*seq_id"):
        wire.submitted("optim_step", {})
