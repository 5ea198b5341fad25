"""Whatever bytes come, they are read or refused: no other error, little time, little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossbook.integrations.serve.refusals import Failed, Refused
from lossbook.integrations.serve.settings import Limits
from lossbook.integrations.serve.wire import requests
from lossbook.integrations.serve.wire.body import read_body
from lossbook.integrations.serve.wire.fields import Request, parsed
from lossbook.integrations.serve.wire.messages import messages
from lossbook.integrations.serve.wire.samples import Sample
from lossbook.integrations.serve.wire.training import ForwardBackward, read_forward_backward

pytest.importorskip("tinker", reason="the messages are in the SDK")
LIMITS = Limits(datums=20, tokens=100, chunks=10, columns=10, inputs=5, numbers=200, json_values=500)
MODELS = [one for one in vars(requests).values() if isinstance(one, type) and issubclass(one, Request)] + [Sample]
#: What a length may claim to be, and what nests without an end.
ODD = [
    b"\x80" * 20,
    b"\xff" * 9 + b"\x01",
    b"\xff" * 10,
    b"\x1a\xff\xff\xff\xff\x0f",
    b"\x0b" * 500,
    b"\x1a\x80\x01" * 100,
]


def valid() -> bytes:
    """A request with every kind of part."""
    pb = messages()
    message = pb.ForwardBackwardRequest(model_id="s:train:0", seq_id=3, loss_fn="ppo", loss_fn_config={"a": 0.5})
    message.loss_fn_config_v2["a"].number = 0.5
    message.loss_fn_config_v2["b"].text = "text"
    for _ in range(3):
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = np.array([1, 2, 3], "<i4").tobytes()
        datum.loss_fn_inputs["target_tokens"].CopyFrom(pb.Tensor(dense=bytes(24), dtype=2, shape=[3]))
        sparse = pb.SparseCsr(
            values=bytes(4), crow_indices=np.array([0, 1, 1, 1], "<i8").tobytes(), col_indices=bytes(8)
        )
        datum.loss_fn_inputs["weights"].CopyFrom(pb.Tensor(sparse_csr=sparse, dtype=1, shape=[3, 2]))
        for spans in (datum.model_input_spans, datum.loss_fn_input_spans):
            spans.add().sampled_tokens.MergeFrom(pb.SampledProvenanceSpan(sequence_id="q", length=3))
    return message.SerializeToString()


VALID = valid()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid request in which bytes were changed, cut out, repeated or put in."""
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 8)))
        new = draw(st.binary(max_size=8) | st.sampled_from(ODD) | st.just(bytes(data[at:end]) * 3))
        data[at:end] = new
    return bytes(data)


PROTOBUF = (
    mutated()
    | st.binary(max_size=300)
    | st.lists(st.sampled_from(ODD) | st.binary(max_size=6), max_size=8).map(b"".join)
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["s", "adamw", "encoded_text", "\0", "a" * 2000, -1, 0, 1]),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)


@st.composite
def bodies(draw: st.DrawFn, model: type[Request]) -> bytes:
    """JSON with the model's own fields, and others."""
    names = [name for name in model.model_fields if draw(st.integers(0, 3))]
    fields = {name: draw(VALUES | _likely(name)) for name in [*names, *draw(st.lists(st.text(max_size=5), max_size=2))]}
    return json.dumps(fields).encode()


def _likely(name: str) -> st.SearchStrategy[Any]:
    """Values that come further than to the first check."""
    numbers = st.lists(st.integers(-2, 5), max_size=4)
    if name == "prompt":
        chunk = st.fixed_dictionaries({"type": st.just("encoded_text"), "tokens": numbers}) | VALUES
        return st.fixed_dictionaries({"chunks": st.lists(chunk, max_size=4)})
    if name == "target_prompt_logprobs":
        keys = ("data", "shape", "sparse_crow_indices", "sparse_col_indices")
        return st.fixed_dictionaries({"data": numbers}, optional=dict.fromkeys(keys[1:], numbers))
    if name in ("adam_params", "optimizer_params", "lora_config", "sampling_params", "optimizer_config"):
        keys = ("rank", "learning_rate", "type", "seed", "stop", "max_tokens", "temperature", "new")
        return st.dictionaries(st.sampled_from(keys), VALUES, max_size=3)
    if name.endswith("seq_id"):
        return st.integers(0, 9)
    return st.sampled_from(["s", "s:train:0", True, 1])


def check_training(raw: bytes) -> None:
    try:
        result = read_forward_backward(raw, LIMITS)
    except Refused as refused:
        check_words(refused.message)
    else:
        assert isinstance(result, ForwardBackward)
        assert result.problem is None or result.data == []
        if result.problem is not None:
            check_words(result.problem.message)


def check_request(model: type[Request], raw: bytes) -> None:
    try:
        request = parsed(model, raw, LIMITS)
    except Refused as refused:
        check_words(refused.message)
        return
    uses: list[Callable[[], Any]] = []
    if isinstance(request, Sample):
        uses = [request.model_input, lambda: request.keywords(LIMITS)]
    if isinstance(request, requests.OptimStep):
        uses = [request.params]
    if isinstance(request, requests.CreateModel) and request.lora_config is not None:
        uses = [request.lora_config.config]
    for use in uses:
        try:
            use()
        except (Refused, Failed) as error:
            check_words(error.message)


def check_words(message: str) -> None:
    assert message
    assert len(message) < 1000
    assert message.isprintable()


QUICK = settings(max_examples=60, suppress_health_check=(HealthCheck.too_slow,))
LONG = settings(QUICK, max_examples=1000)


def test_the_valid_request_is_valid() -> None:
    result = read_forward_backward(VALID, LIMITS)
    assert result.problem is None
    assert len(result.data) == 3


@QUICK
@given(raw=PROTOBUF)
def test_any_bytes_of_protobuf_are_read_or_refused(raw: bytes) -> None:
    check_training(raw)


@QUICK
@given(data=st.data(), model=st.sampled_from(MODELS))
def test_any_bytes_of_json_are_read_or_refused(data: st.DataObject, model: type[Request]) -> None:
    check_request(model, data.draw(bodies(model) | st.binary(max_size=60)))


@QUICK
@given(raw=st.binary(max_size=100) | st.binary(max_size=60).map(lambda data: b"\x28\xb5\x2f\xfd" + data))
def test_any_bytes_of_zstd_are_read_or_refused(raw: bytes) -> None:
    try:
        read_body(raw, "zstd", Limits(body_bytes=10_000))
    except Refused as refused:
        check_words(refused.message)


@pytest.mark.slow
@LONG
@given(raw=PROTOBUF)
def test_many_bytes_of_protobuf_are_read_or_refused(raw: bytes) -> None:
    check_training(raw)


@pytest.mark.slow
@LONG
@given(data=st.data(), model=st.sampled_from(MODELS))
def test_many_bytes_of_json_are_read_or_refused(data: st.DataObject, model: type[Request]) -> None:
    check_request(model, data.draw(bodies(model) | st.binary(max_size=60)))


def field(number: int, body: bytes) -> bytes:
    size, length = b"", len(body)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + body


#: Bodies of 64 MiB that would become gigabytes of objects.
LARGE: dict[str, Callable[[], bytes]] = {
    "datums of two bytes": lambda: field(3, b"") * (32 * 2**20),
    "chunks of two bytes": lambda: field(3, field(1, b"") * (32 * 2**20 - 4)),
    "inputs of two bytes": lambda: field(3, field(2, b"") * (32 * 2**20 - 4)),
    "spans of two bytes": lambda: field(3, field(3, b"") * (32 * 2**20 - 4)),
    "settings of two bytes": lambda: field(7, b"") * (32 * 2**20),
    "shapes of a byte a length": lambda: field(3, field(2, field(2, field(4, bytes(64 * 2**20 - 20))))),
    "unknown fields": lambda: field(9, b"") * (32 * 2**20),
    "groups": lambda: b"\x7b" * (64 * 2**20),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_body_at_its_limit_does_not_become_gigabytes(name: str) -> None:
    code = """
import resource, sys
from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.settings import Limits
from lossbook.integrations.serve.wire.messages import messages
from lossbook.integrations.serve.wire.training import read_forward_backward
raw, _ = sys.stdin.buffer.read(), messages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_forward_backward(raw, Limits())
except Refused as refused:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], input=LARGE[name](), capture_output=True, check=True)
    assert int(done.stdout) * (1 if sys.platform == "darwin" else 1024) < 64 * 2**20
