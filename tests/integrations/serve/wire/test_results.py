"""What the server writes, the SDK reads to the same numbers; metrics have names that it can merge."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lossbook.integrations.serve.wire.metrics import REDUCTIONS, wire_metrics, wire_name
from lossbook.integrations.serve.wire.results import forward_backward_bytes, json_bytes, sample_bytes
from lossbook.integrations.tinker.types import (
    ForwardBackwardOutput,
    OptimStepResponse,
    SampledSequence,
    SampleResponse,
    TensorData,
    TopkLogprobs,
)
from lossbook.integrations.tinker.types.sampling import EMPTY_LOGPROB, PromptAltTokens
from lossbook.integrations.tinker.types.training import Metrics

conv = pytest.importorskip("tinker.proto.response_conv", reason="the SDK, which is the contract")
helpers = pytest.importorskip("tinker.lib.chunked_fwdbwd_helpers")

FLOATS = st.floats(width=32, allow_nan=True)
COUNTS = st.integers(0, 4)


def tensor(values: Any, dtype: Any = np.float32) -> TensorData:
    return TensorData(np.asarray(values, dtype))


@st.composite
def outputs(draw: st.DrawFn) -> dict[str, TensorData]:
    """A datum's outputs: logprobs [N] or [N, K], and two more of other dtypes."""
    n, k = draw(COUNTS), draw(st.sampled_from([None, 1, 3]))
    shape = (n,) if k is None else (n, k)
    return {
        "logprobs": tensor(draw(arrays.arrays(np.float32, shape, elements=FLOATS))),
        "top_k_indices": tensor(draw(arrays.arrays(np.int64, (n, 2))), np.int64),
        "embedding": tensor(draw(arrays.arrays(np.float32, 5, elements=FLOATS))),
    }


METRICS = st.dictionaries(st.text(max_size=8), st.floats(-1e6, 1e6), max_size=4)


@settings(max_examples=25)
@given(data=st.lists(outputs(), min_size=1, max_size=5), metrics=METRICS)
def test_the_sdk_reads_what_a_loss_gave(data: list[dict[str, TensorData]], metrics: dict[str, float]) -> None:
    output = ForwardBackwardOutput("ArrayRecord", data, {**metrics, "loss:sum": 1.5})
    theirs = conv.deserialize_forward_backward_output(forward_backward_bytes(output))
    assert theirs.loss_fn_output_type == "ArrayRecord"
    assert len(theirs.loss_fn_outputs) == len(data)
    for ours, read in zip(data, theirs.loss_fn_outputs, strict=True):
        assert ours.keys() == read.keys()
        for key, value in ours.items():
            assert (read[key].dtype, list(read[key].shape)) == (value.dtype, value.shape)
            np.testing.assert_array_equal(read[key].to_numpy(), value.to_numpy())
    merged = helpers.combine_fwd_bwd_output_results([theirs, theirs]).metrics
    assert merged.keys() == theirs.metrics.keys()
    assert merged["loss:sum"] == 3.0


def test_datums_of_other_widths_lie_in_records_of_their_own() -> None:
    from lossbook.integrations.serve.wire.messages import messages

    data = [{"logprobs": tensor(np.zeros(shape))} for shape in ((2,), (3,), (3, 2), (1, 2), (4,))]
    output = ForwardBackwardOutput("ArrayRecord", data, {"loss:sum": 0.0})
    message = messages().ForwardBackwardOutput.FromString(forward_backward_bytes(output))
    assert [record.num_datums for record in message.loss_fn_outputs] == [2, 2, 1]
    assert [list(record.fields["logprobs"].trailing_shape) for record in message.loss_fn_outputs] == [[], [2], []]
    offsets = np.frombuffer(message.loss_fn_outputs[0].fields["logprobs"].offsets, np.int64)
    assert offsets.tolist() == [0, 8, 20]  # bytes


def test_a_datum_without_an_output_that_others_have_keeps_the_others_in_their_places() -> None:
    data = [{"logprobs": tensor([1.0])}, {"logprobs": tensor([2.0]), "entropy": tensor([3.0])}]
    output = ForwardBackwardOutput("ArrayRecord", data, {"loss:sum": 0.0})
    theirs = conv.deserialize_forward_backward_output(forward_backward_bytes(output)).loss_fn_outputs
    assert [one["entropy"].tolist() for one in theirs] == [[], [3.0]]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("loss:sum", "mean", "loss:sum"),
        ("custom/kl:mean", "sum", "custom/kl:mean"),
        ("nll", "mean", "nll:mean"),
        ("ratio_capped", "sum", "ratio_capped:sum"),
        ("ratio_max", "max", "ratio_max:max"),
        ("score_min", "min", "score_min:min"),
        ("weights_used", "effective", "weights_used:mean"),
        ("tinker:ppo/nll", "mean", "tinker/ppo/nll:mean"),
        ("a:b:sum", "mean", "a/b:sum"),
        (":sum", "mean", "/sum:mean"),
        ("", "mean", ":mean"),
        ("kl:unknown", "mean", "kl/unknown:mean"),
    ],
)
def test_a_metric_has_one_colon_before_how_it_merges(name: str, kind: Any, expected: str) -> None:
    assert wire_name(name, kind) == expected


@given(metrics=st.dictionaries(st.text(":abc/sum", max_size=8), st.floats(allow_nan=False), max_size=6))
def test_no_name_has_two_colons_and_no_metric_is_lost(metrics: dict[str, float]) -> None:
    wire = wire_metrics({**metrics, "loss:sum": 1.0})
    assert all(name.count(":") == 1 and name.partition(":")[2] in REDUCTIONS for name in wire)
    assert wire["loss:sum"] == 1.0
    assert len(wire) == len({*metrics, "loss:sum"})


def test_metrics_of_a_call_carry_how_they_merge() -> None:
    given = Metrics({"loss:sum": 1.0, "ratio_max": 2.0, "datums": 3.0}, {"ratio_max": "max", "datums": "sum"})
    assert wire_metrics(given) == {"loss:sum": 1.0, "ratio_max:max": 2.0, "datums:sum": 3.0}


def test_metrics_that_are_not_finite_travel_as_they_are() -> None:
    output = ForwardBackwardOutput("ArrayRecord", [], {"loss:sum": float("nan"), "kl": float("-inf")})
    read = conv.deserialize_forward_backward_output(forward_backward_bytes(output)).metrics
    assert np.isnan(read["loss:sum"])
    assert read["kl:mean"] == float("-inf")


def test_without_the_loss_nothing_is_written() -> None:
    with pytest.raises(KeyError, match="loss:sum"):
        wire_metrics({"nll": 1.0})


def top(n: int, k: int) -> TopkLogprobs:
    ids = np.arange(n * k, dtype=np.int32).reshape(n, k)
    logprobs = -ids.astype(np.float32)
    ids[0], logprobs[0] = 0, EMPTY_LOGPROB
    return TopkLogprobs(ids, logprobs)


@settings(max_examples=40)
@given(
    sequences=st.lists(
        st.lists(st.tuples(st.integers(0, 2**31 - 1), FLOATS), min_size=1, max_size=5), min_size=1, max_size=3
    ),
    prompt=st.none() | st.lists(st.none() | FLOATS, min_size=1, max_size=5),
    k=st.integers(0, 3),
)
def test_the_sdk_reads_what_was_sampled(sequences: list[Any], prompt: list[float | None] | None, k: int) -> None:
    given = SampleResponse(
        [
            SampledSequence(
                "stop" if len(pairs) % 2 else "length",
                "id",
                tokens_np=np.array([token for token, _ in pairs], np.int32),
                logprobs_np=np.array([logprob for _, logprob in pairs], np.float32),
                topk_logprobs_np=top(len(pairs), k) if k else None,
            )
            for pairs in sequences
        ],
        prompt_logprobs_np=None if prompt is None else np.array(prompt, np.float32),
        topk_prompt_logprobs_np=top(4, k) if k else None,
        prompt_cache_hit_tokens=7,
    )
    theirs = conv.deserialize_sample_response(sample_bytes(given, ["id"] * len(sequences)))
    assert theirs.prompt_cache_hit_tokens == 7
    for ours, read in zip(given.sequences, theirs.sequences, strict=True):
        assert (read.stop_reason, read.tokens, read.topk_logprobs) == (
            ours.stop_reason,
            ours.tokens,
            ours.topk_logprobs,
        )
        np.testing.assert_array_equal(read.logprobs_np, ours.logprobs_np)
    assert theirs.prompt_logprobs == given.prompt_logprobs
    assert theirs.topk_prompt_logprobs == given.topk_prompt_logprobs
    assert theirs.target_prompt_logprobs is None
    assert theirs.prompt_alt_tokens is None


def one_sequence(**fields: Any) -> bytes:
    sequence = SampledSequence("stop", "id", _tokens_list=[3], _logprobs_list=[-0.5])
    return sample_bytes(SampleResponse([sequence], **fields), ["id"])


def test_sequences_that_are_lists_are_written_too() -> None:
    read = conv.deserialize_sample_response(one_sequence(_prompt_logprobs_list=[None, -1.0]))
    assert (read.sequences[0].tokens, read.sequences[0].logprobs) == ([3], [-0.5])
    assert read.prompt_logprobs == [None, -1.0]


def test_target_logprobs_have_the_layout_of_the_request() -> None:
    dense = tensor([[-1.0, 0.0], [-2.0, -3.0]])
    read = conv.deserialize_sample_response(one_sequence(target_prompt_logprobs=dense)).target_prompt_logprobs
    assert (read.dtype, list(read.shape), read.tolist()) == ("float32", [2, 2], dense.tolist())
    sparse = TensorData([-1.5], "float32", [2, 3], [0, 0, 1], [2])
    read = conv.deserialize_sample_response(one_sequence(target_prompt_logprobs=sparse)).target_prompt_logprobs
    assert list(read.sparse_crow_indices) == [0, 0, 1]
    assert read.tolist() == sparse.tolist()


def test_drawn_tokens_are_written() -> None:
    drawn = PromptAltTokens(tensor([[5, 6]], np.int64), tensor([[-1.0, -2.0]]))
    read = conv.deserialize_sample_response(one_sequence(prompt_alt_tokens=drawn)).prompt_alt_tokens
    assert read.tokens.tolist() == [[5, 6]]
    assert read.logprobs.tolist() == [[-1.0, -2.0]]


def test_other_sequences_than_were_promised_are_not_written() -> None:
    with pytest.raises(ValueError, match="1 sequences for 2 ids"):
        sample_bytes(SampleResponse([SampledSequence("stop", "id", _tokens_list=[3])]), ["a", "b"])


def test_json_never_holds_nan_or_infinity() -> None:
    step = OptimStepResponse(metrics={"grad_norm": float("nan"), "lr": 0.5, "most": float("inf")})
    assert json.loads(json_bytes(step)) == {"metrics": {"lr": 0.5}}
    given = {"a": [float("inf"), 1, {"b": float("nan"), "c": None}], "d": np.float32(0.5), "e": (np.int64(3),)}
    assert json.loads(json_bytes(given)) == {"a": [None, 1, {"c": None}], "d": 0.5, "e": [3]}
    with pytest.raises(TypeError, match="set is nothing that JSON has"):
        json_bytes({"a": {1}})
