"""The common slips at the public doors: each is answered with the likeliest mend, before a model runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lossbook as lb
from lossbook.datums.errors import LossbookError, UnknownArgument
from lossbook.datums.keywords import SYNONYMS

DATUM = lb.datum_from_tokens_weights([1, 2, 3], [0, 1, 1])
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
#: Public things that take no arguments of their own, settings by any name, or are called inside losses, where a wrapper
#: would be in the way of torch.fx.
NO_DOORS = {"errors", "stats", "types", "PerDatum", "Loss", "list_losses", "list_presets", "seed_everything"}
NO_DOORS |= {"get_loss", "rollout_correction", "describe_loss", "describe_preset", "unregister_loss"}
NO_DOORS |= {"kl_estimate", "safe_ratio", "remote"}
NO_DOORS |= {"ForwardBackwardOutput", "OptimStepResponse", "SampleResponse", "SampledSequence"}  # lossbook makes them


@pytest.fixture(scope="module")
def training() -> lb.TrainingClient:
    return lb.ServiceClient(device="cpu").create_lora_training_client("tiny", rank=2)


@pytest.mark.parametrize(
    ("slip", "mend"),
    [
        (lambda: lb.AdamParams(lr=1e-4), "no argument 'lr'. Did you mean 'learning_rate'?"),  # type: ignore[call-arg]
        (lambda: lb.AdamParams(betas=(0.9, 0.95)), "Did you mean 'beta1' and 'beta2'?"),  # type: ignore[call-arg]
        (lambda: lb.AdamParams(weight_deca=0.1), "Did you mean 'weight_decay'?"),  # type: ignore[call-arg]
        (lambda: lb.AdamParams(1e-4), "learning_rate and the like by name: learning_rate=0.0001"),  # type: ignore[misc]
        (lambda: lb.SamplingParams(max_new_tokens=9), "Did you mean 'max_tokens'?"),  # type: ignore[call-arg]
        (lambda: lb.ServiceClient("cuda"), "by name: device='cuda'"),  # type: ignore[misc]
        (lambda: lb.Datum(input_ids=[1]), "Did you mean 'model_input'?"),  # type: ignore[call-arg]
        (lambda: lb.Datum([1], [2]), "loss_fn_inputs are arrays by name"),  # type: ignore[arg-type]
        (lambda: lb.ModelInput([1, 2]), "ModelInput.from_ints"),  # type: ignore[list-item]
        (lambda: lb.ModelInput.from_ints("Hi"), "give tokenizer.encode('Hi')"),
        (lambda: lb.TensorData([1.0], "float64"), "'int64' or 'float32', not 'float64'"),  # type: ignore[arg-type]
        (lambda: lb.datum_from_messages(MESSAGES, "gpt2"), "is a name: give the tokenizer"),
        (lambda: lb.datum_from_tokens_weights([1, 2], weight=[0, 1]), "Did you mean 'weights'?"),  # type: ignore[call-arg]
        (lambda: lb.get_loss("gropo"), "Did you mean 'grpo'"),
        (lambda: lb.get_loss("trl:gropo"), "Did you mean 'trl:grpo'"),
        (lambda: lb.get_loss("grpo", beta=0.1), "Did you mean 'kl_coefficient'?"),
        (lambda: lb.get_loss("ppo", cliprange=0.2), "Did you mean 'clip_low' and 'clip_high'?"),
        (lambda: lb.get_loss("ppo")(DATUM, []), "a single one: write [datum]"),  # type: ignore[arg-type]
        (lambda: lb.get_loss("ppo").on_tensors(torch.zeros(1, 2), torch.ones(1, 2)), "by name: mask="),  # type: ignore[misc]
        (lambda: lb.register_loss(lambda logprobs: logprobs), 'write @register_loss("an_id"'),  # type: ignore[arg-type]
    ],
)
def test_a_slip_is_answered_with_its_mend(slip: Callable[[], Any], mend: str) -> None:
    with pytest.raises(LossbookError) as raised:
        slip()
    assert mend in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("slip", "mend"),
    [
        (lambda t: t.forward_backward(DATUM, "ppo"), "a single one: write [datum]"),
        (lambda t: t.forward_backward("gpt2", "ppo"), "a list of datums, not a str"),
        (lambda t: t.forward_backward(torch.zeros(1, 2), "ppo"), "got Tensor. Build one with"),
        (lambda t: t.forward_backward([DATUM], loss="ppo"), "Did you mean 'loss_fn'?"),
        (lambda t: t.forward_backward([DATUM], "ppo", clip_high=1.3), "loss_fn_config={'clip_high': ...}"),
        (lambda t: t.forward_backward([DATUM], "ppo", "clip"), "settings by name"),
        (lambda t: t.forward_backward_custom([DATUM], "ppo"), "forward_backward(data, 'ppo')"),
        (lambda t: t.optim_step(learning_rate=1e-4), "adam_params=AdamParams(learning_rate=...)"),
        (lambda t: t.optim_step(1e-4), "optim_step takes AdamParams(learning_rate=...), got float"),
    ],
)
def test_a_slip_at_a_client_is_answered_at_once(
    training: lb.TrainingClient, slip: Callable[[Any], Any], mend: str
) -> None:
    with pytest.raises(LossbookError) as raised:
        slip(training)
    assert mend in str(raised.value)


def test_a_future_that_is_used_as_its_result_names_result(training: lb.TrainingClient) -> None:
    future: Any = training.forward([DATUM])
    with pytest.raises(
        AttributeError, match=r"model-0\.forward \(call \d+\).*future\.result\(\)\.metrics waits for it"
    ):
        _ = future.metrics
    with pytest.raises(TypeError, match=r"future\.result\(\)\['metrics'\] waits for it"):
        _ = future["metrics"]
    assert not hasattr(future, "metrics")
    assert future.result().metrics["datums"] == 1


def test_a_misspelt_loss_is_answered_with_the_nearest_and_not_with_all() -> None:
    with pytest.raises(lb.errors.UnknownLossError) as raised:
        lb.get_loss("cross_entropi")
    assert "'cross_entropy'" in str(raised.value)
    assert f"list_losses(), gives all {len(lb.list_losses())}." in str(raised.value)
    assert sum(f"'{name}'" in str(raised.value) for name in lb.list_losses()) <= 3


def doors() -> list[tuple[str, Callable[..., Any]]]:
    """Every public call, the methods of public classes included."""
    every = [(name, getattr(lb, name)) for name in lb.__all__ if name not in NO_DOORS]
    methods = [
        (f"{name}.{method}", function)
        for name, thing in every
        if inspect.isclass(thing) and name.endswith("Client")
        for method, function in vars(thing).items()
        if inspect.isfunction(function) and not method.startswith("_") and not inspect.iscoroutinefunction(function)
    ]
    return [*every, *methods]


@pytest.mark.parametrize(("name", "door"), doors(), ids=[name for name, _ in doors()])
def test_every_public_call_answers_a_wrong_word_with_its_own(name: str, door: Callable[..., Any]) -> None:
    known = [one for one in inspect.signature(door).parameters if one != "self"]
    with pytest.raises(UnknownArgument) as raised:
        door(no_such_argument_at_all=1)
    assert "has no argument 'no_such_argument_at_all'" in str(raised.value)
    assert all(one in str(raised.value) for one in known)
    for word, ours in SYNONYMS.items():
        if word not in known and (meant := [one for one in ours if one in known]):
            with pytest.raises(UnknownArgument, match=f"Did you mean {meant[0]!r}"):
                door(**{word: 1})


def test_an_error_inside_a_call_keeps_its_own_class_and_message() -> None:
    with pytest.raises(TypeError, match="object of type 'int' has no len") as raised:
        lb.datums_from_pairs([1, 2])  # type: ignore[list-item]
    assert not isinstance(raised.value, UnknownArgument)
