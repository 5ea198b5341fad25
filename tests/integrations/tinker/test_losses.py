"""Losses by Tinker's ids are Tinker's, every other id is lossbook's loss, and what cannot be is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lossbook as lb
from lossbook.integrations import tinker
from lossbook.losses.testing import strategies
from lossbook.trainer.model.tiny import HIDDEN

from ...losses.cases import NEEDED, shipped

LITTLE = settings(max_examples=3, suppress_health_check=list(HealthCheck), deadline=None)
Array = np.ndarray
#: Settings in Tinker's spelling, its defaults first.
SETTINGS: dict[str, list[dict[str, float]]] = {
    "cross_entropy": [{}],
    "importance_sampling": [{}],
    "ppo": [{}, {"clip_low_threshold": 0.9, "clip_high_threshold": 1.05}],
    "cispo": [{}, {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}],
    "dro": [{"beta": 0.05}, {"beta": 0.5}],
    "gspo": [{"clip_low_threshold": 0.97, "clip_high_threshold": 1.04}],
}


def reference(name: str, lp: Array, q: Array, a: Array, mask: Array, config: dict[str, float]) -> tuple[float, Array]:
    """A datum's loss and its gradient with respect to lp, by the formulas that Tinker's documentation gives.

    lp, q, a, mask   [T]: logprobs of the model and of the sampler, advantages (as weights: cross_entropy), sequence_ratio_mask
    """
    low, high = config.get("clip_low_threshold", 0.8), config.get("clip_high_threshold", 1.2)
    ratio = np.exp(lp - q)
    if name == "cross_entropy":
        return -float(a @ lp), -a
    if name == "importance_sampling":
        return -float(ratio @ a), -ratio * a
    if name == "cispo":
        low, high = config.get("clip_low_threshold", 0.0), config.get("clip_high_threshold", 4.0)
        clipped = np.clip(ratio, low, high)
        return -float((clipped * lp) @ a), -clipped * a
    if name == "dro":
        return -float(lp @ a - config["beta"] / 2 * ((lp - q) ** 2).sum()), -(a - config["beta"] * (lp - q))
    if name == "gspo":
        ratio = np.full_like(lp, np.exp(((lp - q) * mask).sum() / mask.sum()))
    plain, clipped = ratio * a, np.clip(ratio, low, high) * a
    return -float(np.minimum(plain, clipped).sum()), np.where(plain <= clipped, -ratio * a, 0.0)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param(
            name, config, id=f"{name} {config}", marks=[pytest.mark.slow] if config is not SETTINGS[name][0] else []
        )
        for name in SETTINGS
        for config in SETTINGS[name]
    ],
)
@LITTLE
@given(data=st.data())
def test_a_loss_of_tinkers_has_the_value_and_the_gradient_of_its_documented_formula(
    standing: tinker.TrainingClient, name: str, config: dict[str, float], data: st.DataObject
) -> None:
    training = standing  # every step has a learning rate of 0
    numbers = st.floats(-2, 2, width=32)
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        tokens = data.draw(st.lists(st.integers(0, 200), min_size=2, max_size=6))
        rows.append((tokens[:-1], tokens[1:]))
    text = [tinker.ModelInput.from_ints(tokens) for tokens, _ in rows]
    plain = [tinker.Datum(one, {"target_tokens": targets}) for one, (_, targets) in zip(text, rows, strict=True)]
    seen = [out["logprobs"].to_numpy() for out in training.forward(plain, "cross_entropy").result().loss_fn_outputs]
    datums, surrogate, expected = [], [], 0.0
    for one, (_, targets), logprobs in zip(text, rows, seen, strict=True):
        count = len(targets)
        drawn = np.array([[data.draw(numbers) for _ in range(count)] for _ in range(2)], dtype=np.float32)
        mask = np.array([1.0, *(data.draw(st.sampled_from([0.0, 1.0])) for _ in range(count - 1))], dtype=np.float32)
        q = np.minimum(logprobs + drawn[0] / 8, 0).astype(np.float32)
        inputs: dict[str, Any] = {"target_tokens": targets, "logprobs": q, "advantages": drawn[1]}
        if name == "gspo":
            inputs["sequence_ratio_mask"] = mask
        if name == "cross_entropy":
            inputs = {"target_tokens": targets, "weights": drawn[1]}
        datums.append(tinker.Datum(one, inputs))
        value, gradient = reference(name, logprobs.astype(float), q.astype(float), drawn[1].astype(float), mask, config)
        expected += value
        surrogate.append(tinker.Datum(one, {"target_tokens": targets, "weights": gradient.astype(np.float32)}))

    output = training.forward_backward(datums, name, config).result()
    norm = training.optim_step(tinker.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"]

    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    training.forward_backward(datums, name, config)
    training.forward_backward(surrogate, "cross_entropy")  # its gradient is -Σ weights d logprobs: the two cancel
    left = training.optim_step(tinker.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"]
    assert left <= 1e-3 * norm + 1e-3


@pytest.fixture
def both(configure: Any) -> tuple[tinker.TrainingClient, lb.TrainingClient]:
    """The same model through the door, and through lossbook's own client."""
    configure(value_head=True)
    parts: dict[str, Any] = {"rank": 4, "seed": 0, "train_unembed": True}
    through = tinker.ServiceClient().create_lora_training_client("tiny", **parts).result()
    return through, lb.ServiceClient(device="cpu").create_lora_training_client("tiny", value_head=True, **parts)


@pytest.mark.slow
def test_every_registered_loss_runs_by_its_id(both: tuple[tinker.TrainingClient, lb.TrainingClient]) -> None:
    through, own = both

    @settings(max_examples=1, suppress_health_check=list(HealthCheck), deadline=None, database=None, derandomize=True)
    @given(st.data())
    def check(name: str, data: st.DataObject) -> None:
        loss = lb.get_loss(name, **NEEDED.get(name, {}))
        drawn = data.draw(strategies.datums(loss, min_groups=2))
        for one in drawn:
            if "teacher_embedding" in one.loss_fn_inputs:  # as wide as the model's own
                one.loss_fn_inputs["teacher_embedding"] = lb.TensorData.from_numpy(np.ones(HIDDEN, dtype=np.float32))
        inputs = [{key: tensor for key, tensor in one.loss_fn_inputs.items()} for one in drawn]
        datums = [
            tinker.Datum(tinker.ModelInput.from_ints(one.model_input.to_ints()), own_inputs)
            for one, own_inputs in zip(drawn, inputs, strict=True)
        ]
        theirs = f"tinker:{name}" if f"tinker:{name}" in lb.list_presets() else name
        got = through.forward_backward(datums, name, NEEDED.get(name)).result().metrics
        expected = own.forward_backward(drawn, theirs, NEEDED.get(name)).result().metrics
        assert got["loss:sum"] == pytest.approx(expected["loss:sum"], rel=1e-5, abs=1e-6), name
        through.optim_step(tinker.AdamParams(learning_rate=0.0)).result()
        own.optim_step(lb.AdamParams(learning_rate=0.0)).result()

    for name in shipped():
        if not lb.get_loss(name, **NEEDED.get(name, {})).spec.reads_vocabulary:  # the SDK has no word for a teacher
            check(name)


def datum(**inputs: Any) -> tinker.Datum:
    """Three tokens and their targets."""
    return tinker.Datum(tinker.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4], **inputs})


def test_positions_of_weight_0_have_their_logprobs_too(training: tinker.TrainingClient) -> None:
    unweighted = training.forward([datum()], "cross_entropy").result().loss_fn_outputs[0]["logprobs"]
    masked = training.forward_backward([datum(weights=[0.0, 0.0, 1.0])], "cross_entropy").result()
    assert masked.loss_fn_outputs[0]["logprobs"] == unweighted
    assert masked.metrics["loss:sum"] == pytest.approx(-unweighted.data[2], abs=1e-6)
    nothing = training.forward([datum(weights=[0.0, 0.0, 0.0])], "cross_entropy").result()
    assert nothing.loss_fn_outputs[0]["logprobs"] == unweighted
    assert nothing.metrics["loss:sum"] == 0


def test_stable_reinforce_is_refused_with_the_nearest_unless_a_setting_chooses(configure: Any) -> None:
    data = [datum(logprobs=[-1.0, -1.0, -1.0], advantages=[0.0, 1.0, -1.0])]
    training = tinker.ServiceClient().create_lora_training_client("tiny", rank=2, seed=0)
    with pytest.raises(KeyError, match=r"not public.*'importance_sampling', 'ppo', 'cispo'"):
        training.forward_backward(data, "stable_reinforce")
    with pytest.raises(KeyError, match="not public"):
        training.save_weights_and_get_sampling_client(record_stability_info=True)
    configure(stable_reinforce="cispo")
    stood_in = tinker.ServiceClient().create_lora_training_client("tiny", rank=2, seed=0)
    expected = training.forward(data, "cispo").result().metrics["loss:sum"]
    assert stood_in.forward(data, "stable_reinforce").result().metrics["loss:sum"] == expected
    assert stood_in.save_weights_and_get_sampling_client(record_stability_info=True).result().get_base_model() == "tiny"
    configure(stable_reinforce="cispoo")
    with pytest.raises(KeyError, match=r"Did you mean 'cispo'"):
        tinker.ServiceClient().create_sampling_client(base_model="tiny", record_stability_info=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(
            lambda t: t.forward_backward([datum()], "custom"), "forward_backward_custom", id="custom by its id"
        ),
        pytest.param(lambda t: t.forward_backward([datum()], "pppo"), "Did you mean 'ppo'", id="a misspelt loss"),
        pytest.param(
            lambda t: t.forward_backward([datum()], "ppo", {"clip": 1.0}), "clip", id="a setting that ppo lacks"
        ),
        pytest.param(lambda t: t.forward_backward([], "ppo"), "no datums", id="no data"),
        pytest.param(
            lambda t: t.forward_backward([datum(), datum(clip_low_threshold=[0.8] * 3)], "ppo"),
            "datum 1 of 2.*loss_fn_config",
            id="a bound for each token",
        ),
        pytest.param(
            lambda t: t.forward_backward(
                [tinker.Datum(tinker.ModelInput(chunks=[tinker.types.ImageChunk(data=b"", format="png")]), {})], "ppo"
            ),
            "datum 0 of 1: chunk 0 of 1 is a ImageChunk.*EncodedTextChunk",
            id="an image",
        ),
        pytest.param(lambda t: t.optim_step(tinker.DimuonParams(learning_rate=0.1)), "dimuon.*AdamParams", id="Dimuon"),
        pytest.param(lambda t: t.optim_step(), "AdamParams", id="a step without its numbers"),
        pytest.param(
            lambda t: t.optim_step(tinker.AdamParams(), adam_params=tinker.AdamParams()),
            "not both",
            id="two sets of numbers",
        ),
        pytest.param(lambda t: t.save_state("a/b"), "cannot be a name", id="a name with a slash"),
        pytest.param(lambda t: t.save_weights_external("a", None, ["age1"]), "age", id="encryption"),
        pytest.param(
            lambda t: t.save_weights_and_get_sampling_client(kind="live"), "snapshot.*inflight", id="an unknown kind"
        ),
    ],
)
def test_what_cannot_be_is_refused_at_the_call(standing: tinker.TrainingClient, call: Any, words: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, RuntimeError), match=words):
        call(standing)
    standing.forward([datum()], "cross_entropy").result()  # the client goes on
