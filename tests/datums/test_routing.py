"""Routing matrices as texts: what is taken, what comes back, and what is refused."""

from __future__ import annotations

import base64
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lossbook as lb
from lossbook.datums.routing import decode_routing, encode_routing
from lossbook.datums.types import as_model_input, own_datums


@given(
    st.integers(0, 5), st.integers(1, 4), st.integers(1, 3), st.sampled_from([3, 256, 257, 40_000]), st.integers(0, 99)
)
def test_experts_come_back_as_they_were_given(
    tokens: int, layers: int, width: int, num_experts: int, seed: int
) -> None:
    drawn = np.random.default_rng(seed)
    shape = (tokens, layers, num_experts if num_experts == 3 else 9)
    experts = drawn.permuted(np.broadcast_to(np.arange(shape[2]) * (num_experts // shape[2]), shape), axis=2)[
        ..., :width
    ]
    experts = np.where(drawn.random(tokens)[:, None, None] < 0.3, -1, experts)
    texts = encode_routing(experts, num_experts)
    assert [text == "" for text in texts] == [bool((one == -1).all()) for one in experts]
    back = decode_routing(texts, layers=layers, width=width, num_experts=num_experts)
    assert np.array_equal(back, experts.reshape(tokens, layers, width))


def test_one_text_is_bytes_of_layers_and_experts_in_base64() -> None:
    # the form of docs.fireworks.ai/guides/rollout-inference: a flattened uint8 array [layers with experts, active experts]
    assert encode_routing([[[9, 139], [214, 63]]]) == [base64.b64encode(bytes([9, 139, 214, 63])).decode()]


@pytest.mark.parametrize(
    ("matrices", "error", "message"),
    [
        pytest.param("AAA=", lb.errors.DtypeError, "a list with one base64 text a token, not str", id="one text"),
        pytest.param(np.zeros((3, 1, 1)), lb.errors.DtypeError, "encode_routing makes one", id="an array"),
        pytest.param(["", b"AA==", ""], lb.errors.DtypeError, r"routing_matrices\[1\] is a bytes", id="bytes"),
        pytest.param(
            [], lb.errors.LengthMismatchError, "0 entries for 3 tokens", id="none, as when a server gave none"
        ),
        pytest.param(["AA=="], lb.errors.LengthMismatchError, "1 entries for 3 tokens", id="one for three tokens"),
    ],
)
def test_anything_but_one_text_a_token_is_refused(matrices: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lb.ModelInput.from_ints([1, 2, 3], routing_matrices=matrices)  # type: ignore[arg-type]


def test_a_text_that_is_not_base64_is_refused_by_its_token() -> None:
    with pytest.raises(lb.errors.DtypeError, match=r"routing_matrices\[1\] is not base64"):
        decode_routing(["AA==", "A!=="], layers=1, width=1, num_experts=4)


def test_an_input_that_grows_leaves_its_new_tokens_to_the_model() -> None:
    grown = lb.ModelInput.from_ints([1], ["AA=="]).append_int(2).append(lb.EncodedTextChunk([3, 4]))
    assert (grown.to_ints(), grown.routing_matrices) == ([1, 2, 3, 4], ["AA==", "", "", ""])
    assert lb.ModelInput.empty().append_int(2).routing_matrices is None


def test_a_datum_keeps_its_matrices_apart_from_the_callers_list() -> None:
    given_list = ["AA==", ""]
    datum = lb.Datum(lb.ModelInput.from_ints([1, 2], given_list), {"target_tokens": [2, 3]})
    (own,) = own_datums([datum])
    given_list[0] = ""
    assert own.model_input.routing_matrices == datum.model_input.routing_matrices == ["AA==", ""]


def test_a_weighted_sequence_loses_the_matrix_of_its_last_token_alone() -> None:
    whole = lb.ModelInput.from_ints([1, 2, 3], ["AA==", "", "AQ=="])
    datum = lb.datum_from_model_input_weights(whole, [0.0, 1.0, 1.0])
    assert datum.model_input.routing_matrices == ["AA==", ""]
    with pytest.raises(lb.errors.TruncationError, match="cut it before it is given routing_matrices"):
        lb.datum_from_model_input_weights(whole, [0.0, 1.0, 1.0], max_length=2, truncation="right")


def test_inputs_of_the_fireworks_sdk_keep_their_matrices_and_references_to_its_files_are_refused() -> None:
    chunks = [SimpleNamespace(tokens=[1, 2], type="encoded_text")]
    theirs = SimpleNamespace(chunks=chunks, routing_matrices=["AA==", ""], routing_references=None)
    assert as_model_input(theirs).routing_matrices == ["AA==", ""]
    theirs.routing_references = {"length": 2}
    with pytest.raises(lb.errors.DtypeError, match="model_input carries routing_references, which refers to files"):
        as_model_input(theirs)
