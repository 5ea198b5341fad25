"""JSON requests: what the SDK's own classes write is read; limits and wrong fields are named; newer clients are understood."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lossbook.integrations.serve.refusals import Failed, Refused
from lossbook.integrations.serve.settings import Limits
from lossbook.integrations.serve.wire import requests
from lossbook.integrations.serve.wire.fields import METADATA_BYTES, Request, parsed
from lossbook.integrations.serve.wire.samples import Sample
from lossbook.integrations.tinker.types import AdamParams, LoraConfig

LIMITS = Limits()
MODEL = {"model_id": "s:train:0", "seq_id": 4}
SESSION = {"session_id": "s", "model_seq_id": 2}
SAMPLE: dict[str, Any] = {
    "sampling_session_id": "q",
    "seq_id": 0,
    "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
    "sampling_params": {},
}
NODE = {"op": "output", "name": "output", "target": "output", "args": [{"slice": [None, 1, None]}]}
#: Each request as the SDK's class of that name takes it, with fields that must come out again.
SENT: list[tuple[str, type[Request], dict[str, Any]]] = [
    ("ClientConfigRequest", requests.ClientConfig, {"sdk_version": "0.38.0"}),
    (
        "CreateSessionRequest",
        requests.CreateSession,
        {"tags": ["a"], "user_metadata": {"b": [1]}, "sdk_version": "0.38.0"},
    ),
    ("SessionHeartbeatRequest", requests.Heartbeat, {"session_id": "s"}),
    (
        "CreateModelRequest",
        requests.CreateModel,
        {**SESSION, "base_model": "tiny", "lora_config": {"rank": 8, "seed": 1}},
    ),
    ("GetInfoRequest", requests.GetInfo, {"model_id": "s:train:0"}),
    ("UnloadModelRequest", requests.UnloadModel, {"model_id": "s:train:0"}),
    ("OptimStepRequest", requests.OptimStep, {**MODEL, "adam_params": {"learning_rate": 0.5}}),
    ("SaveWeightsRequest", requests.SaveWeights, {**MODEL, "path": "a-1.b", "ttl_seconds": 3600, "overwrite": True}),
    (
        "SaveWeightsForSamplerRequest",
        requests.SaveWeightsForSampler,
        {**MODEL, "path": "a", "user_metadata": {"a": "b"}},
    ),
    (
        "SaveWeightsForSamplerRequest",
        requests.SaveWeightsForSampler,
        {**MODEL, "sampling_session_seq_id": 3, "kind": "inflight"},
    ),
    ("SaveWeightsExternalRequest", requests.SaveWeightsExternal, {**MODEL, "path": "a"}),
    (
        "LoadWeightsRequest",
        requests.LoadWeights,
        {**SESSION, "path": "tinker://s:train:0/weights/a", "optimizer": True},
    ),
    ("LoadWeightsRequest", requests.LoadWeights, {**MODEL, "path": "tinker://s:train:0/weights/a", "optimizer": False}),
    (
        "CreateSamplingSessionRequest",
        requests.CreateSamplingSession,
        {"session_id": "s", "sampling_session_seq_id": 1, "base_model": "tiny", "model_path": "tinker://x"},
    ),
    ("JoinSamplingSessionRequest", requests.JoinSamplingSession, {"sampling_session_id": "q"}),
    ("FutureRetrieveRequest", requests.RetrieveFuture, {"request_id": "r", "allow_metadata_only": True}),
    (
        "FuturesRetrieveRequest",
        requests.RetrieveFutures,
        {
            "target": {"sampling_session_id": "q", "cloned_sampler_id": 2},
            "prev_cursor": 7,
            "retrieved_request_ids": ["r"],
        },
    ),
    (
        "CreateCustomLossRequest",
        requests.CreateCustomLoss,
        {
            **{"session_id": "s", "custom_loss_seq_id": 1, "name": "mine"},
            **{"inputs": [{"name": "logprobs", "rank": 1}], "graph": {"format": 1, "nodes": [NODE]}},
        },
    ),
    (
        "SampleRequest",
        Sample,
        {**SAMPLE, "num_samples": 2, "prompt_logprobs": True, "sampling_params": {"stop": ["a"], "seed": 1}},
    ),
]


def sdk_class(name: str) -> Any:
    types = pytest.importorskip("tinker.types", reason="the SDK, which is the contract")
    return getattr(types, name, None) or getattr(_module_of(name), name)


def _module_of(name: str) -> Any:
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
    return pytest.importorskip(f"tinker.types.{snake}")


def is_part(part: Any, whole: Any) -> bool:
    if isinstance(part, dict):
        return all(is_part(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(is_part, part, whole))
    return part == whole


@pytest.mark.parametrize(("name", "model", "fields"), SENT, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(SENT)])
def test_what_the_sdk_sends_is_read(name: str, model: type[Request], fields: dict[str, Any]) -> None:
    sent = sdk_class(name)(**fields).model_dump(exclude_none=True, mode="json")
    request = parsed(model, json.dumps(sent).encode(), LIMITS)
    assert is_part(fields, request.model_dump(exclude_none=name != "CreateCustomLossRequest"))


@pytest.mark.parametrize(("name", "model", "fields"), SENT, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(SENT)])
def test_a_field_of_a_newer_client_is_ignored(name: str, model: type[Request], fields: dict[str, Any]) -> None:
    assert parsed(model, {**fields, "new": {"a": 1}}, LIMITS) == parsed(model, fields, LIMITS)


def refusal(model: type[Request], fields: dict[str, Any]) -> Refused:
    with pytest.raises(Refused) as refused:
        parsed(model, fields, LIMITS)
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 500
    return refused.value


def sampling(**fields: Any) -> dict[str, Any]:
    return {**SAMPLE, "sampling_params": fields}


def prompt(*chunks: Any) -> dict[str, Any]:
    return {**SAMPLE, "prompt": {"chunks": list(chunks)}}


@pytest.mark.parametrize(
    ("model", "fields", "limit"),
    [
        pytest.param(Sample, {**SAMPLE, "num_samples": 5_000_000}, "samples", id="num_samples 5,000,000"),
        pytest.param(Sample, sampling(max_tokens=10**9), "sampled_tokens", id="max_tokens 1,000,000,000"),
        pytest.param(
            Sample, {**sampling(max_tokens=2000), "num_samples": 1000}, "sampled_tokens", id="many long samples"
        ),
        pytest.param(Sample, sampling(stop=["a"] * 10_000), "stop_strings", id="10,000 stop strings"),
        pytest.param(Sample, sampling(stop=[1] * 10_000), "stop_strings", id="10,000 stop ids"),
        pytest.param(
            Sample, {**SAMPLE, "topk_prompt_logprobs": 10**9}, "top_k", id="topk_prompt_logprobs 1,000,000,000"
        ),
        pytest.param(
            Sample, {**SAMPLE, "topk_sample_logprobs": 10**9}, "top_k", id="topk_sample_logprobs 1,000,000,000"
        ),
        pytest.param(Sample, prompt(*[{"tokens": [1]}] * 100_000), "chunks", id="100,000 chunks"),
        pytest.param(Sample, prompt({"tokens": [1] * 4_000_001}), "tokens", id="4,000,001 tokens"),
        pytest.param(
            Sample, {**SAMPLE, "target_prompt_logprobs": {"data": [], "shape": [2, 10**9]}}, "columns", id="columns"
        ),
        pytest.param(
            requests.CreateModel,
            {**SESSION, "base_model": "tiny", "lora_config": {"rank": 1_000_000}},
            "lora_rank",
            id="rank 1,000,000",
        ),
        pytest.param(
            requests.CreateCustomLoss,
            {**SENT[-2][2], "graph": {"format": 1, "nodes": [NODE] * 513}},
            "graph_nodes",
            id="513 nodes",
        ),
    ],
)
def test_what_is_above_a_limit_is_refused_by_the_limits_name(
    model: type[Request], fields: dict[str, Any], limit: str
) -> None:
    refused = refusal(model, fields)
    assert refused.status == 400
    assert f"limit {limit} is {getattr(LIMITS, limit)}" in refused.message
    assert refused.used is not None


def test_a_long_stop_string_is_refused() -> None:
    assert "sampling_params.stop: a string of 5000 characters" in refusal(Sample, sampling(stop="a" * 5000)).message


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        pytest.param(requests.GetInfo, {}, "model_id: Field required", id="a field that is missing"),
        pytest.param(
            requests.GetInfo, {"model_id": 7}, "model_id: Input should be a valid string, not 7", id="a number as id"
        ),
        pytest.param(requests.Heartbeat, {"session_id": "a/b c"}, "session_id: no id of this server", id="no id"),
        pytest.param(
            requests.Heartbeat, {"session_id": "a\0"}, "session_id: no id of this server", id="a NUL in an id"
        ),
        pytest.param(requests.GetInfo, {"model_id": "é"}, "model_id: no id of this server", id="an id beyond ASCII"),
        pytest.param(
            requests.SaveWeights, {**MODEL, "path": "../a"}, "path: a checkpoint's name is", id="a path as name"
        ),
        pytest.param(requests.SaveWeights, {**MODEL, "path": ".a"}, "path: a checkpoint's name is", id="a hidden name"),
        pytest.param(
            requests.SaveWeights, {**MODEL, "path": "a\n"}, "path: a checkpoint's name is", id="a line feed in a name"
        ),
        pytest.param(
            requests.SaveWeights, {**MODEL, "path": "a" * 129}, "path: a checkpoint's name is", id="a long name"
        ),
        pytest.param(
            requests.SaveWeights,
            {**MODEL, "seq_id": True},
            "seq_id: Input should be a valid integer",
            id="a boolean number",
        ),
        pytest.param(
            requests.SaveWeights,
            {**MODEL, "seq_id": 1.0},
            "seq_id: Input should be a valid integer",
            id="a float number",
        ),
        pytest.param(
            requests.SaveWeights, {**MODEL, "seq_id": -1}, "seq_id: Input should be greater", id="a negative number"
        ),
        pytest.param(requests.OptimStep, MODEL, "needs adam_params, or optimizer_params", id="no optimizer"),
        pytest.param(
            requests.OptimStep,
            {**MODEL, "adam_params": {"learning_rate": "1"}},
            "adam_params.learning_rate: Input should be a valid number, not '1'",
            id="a text as learning rate",
        ),
        pytest.param(
            requests.SaveWeightsForSampler, MODEL, "path, a checkpoint's name, or sampling_session_seq_id", id="neither"
        ),
        pytest.param(
            requests.LoadWeights, {**MODEL, **SESSION, "path": "a", "optimizer": True}, "and not both", id="both models"
        ),
        pytest.param(requests.LoadWeights, {"path": "a", "optimizer": True}, "and not both", id="no model"),
        pytest.param(
            requests.LoadWeights,
            {**SESSION, "model_id": "m", "path": "a", "optimizer": True},
            "and not both",
            id="one and a half",
        ),
        pytest.param(
            requests.CreateSamplingSession,
            {"session_id": "s", "sampling_session_seq_id": 0},
            "base_model or model_path",
            id="no weights",
        ),
        pytest.param(
            requests.CreateSession,
            {"user_metadata": {"a": "b" * METADATA_BYTES}},
            "user_metadata: has more than",
            id="large metadata",
        ),
    ],
)
def test_a_field_that_is_wrong_is_refused_by_its_name(
    model: type[Request], fields: dict[str, Any], message: str
) -> None:
    refused = refusal(model, fields)
    assert refused.status == 422
    assert message in refused.message


@pytest.mark.parametrize("given", ["-1", -1, " 7 ", "1_0", "\u0661", 10**18, 7.5, None, ["a"], "a\nb", "", "a" * 257])
def test_odd_ids_of_futures_are_400_or_ids_that_nobody_has(given: Any) -> None:
    try:
        request_id = parsed(requests.RetrieveFuture, {"request_id": given}, LIMITS).request_id
        status = 404 if request_id == given else 200
    except Refused as refused:
        status = refused.status
    assert status in (400, 404)


def test_a_refused_operation_says_which_number_it_had() -> None:
    assert refusal(requests.SaveWeights, {**MODEL, "path": "/"}).used == ("s:train:0", "seq", 4)
    assert refusal(requests.CreateModel, {**SESSION}).used == ("s", "model", 2)
    assert refusal(requests.LoadWeights, {**SESSION}).used == ("s", "model", 2)
    assert refusal(requests.LoadWeights, {**MODEL}).used == ("s:train:0", "seq", 4)
    assert refusal(Sample, {**SAMPLE, "num_samples": 0}).used == ("q", "sample", 0)
    assert refusal(requests.SaveWeights, {"model_id": "m", "seq_id": "4"}).used is None


def test_settings_are_handed_on_as_the_door_takes_them() -> None:
    step = parsed(requests.OptimStep, {**MODEL, "adam_params": {"learning_rate": 1, "beta2": 0.5}}, LIMITS)
    assert step.params() == AdamParams(learning_rate=1.0, beta2=0.5)
    other = parsed(requests.OptimStep, {**MODEL, "optimizer_params": {"type": "dimuon", "learning_rate": 1.0}}, LIMITS)
    assert other.params().model_dump() == {"type": "dimuon", "learning_rate": 1.0}
    model = parsed(
        requests.CreateModel, {**SESSION, "base_model": "tiny", "lora_config": {"rank": 8, "train_attn": False}}, LIMITS
    )
    assert model.lora_config is not None
    assert model.lora_config.config() == LoraConfig(rank=8, train_attn=False)


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}])
def test_an_unknown_setting_that_asks_for_nothing_is_ignored(value: Any) -> None:
    step = parsed(requests.OptimStep, {**MODEL, "adam_params": {"learning_rate": 1, "new": value}}, LIMITS)
    assert step.params() == AdamParams(learning_rate=1.0)


def test_an_unknown_setting_that_would_change_numbers_fails_the_future_and_is_named() -> None:
    step = parsed(requests.OptimStep, {**MODEL, "adam_params": {"learning_rat": 1.0}}, LIMITS)
    with pytest.raises(Failed, match=r"adam_params has the field 'learning_rat'.* Did you mean 'learning_rate'\?"):
        step.params()
    with pytest.raises(Failed, match="sampling_params has the field 'min_p'"):
        parsed(Sample, sampling(min_p=0.1), LIMITS).params()
    model = parsed(
        requests.CreateModel, {**SESSION, "base_model": "a", "lora_config": {"rank": 8, "dropout": 0.1}}, LIMITS
    )
    assert model.lora_config is not None
    with pytest.raises(Failed, match="lora_config has the field 'dropout'"):
        model.lora_config.config()


def test_a_sample_is_handed_on_as_the_door_takes_it() -> None:
    target = {"data": [5, -1], "dtype": "int64", "shape": [2, 1]}
    chunks = [{"type": "encoded_text", "tokens": [1, 2]}, {"type": "encoded_text", "tokens": [3]}]
    given = {**prompt(*chunks), "topk_prompt_logprobs": 2, "target_prompt_logprobs": target, "num_samples": 3}
    sample = parsed(Sample, given, LIMITS)
    assert sample.model_input().to_ints() == [1, 2, 3]
    keywords = sample.keywords(LIMITS)
    assert keywords.pop("target_prompt_logprobs").tolist() == [[5], [-1]]
    assert keywords.pop("sampling_params").stop is None
    assert keywords == {
        **{"num_samples": 3, "include_prompt_logprobs": False, "topk_prompt_logprobs": 2, "topk_sample_logprobs": 0},
        **{"prompt_alt_tokens_k": 0, "prompt_logprobs_last_n": None},
    }


@pytest.mark.parametrize("stop", [None, [], "a", ["a", "b"], [1, 2]])
def test_stop_is_kept_as_it_is(stop: Any) -> None:
    assert parsed(Sample, sampling(stop=stop), LIMITS).params().stop == stop


def test_targets_in_csr_stay_in_csr() -> None:
    target = {
        "data": [5],
        "dtype": "int64",
        "shape": [2, 3],
        "sparse_crow_indices": [0, 0, 1],
        "sparse_col_indices": [2],
    }
    tensor = parsed(Sample, {**SAMPLE, "target_prompt_logprobs": target}, LIMITS).targets(LIMITS)
    assert tensor is not None
    assert (tensor.sparse_crow_indices, tensor.sparse_col_indices) == ([0, 0, 1], [2])
    np.testing.assert_array_equal(tensor.to_numpy(-1), [[-1, -1, -1], [-1, -1, 5]])


@pytest.mark.parametrize(
    "target",
    [
        {"data": [1, 2], "shape": [3, 1]},
        {"data": [1], "shape": [2, 1], "sparse_crow_indices": [0, 0, 1]},
        {"data": [1], "shape": [2, 1], "sparse_crow_indices": [0, 0, 1], "sparse_col_indices": [7]},
        {"data": [1], "shape": [2, 1], "sparse_crow_indices": [0, 5, 1], "sparse_col_indices": [0]},
        {"data": [1], "shape": [-1]},
    ],
)
def test_targets_that_are_no_matrix_fail_the_future(target: dict[str, Any]) -> None:
    with pytest.raises(Failed, match="target_prompt_logprobs"):
        parsed(Sample, {**SAMPLE, "target_prompt_logprobs": target}, LIMITS).targets(LIMITS)


@pytest.mark.parametrize(
    "chunk",
    [
        {"type": "image_asset_pointer", "format": "png", "location": "file:///etc/passwd"},
        {"type": "image", "format": "png", "data": "AAAA"},
        {"type": "dmel", "dmel": "AAAA"},
        {"type": "new", "tokens": [1]},
        {"type": "encoded_text"},
    ],
)
def test_chunks_without_text_fail_the_future_and_nothing_is_opened(chunk: dict[str, Any]) -> None:
    sample = parsed(Sample, prompt({"type": "encoded_text", "tokens": [1]}, chunk), LIMITS)
    with pytest.raises(Failed, match=r"prompt\.chunks\[1\] is .* models here read text only"):
        sample.model_input()
