"""What the SDK writes into a `ForwardBackwardRequest` is read to the same numbers; what is wrong is said, by datum and key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lossbook.integrations.serve.refusals import Failed, Refused
from lossbook.integrations.serve.settings import Limits
from lossbook.integrations.serve.wire.messages import messages
from lossbook.integrations.serve.wire.training import ForwardBackward, read_forward_backward

tinker = pytest.importorskip("tinker", reason="the SDK, which is the contract")
to_proto = pytest.importorskip("tinker.proto.request_conv").forward_backward_request_to_proto
types = pytest.importorskip("tinker.types.forward_backward_request")

MODEL = "session-0:train:0"
LIMITS = Limits()
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=6)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = arrays.array_shapes(max_dims=2, max_side=5)
#: Keys by dtype: some that lossbook knows, and one of a loss of one's own.
FLOAT_KEYS, INT_KEYS = ("weights", "advantages", "logprobs", "mine"), ("target_tokens", "ids")


def request(data: list[Any], loss_fn: str = "cross_entropy", config: dict[str, float | str] | None = None) -> Any:
    given = tinker.types.ForwardBackwardInput(data=data, loss_fn=loss_fn, loss_fn_config=config)
    return types.ForwardBackwardRequest(forward_backward_input=given, model_id=MODEL, seq_id=3)


def written(*args: Any) -> bytes:
    return to_proto(request(*args)).SerializeToString()


def read(*args: Any, limits: Limits = LIMITS) -> ForwardBackward:
    return read_forward_backward(written(*args), limits)


@st.composite
def tensors(draw: st.DrawFn, dtype: type) -> Any:
    """A tensor of the SDK, dense or, where that is smaller, CSR."""
    elements = FLOATS if dtype is np.float32 else st.integers(-(2**63), 2**63 - 1)
    array = draw(arrays.arrays(dtype, SHAPES, elements=elements | st.just(0)))
    if draw(st.booleans()):
        return tinker.TensorData.from_torch_sparse(torch.from_numpy(array))
    return tinker.TensorData.from_numpy(array)


@st.composite
def datums(draw: st.DrawFn) -> Any:
    chunks = [tinker.types.EncodedTextChunk(tokens=tokens) for tokens in draw(st.lists(TOKENS, max_size=3))]
    inputs = {
        **draw(st.dictionaries(st.sampled_from(FLOAT_KEYS), tensors(np.float32), max_size=3)),
        **draw(st.dictionaries(st.sampled_from(INT_KEYS), tensors(np.int64), max_size=2)),
    }
    return tinker.Datum(model_input=tinker.ModelInput(chunks=chunks), loss_fn_inputs=inputs)


CONFIGS = st.dictionaries(
    st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5), max_size=4
)


@settings(max_examples=40)
@given(data=st.lists(datums(), max_size=4), config=st.none() | CONFIGS)
def test_what_the_sdk_writes_is_read_to_the_same_numbers(
    data: list[Any], config: dict[str, float | str] | None
) -> None:
    result = read(data, "ppo", config)
    assert (result.model_id, result.seq_id, result.forward_only, result.loss_fn) == (MODEL, 3, False, "ppo")
    assert result.problem is None
    assert result.config == (config or {})
    assert len(result.data) == len(data)
    for ours, theirs in zip(result.data, data, strict=True):
        assert ours.model_input.to_ints() == [int(token) for token in theirs.model_input.to_ints()]
        assert ours.loss_fn_inputs.keys() == theirs.loss_fn_inputs.keys()
        for key, tensor in ours.loss_fn_inputs.items():
            assert tensor.dtype == theirs.loss_fn_inputs[key].dtype
            assert tensor.sparse_crow_indices is None
            np.testing.assert_array_equal(tensor.to_numpy(), theirs.loss_fn_inputs[key].to_numpy())


def datum(tokens: int = 3, /, **inputs: Any) -> Any:
    tensors = {key: tinker.TensorData.from_numpy(np.asarray(value)) for key, value in inputs.items()}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(list(range(tokens))), loss_fn_inputs=tensors)


def test_a_matrix_in_csr_is_written_out_with_zeros() -> None:
    weights = tinker.TensorData(
        data=[5.0, 7.0], dtype="float32", shape=[3, 4], sparse_crow_indices=[0, 1, 1, 2], sparse_col_indices=[2, 0]
    )
    sent = tinker.Datum(model_input=tinker.ModelInput.from_ints([1, 2, 3]), loss_fn_inputs={"weights": weights})
    assert read([sent]).data[0].loss_fn_inputs["weights"].tolist() == [[0, 0, 5, 0], [0, 0, 0, 0], [7, 0, 0, 0]]


def test_a_number_of_a_datum_is_read_as_a_number_though_it_travels_without_a_shape() -> None:
    (several,) = read([datum(3, label=np.float32(1.0))]).data
    assert several.loss_fn_inputs["label"].to_numpy().shape == ()
    (single,) = read([datum(1, weights=np.ones(1, np.float32))]).data
    assert single.loss_fn_inputs["weights"].to_numpy().shape == (1,)


def test_spans_of_provenance_are_read_in_their_order() -> None:
    prompt, sampled = tinker.types.PromptProvenanceSpan, tinker.types.SampledProvenanceSpan
    spans = [prompt(sequence_id="a", offset=1, length=1), sampled(sequence_id="b", offset=0, length=2)]
    result = read([datum(target_tokens=[1, 2, 3]).with_provenance(spans, spans)]).data[0]
    for ours in (result.model_input_spans, result.loss_fn_input_spans):
        assert ours is not None
        assert [(type(span).__name__, vars(span)) for span in ours] == [
            ("PromptProvenanceSpan", {"sequence_id": "a", "offset": 1, "length": 1}),
            ("SampledProvenanceSpan", {"sequence_id": "b", "offset": 0, "length": 2}),
        ]


def test_only_a_forward_and_a_custom_loss_are_told_apart() -> None:
    message = to_proto(request([datum()], "custom", {"loss_id": "loss-7", "beta": 0.5}))
    message.forward_only = True
    result = read_forward_backward(message.SerializeToString(), LIMITS)
    assert result.forward_only
    assert result.loss_id == "loss-7"
    assert result.config == {"loss_id": "loss-7", "beta": 0.5}
    assert read([datum()], "ppo", {"loss_id": "loss-7"}).loss_id is None


def test_the_older_map_of_settings_is_read_where_the_newer_is_absent() -> None:
    message = to_proto(request([datum()], "ppo", {"beta": 0.5}))
    message.ClearField("loss_fn_config_v2")
    assert read_forward_backward(message.SerializeToString(), LIMITS).config == {"beta": 0.5}


def tensor(**fields: Any) -> Any:
    return messages().Tensor(**fields)


def csr(crow: list[int], col: list[int], values: int = 2, shape: tuple[int, ...] = (2, 3)) -> Any:
    parts = {"crow_indices": np.array(crow, "<i8").tobytes(), "col_indices": np.array(col, "<i8").tobytes()}
    return tensor(dtype=1, shape=shape, sparse_csr=messages().SparseCsr(values=bytes(4 * values), **parts))


def one_tensor(value: Any) -> bytes:
    message = messages().ForwardBackwardRequest(model_id=MODEL, seq_id=3, loss_fn="ppo")
    for _ in range(2):
        message.data.add().model_input.add().encoded_text.tokens = np.array([1, 2, 3], "<i4").tobytes()
    message.data[1].loss_fn_inputs["weights"].CopyFrom(value)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(tensor(dense=bytes(8)), "dtype 0", id="no dtype"),
        pytest.param(tensor(dense=bytes(8), dtype=9), "dtype 9", id="a dtype that is not there"),
        pytest.param(tensor(dense=bytes(7), dtype=1), "7 bytes", id="half a number"),
        pytest.param(
            tensor(dense=bytes(8), dtype=1, shape=[3]), r"\[3\], which is 3 numbers, but holds 2", id="a wrong shape"
        ),
        pytest.param(tensor(dense=bytes(8), dtype=1, shape=[-1]), r"\[-1\]", id="a negative length"),
        pytest.param(tensor(dense=bytes(4), dtype=1, shape=[1] * 5), "up to 4", id="five axes"),
        pytest.param(csr([0, 1, 2], [0, 1], shape=(2,)), "two axes", id="CSR of one axis"),
        pytest.param(csr([0, 1, 2], [0, 1], shape=()), "two axes", id="CSR without a shape"),
        pytest.param(csr([0, 2], [0, 1]), "must be 3 numbers", id="too few rows"),
        pytest.param(csr([], []), "must be 3 numbers", id="no rows"),
        pytest.param(csr([1, 1, 2], [0, 1]), "rise from 0", id="rows that begin late"),
        pytest.param(csr([0, 2, 1], [0, 1]), "rise from 0", id="rows that end early"),
        pytest.param(csr([0, 3, 2], [0, 1]), "rise from 0", id="rows that fall"),
        pytest.param(csr([0, 1, 2], [0, 3]), "from 0 to 2", id="a column behind the last"),
        pytest.param(csr([0, 1, 2], [-1, 0]), "from 0 to 2", id="a column before the first"),
        pytest.param(csr([0, 1, 2], [0, 1], values=3), "2 col_indices for 3 values", id="more values than places"),
    ],
)
def test_a_tensor_that_is_none_fails_the_future_and_names_datum_and_key(value: Any, message: str) -> None:
    result = read_forward_backward(one_tensor(value), LIMITS)
    assert isinstance(result.problem, Failed)
    assert result.problem.category == "user"
    assert result.data == []
    with pytest.raises(Failed, match=rf"datum 1 of 2, 'weights'.*{message}"):
        raise result.problem


def test_other_widths_of_numbers_are_read_exactly() -> None:
    def numbers(value: Any) -> Any:
        return read_forward_backward(one_tensor(value), LIMITS).data[1].loss_fn_inputs["weights"].tolist()

    assert numbers(tensor(dense=np.array([1, -2], "<i4").tobytes(), dtype=3)) == [1.0, -2.0]
    halves = torch.tensor([1.5, -0.25], dtype=torch.bfloat16).view(torch.uint16).numpy()
    assert numbers(tensor(dense=halves.tobytes(), dtype=4)) == [1.5, -0.25]


@pytest.mark.parametrize(
    ("chunk", "kind"),
    [
        (tinker.types.ImageChunk(data=b"x", format="png", expected_tokens=4), "image"),
        (tinker.types.DmelChunk(dmel=b"x"), "dmel"),
    ],
)
def test_images_and_speech_fail_the_future(chunk: Any, kind: str) -> None:
    sent = tinker.Datum(model_input=tinker.ModelInput(chunks=[chunk]), loss_fn_inputs={})
    assert f"datum 1 of 2: chunk 0 of 1 is '{kind}', but models here read text only" in str(
        read([datum(), sent]).problem
    )


def test_what_the_door_says_of_a_key_fails_the_future() -> None:
    assert "datum 0 of 1: loss_fn_inputs['target_tokens']" in str(read([datum(target_tokens=[0.5])]).problem)
    message = to_proto(request([datum()], "ppo", {"beta": 0.5}))
    message.loss_fn_config_v2["beta"].number = float("nan")
    assert "loss_fn_config['beta'] is nan" in str(read_forward_backward(message.SerializeToString(), LIMITS).problem)


@pytest.mark.parametrize(
    ("data", "limits", "name"),
    [
        pytest.param([datum(0)] * 5, Limits(datums=4), "datums", id="datums"),
        pytest.param([datum(3)] * 2, Limits(tokens=5), "tokens", id="tokens of all datums"),
        pytest.param([datum(3, mine=np.zeros((1, 5)))], Limits(columns=4), "columns", id="columns"),
        pytest.param([datum(3, mine=np.zeros(3))] * 2, Limits(numbers=5), "numbers", id="numbers of all datums"),
        pytest.param([datum(3, **{key: [1] for key in "abc"})], Limits(inputs=2), "inputs", id="inputs"),
        pytest.param([datum(3, a=[1])] * 9, Limits(json_values=50), "json_values", id="fields in all"),
    ],
)
def test_above_a_limit_the_request_is_refused_by_the_limits_name(data: list[Any], limits: Limits, name: str) -> None:
    assert read(data).problem is None
    with pytest.raises(Refused, match=f"the limit {name}") as refused:
        read(data, limits=limits)
    assert refused.value.status == 400
    assert refused.value.used == (MODEL, "seq", 3)


def test_too_many_chunks_or_settings_are_refused() -> None:
    chunks = [tinker.types.EncodedTextChunk(tokens=[1])] * 5
    sent = tinker.Datum(model_input=tinker.ModelInput(chunks=chunks), loss_fn_inputs={})
    with pytest.raises(Refused, match="more than 4 chunks, the limit chunks"):
        read([sent], limits=Limits(chunks=4))
    with pytest.raises(Refused, match="more than 2 loss_fn_config, the limit inputs"):
        read([datum()], "ppo", dict.fromkeys("abc", 1.0), limits=Limits(inputs=2))


def test_a_csr_matrix_that_would_fill_the_memory_is_refused_before_it_is_written_out() -> None:
    rows = 60_000_000
    value = tensor(dtype=1, shape=[rows, 1000], sparse_csr=messages().SparseCsr())
    with pytest.raises(Refused, match="60000000000 numbers, and the limit numbers"):
        read_forward_backward(one_tensor(value), LIMITS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seq_id": 3}, "model_id"),
        ({"model_id": MODEL}, "seq_id of 1 or more"),
        ({"model_id": MODEL, "seq_id": -1}, "seq_id of 1 or more"),
        ({"model_id": "a b", "seq_id": 1}, "model_id"),
        ({"model_id": "a" * 300, "seq_id": 1}, "model_id"),
    ],
)
def test_a_request_without_its_number_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        read_forward_backward(messages().ForwardBackwardRequest(**fields).SerializeToString(), LIMITS)
    assert refused.value.status == 400
    assert refused.value.used is None


def test_an_old_client_that_sends_json_is_told_to_upgrade() -> None:
    with pytest.raises(Refused, match=r"pip install -U 'tinker>=0\.38'"):
        read_forward_backward(b'{"model_id": "a"}', LIMITS)


def test_an_empty_request_is_read() -> None:
    assert read([]).data == []  # what a loss says to no datums is the trainer's matter
