"""What travels to workers arrives as it was: a law over all datums, outputs, prompts and samples."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import lossbook as lb
from lossbook.datums.types import EncodedTextChunk, TensorData, own_datums
from lossbook.trainer.responses import SampledSequence, SampleResponse, TopLogprobs
from lossbook.trainer.workers.flat import FlatDatums, FlatLists, FlatSamples, flat_top, top_of

IDS = st.integers(-(2**63), 2**63 - 1)
DENSE = arrays.arrays(
    st.sampled_from([np.dtype(np.int64), np.dtype(np.float32)]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
).map(lb.TensorData)
KEYS = st.sampled_from(["weights", "advantages", "label", "my key", "ä", ""])


@st.composite
def sparse(draw: st.DrawFn) -> lb.TensorData:
    rows, columns = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    counts = draw(st.lists(st.integers(0, columns), min_size=rows, max_size=rows))
    col = [c for count in counts for c in range(count)]
    dtype = draw(st.sampled_from(["int64", "float32"]))
    data = draw(arrays.arrays(dtype, len(col)))
    return lb.TensorData(data, dtype, [rows, columns], [0, *np.cumsum(counts, dtype=int).tolist()], col)


@st.composite
def datums(draw: st.DrawFn) -> lb.Datum:
    chunks = draw(st.lists(st.lists(IDS, max_size=4).map(EncodedTextChunk), max_size=3))
    inputs = draw(st.dictionaries(KEYS, st.one_of(DENSE, sparse()), max_size=4))
    return lb.Datum(lb.ModelInput(chunks), inputs)


def bits(tensor: lb.TensorData) -> tuple[Any, ...]:
    """All that a TensorData is, NaN's bits included."""
    listed = np.array(tensor.data, tensor.dtype).tobytes() if tensor.sparse_col_indices is not None else b""
    return (
        tensor.dtype,
        tensor.shape,
        tensor.to_numpy().tobytes(),
        listed,
        tensor.sparse_crow_indices,
        tensor.sparse_col_indices,
    )


def whole(datum: lb.Datum) -> Any:
    inputs = [(key, bits(value)) for key, value in datum.loss_fn_inputs.items()]
    return datum.model_input, inputs


@given(st.lists(datums(), max_size=5))
def test_datums_arrive_bit_for_bit_with_their_chunks_keys_and_order(given_datums: list[lb.Datum]) -> None:
    sent = pickle.dumps(FlatDatums.of(given_datums), protocol=5)
    assert [whole(one) for one in pickle.loads(sent).datums()] == [whole(one) for one in given_datums]


def test_arrays_arrive_read_only_as_losses_expect_them_and_ray_sends_them() -> None:
    flat = FlatDatums.of([lb.Datum(lb.ModelInput.from_ints([1, 2]), {"weights": [1.0, 0.0]})])
    for array in (flat.inputs.floats, flat.inputs.ints):
        array.flags.writeable = False
    (datum,) = flat.datums()
    assert not datum.loss_fn_inputs["weights"].to_numpy().flags.writeable
    assert own_datums([datum])[0].loss_fn_inputs["weights"].data == [1.0, 0.0]


def test_what_a_subclass_of_datum_adds_stays_with_the_client() -> None:
    class Noted(lb.Datum):
        pass

    noted = Noted(lb.ModelInput.from_ints([1, 2]), {"weights": [1.0, 0.0]})
    (arrived,) = FlatDatums.of([noted]).datums()
    assert type(arrived) is lb.Datum
    assert whole(arrived) == whole(noted)


def test_a_token_beyond_64_bits_is_refused_rather_than_wrapped() -> None:
    with pytest.raises(OverflowError):
        FlatLists.of([[1, 2**63]])


SEQUENCES = st.lists(IDS, max_size=3).flatmap(
    lambda tokens: st.builds(
        SampledSequence,
        st.just(tokens),
        st.lists(st.floats(allow_nan=False), min_size=len(tokens), max_size=len(tokens)),
        st.sampled_from(["stop", "length"]),
    )
)


@given(
    st.lists(
        st.builds(
            SampleResponse,
            st.lists(SEQUENCES, max_size=3),
            st.none() | st.lists(st.none() | st.floats(allow_nan=False), max_size=3),
        ),
        max_size=4,
    )
)
def test_samples_arrive_as_they_were(responses: list[SampleResponse]) -> None:
    assert pickle.loads(pickle.dumps(FlatSamples.of(responses))).responses() == responses


def test_what_was_asked_about_prompts_and_likeliest_tokens_arrives_as_it_was() -> None:
    top = TopLogprobs(np.array([[3, 1], [2, 0]], np.int64), np.array([[-0.5, -np.inf], [-1.0, -2.0]], np.float32))
    targets = TensorData([-0.5, 0.0], "float32", [2, 3], [0, 1, 2], [2, 0])
    response = SampleResponse([SampledSequence([4, 5], [-1.0, -2.0], "stop", top)], [None, -0.25], top, targets)
    (arrived,) = pickle.loads(pickle.dumps(FlatSamples.of([response]))).responses()
    assert arrived.prompt_logprobs == [None, -0.25]
    assert arrived.target_prompt_logprobs == targets
    assert arrived.target_prompt_logprobs.sparse_col_indices == [2, 0]
    for one in (arrived.topk_prompt_logprobs, arrived.sequences[0].topk_logprobs):
        assert one is not None
        assert np.array_equal(one.tokens, top.tokens)
        assert np.array_equal(one.logprobs, top.logprobs)


def test_likeliest_tokens_arrive_with_those_that_have_no_rows() -> None:
    one = TopLogprobs(np.array([[3, 1]], np.int64), np.array([[-0.5, -np.inf]], np.float32))
    none = TopLogprobs(np.zeros((0, 2), np.int64), np.zeros((0, 2), np.float32))
    for sent, arrived in zip([none, one], map(top_of, flat_top([none, one]).dicts()), strict=True):
        assert np.array_equal(arrived.tokens, sent.tokens)
        assert np.array_equal(arrived.logprobs, sent.logprobs)
        assert (arrived.tokens.dtype, arrived.logprobs.dtype) == (np.int64, np.float32)
