"""Each type has the fields, defaults and behaviour that it has in the official SDK."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook import get_loss
from lossbook.datums.errors import DtypeError, ShapeError
from lossbook.datums.types import as_datum
from lossbook.integrations import tinker
from lossbook.integrations.tinker.settings import current
from lossbook.integrations.tinker.store.names import new_session_id, run_folder, run_id_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # inside the SDK, not ours to mend
    sdk = pytest.importorskip("tinker", reason="the official SDK comes with lossbook[dev]")

CLASSES = sorted(
    name
    for name in {*tinker.types.__all__, "TopkLogprobs"}
    if inspect.isclass(kind := getattr(tinker.types, name))
    and kind.__module__.startswith("lossbook.integrations")
    and name != "RequestErrorCategory"
)
TOKENS = st.lists(st.integers(0, 1000), max_size=5)


def sdk_class(name: str) -> Any:
    return getattr(sdk.types, name, None) or getattr(sdk.types.topk_logprobs, name)


def values_by_field(kind: Any) -> dict[str, Any]:
    """The default of each field, or "needed"."""
    if dataclasses.is_dataclass(kind):
        absent = (dataclasses.MISSING, inspect.Parameter.empty)
        made = {field.name: field.default_factory for field in dataclasses.fields(kind)}
        parameters = inspect.signature(kind).parameters.values()
        return {
            each.name: "needed"
            if each.default in absent
            else made[each.name]()
            if made.get(each.name, absent[0]) not in absent
            else each.default
            for each in parameters
        }
    return {
        name: "needed" if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in kind.model_fields.items()
    }


def test_the_names_are_those_of_the_sdk() -> None:
    assert set(tinker.__all__) == set(sdk.__all__)
    assert tinker.__version__ == sdk.__version__


@pytest.mark.parametrize("name", CLASSES)
def test_fields_and_defaults_are_those_of_the_sdk(name: str) -> None:
    ours, theirs = getattr(tinker.types, name), sdk_class(name)
    fields, expected = values_by_field(ours), values_by_field(theirs)
    if name == "ModelInput":
        assert fields.pop("routing_matrices") is None  # Fireworks' field
    assert {key: repr(value) for key, value in fields.items()} == {key: repr(value) for key, value in expected.items()}
    if dataclasses.is_dataclass(ours):
        assert list(fields) == list(expected)  # they may be given in order
        assert ours.__dataclass_params__.frozen == theirs.__dataclass_params__.frozen
    else:
        assert issubclass(ours, pydantic.BaseModel)
        assert ours.model_config["frozen"] == theirs.model_config["frozen"]
        assert ours.model_config["extra"] == theirs.model_config["extra"]


@pytest.mark.parametrize("name", sorted(set(dir(sdk.types)) & set(tinker.types.__all__)))
def test_each_name_has_the_module_that_it_has_in_the_sdk(name: str) -> None:
    for module, held in vars(sdk.types).items():
        if inspect.ismodule(held) and name in getattr(held, "__all__", ()):
            assert getattr(getattr(tinker.types, module), name) is getattr(tinker.types, name)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.ModelInput.empty().append_int(3).append(t.EncodedTextChunk(tokens=[1, 2])),
        lambda t: t.ModelInput(
            chunks=[{"tokens": [1]}, t.types.ImageChunk(data=b"x", format="png", expected_tokens=4)]
        ),
        lambda t: t.types.ImageChunk(data="eHk=", format="jpeg"),
        lambda t: t.types.ImageAssetPointerChunk(format="png", location="a.png", expected_tokens=7),
        lambda t: t.types.DmelChunk(dmel=b"12"),
        lambda t: t.SamplingParams(max_tokens=3, stop=["a"]),
        lambda t: t.SamplingParams(stop=[5, 6], temperature=0.5).model_copy(update={"seed": 1}),
        lambda t: t.AdamParams(learning_rate=1e-3),
        lambda t: t.DimuonParams(learning_rate=0.1),
        lambda t: t.OptimStepRequest(optim_params=t.AdamParams(), model_id="m"),
        lambda t: t.OptimStepRequest.model_validate({"optimizer_params": {"type": "other", "x": 1}, "model_id": "m"}),
        lambda t: t.OptimStepResponse(metrics={"a": 1}),
        lambda t: t.LoraConfig(rank=8),
        lambda t: t.ParsedCheckpointTinkerPath.from_tinker_path("tinker://run:train:0/sampler_weights/final"),
        lambda t: t.types.SaveWeightsResponse(path="p", more=1),
        lambda t: t.types.WeightsInfoResponse(base_model="b", is_lora=True),
        lambda t: t.types.SessionSearchRequest(
            owner=t.types.UserSearchOwner(owner_urns=["u"]),
            statuses=[
                t.types.ClientFinishedSessionStatusQuery(reasons=["errored"]),
                t.types.ActiveSessionStatusQuery(),
            ],
        ),
        lambda t: t.SampleRequest(prompt=t.ModelInput.from_ints([1]), sampling_params=t.SamplingParams()),
    ],
)
def test_models_are_dumped_and_shown_and_compared_as_those_of_the_sdk(make: Any) -> None:
    ours, theirs = make(tinker), make(sdk)
    assert ours.model_dump() == theirs.model_dump()
    assert (
        type(ours).model_validate_json(theirs.model_dump_json()) == ours == type(ours).model_validate(ours.model_dump())
    )
    assert ours.model_copy() == ours
    assert set(repr(ours)) == set(repr(theirs))
    assert str(ours) == repr(ours)
    for name in ("length", "to_ints"):
        assert hasattr(type(ours), name) == hasattr(type(theirs), name)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.ModelInput.from_ints([1.5]),
        lambda t: t.EncodedTextChunk([1]),
        lambda t: t.EncodedTextChunk(tokens=3),
        lambda t: t.AdamParams(lr=1e-3),
        lambda t: t.AdamParams(1e-3),
        lambda t: t.DimuonParams(learning_rate=-1),
        lambda t: t.LoraConfig(rank=8, alpha=3),
        lambda t: setattr(t.AdamParams(), "beta1", 0.5),
        lambda t: setattr(t.Datum(t.ModelInput.empty()), "loss_fn_inputs", {}),
        lambda t: t.SamplingParams(max_tokens="many"),
        lambda t: t.ParsedCheckpointTinkerPath.from_tinker_path("weights/final"),
        lambda t: t.ParsedCheckpointTinkerPath.from_tinker_path("tinker://run/other/final"),
        lambda t: t.ParsedCheckpointTinkerPath.from_tinker_path("tinker://run/weights/a/b"),
        lambda t: t.types.ImageChunk(data=b"x", format="png").length,
        lambda t: t.types.DmelChunk(dmel=b"").length,
        lambda t: t.ModelInput(chunks=[t.DmelChunk(dmel=b"1")]).to_ints(),
        lambda t: t.PromptProvenanceSpan("a", 0, 1),
        lambda t: t.PromptProvenanceSpan(sequence_id="", length=1),
        lambda t: t.SampledProvenanceSpan(sequence_id="a", length=-1),
        lambda t: t.Datum(t.ModelInput.empty(), {}, [], None),
        lambda t: t.Datum(t.ModelInput.empty(), {}, ["prompt"], []),
        lambda t: t.Datum(t.ModelInput.empty(), {"weights": [[1, 2], [3]]}),
        lambda t: t.Datum(t.ModelInput.empty(), {"weights": "heavy"}),
        lambda t: t.TensorData(["a"], "int64"),
        lambda t: t.TensorData([1, 2, 3], "int64", [2]),
        lambda t: t.TensorData.from_torch_sparse(torch.ones(2, 2), pad_value=0.5),
    ],
)
def test_what_the_sdk_refuses_is_refused(make: Any) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011
        make(sdk)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        make(tinker)


@given(TOKENS)
def test_a_chunk_has_tokens_of_its_own(tokens: list[int]) -> None:
    chunk = tinker.EncodedTextChunk(tokens=tokens)
    before = list(tokens)
    tokens.append(7)
    assert chunk.tokens == before
    assert tinker.ModelInput.from_ints(before).to_ints() == before
    assert chunk.length == len(before)


@given(st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(-2, 2))
def test_a_sparse_tensor_holds_what_that_of_the_sdk_holds(rows: list[list[int]], pad: int) -> None:
    for tensor in (torch.tensor(rows), torch.tensor(rows, dtype=torch.float32)):
        ours, theirs = (t.TensorData.from_torch_sparse(tensor, pad_value=pad) for t in (tinker, sdk))
        for name in ("data", "dtype", "shape", "sparse_crow_indices", "sparse_col_indices"):
            assert getattr(ours, name) == getattr(theirs, name)
        for filled in (pad, 0, 9):
            assert ours.tolist(filled) == theirs.tolist(filled)
            assert ours.to_torch(filled).dtype == theirs.to_torch(filled).dtype
            assert np.array_equal(ours.to_numpy(filled), theirs.to_numpy(filled))


def test_a_datum_of_the_sdk_is_converted_as_one_of_ours() -> None:
    made = [
        t.Datum(
            model_input=t.ModelInput.from_ints([1, 2, 3]),
            loss_fn_inputs={"target_tokens": torch.tensor([2, 3, 4]), "weights": [0, 1, 1], "mask": np.ones(3)},
        )
        for t in (tinker, sdk)
    ]
    assert as_datum(made[0]) == as_datum(made[1])


def test_a_misspelt_sampling_parameter_is_ignored_as_in_the_sdk_but_not_in_silence() -> None:
    with pytest.warns(UserWarning, match="ignores 'max_token', as Tinker's does. Did you mean 'max_tokens'?") as caught:
        params = tinker.SamplingParams(max_token=3)
    assert params == tinker.SamplingParams()
    assert caught[0].filename == __file__
    assert sdk.SamplingParams(max_token=3).model_dump() == params.model_dump()


def test_routing_matrices_of_fireworks_are_carried_and_shown_only_where_they_are() -> None:
    routed = tinker.ModelInput.from_ints([1, 2], routing_matrices=["AAE=", ""]).append_int(3)
    assert routed.model_dump()["routing_matrices"] == routed.routing_matrices == ["AAE=", "", ""]
    assert tinker.ModelInput.model_validate_json(routed.model_dump_json()) == routed
    assert "AAE=" in repr(routed)
    assert as_datum(tinker.Datum(routed, {})).model_input.routing_matrices == ["AAE=", "", ""]
    with pytest.raises(ValueError, match="1 entries for 2 tokens"):
        tinker.ModelInput.from_ints([1, 2], routing_matrices=["AAE="])


def test_a_loss_takes_its_datums() -> None:
    datum = tinker.Datum(tinker.ModelInput.from_ints([1, 2]), {"target_tokens": [2, 3], "weights": [1.0, 0.5]})
    loss, _ = get_loss("cross_entropy", reduction="sum")([datum], [torch.tensor([-1.0, -3.0])])
    assert loss.item() == 2.5  # 1 * 1 + 3 * 0.5


@pytest.mark.parametrize("chunk", [tinker.types.ImageChunk(data=b"x", format="png"), tinker.DmelChunk(dmel=b"x")])
def test_what_no_model_reads_is_refused_by_name(chunk: Any) -> None:
    datum = tinker.Datum(tinker.ModelInput(chunks=[chunk]), {"target_tokens": [2]})
    with pytest.raises(DtypeError, match=type(chunk).__name__):
        get_loss("cross_entropy")([datum], [torch.tensor([-1.0])])


def test_spans_must_cover_a_datums_tokens_and_targets() -> None:
    prompt = tinker.PromptProvenanceSpan(sequence_id="s", length=2)
    sampled = tinker.SampledProvenanceSpan(sequence_id="s", length=1)
    datum = tinker.Datum(tinker.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})
    whole = datum.with_provenance(model_input=[prompt, sampled], loss_fn_inputs=[prompt, sampled])
    assert whole.model_input_spans == [prompt, sampled]
    assert datum.model_input_spans is None
    with pytest.raises(ValueError, match="model_input cover 2 positions, but it has 3"):
        datum.with_provenance(model_input=[prompt], loss_fn_inputs=[prompt, sampled])
    with pytest.raises(ValueError, match="loss_fn_inputs cover 1 positions, but it has 3"):
        datum.with_provenance(model_input=[prompt, sampled], loss_fn_inputs=[sampled])


def test_arrays_of_a_response_are_lists_too() -> None:
    topk = (
        np.array([[3, 4], [0, 0], [5, 0]], dtype=np.int32),
        np.array([[-1, -2], [-99999] * 2, [-3, -99999]], np.float32),
    )
    made = [
        t.SampleResponse(
            sequences=[
                t.SampledSequence(
                    "stop",
                    "id",
                    np.array([4, 5], np.int32),
                    np.array([-1, -2], np.float32),
                    t.types.topk_logprobs.TopkLogprobs(*topk),
                )
            ],
            prompt_logprobs_np=np.array([np.nan, -0.5], np.float32),
            topk_prompt_logprobs_np=t.types.topk_logprobs.TopkLogprobs(*topk),
        )
        for t in (tinker, sdk)
    ]
    ours, theirs = made
    for name in ("prompt_logprobs", "topk_prompt_logprobs"):
        assert getattr(ours, name) == getattr(theirs, name) is not None
    for name in ("tokens", "logprobs", "topk_logprobs"):
        assert getattr(ours.sequences[0], name) == getattr(theirs.sequences[0], name) is not None
    assert ours.prompt_logprobs == [None, -0.5]


def test_responses_made_of_lists_give_the_lists() -> None:
    sequence = tinker.SampledSequence("length", "id", _tokens_list=[1], _logprobs_list=[-1.0])
    response = tinker.SampleResponse([sequence], _prompt_logprobs_list=[None, -2.0])
    assert (sequence.tokens, sequence.logprobs, sequence.topk_logprobs) == ([1], [-1.0], None)
    assert response.prompt_logprobs == [None, -2.0]


def test_a_sample_request_takes_and_dumps_a_tensor() -> None:
    ids = tinker.TensorData([[1, -1]], "int64")
    request = tinker.SampleRequest(
        prompt=tinker.ModelInput.from_ints([1, 2]), sampling_params=tinker.SamplingParams(), target_prompt_logprobs=ids
    )
    assert request.model_dump()["target_prompt_logprobs"]["data"] == [1, -1]
    assert tinker.SampleRequest.model_validate_json(request.model_dump_json()).target_prompt_logprobs == ids


def test_the_console_of_a_saved_path_is_its_folder() -> None:
    root, name = current().root, run_id_of(new_session_id(), 0)
    address = tinker.types.SaveWeightsResponse(path=f"tinker://{name}/weights/b").get_console_url()
    assert address == (root / "runs" / run_folder(name) / "weights" / "b").as_uri()
    with pytest.raises(NotImplementedError, match="create_sampling_client reads it"):
        tinker.types.SaveWeightsForSamplerResponse(path=f"tinker://{name}/sampler_weights/b").get_playground_url()


def test_lists_that_do_not_fit_name_their_key() -> None:
    with pytest.raises(ShapeError, match="'weights'"):
        tinker.Datum(tinker.ModelInput.empty(), {"weights": [[1], [1, 2]]})
