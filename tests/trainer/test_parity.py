"""One loss, one gradient: by name, as a custom loss, written in batch style, and however the batch is cut.

The batch-style twins are written here from the formulas, over single datums, and share no code with the losses; that each
loss equals its formula is shown in tests/losses. Gradients are compared parameter by parameter, the norm of the difference
against the norm of the gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient

#: One loss of each kind that the engine treats differently: per token, datum, pair and batch, and what they couple.
LOSSES = ("cross_entropy", "importance_sampling", "ppo", "grpo", "dpo", "info_nce")
Gradients = dict[str, Tensor]
GradientsOf = Callable[[TrainingClient], Gradients]
MakeDatums = Callable[..., list[lb.Datum]]
#: transformers' RMSNorm computes in float32 also in a float64 model, so gradients that are scaled differently on their way
#: back are rounded differently; gradients that are only cut differently are not.
SCALED = 1e-6
DTYPES = [
    pytest.param(torch.float64, 1e-9, id="float64"),
    pytest.param(torch.float32, 1e-5, id="float32", marks=pytest.mark.slow),
]


def relative_difference(ours: Gradients, expected: Gradients) -> float:
    """The largest, over parameters, of ‖ours - expected‖ / ‖expected‖; parameters without gradient must agree in that."""
    assert ours.keys() == expected.keys()
    assert any(bool(gradient.any()) for gradient in expected.values()), (
        "the loss moved nothing, so nothing was compared"
    )
    differences = []
    for name, gradient in expected.items():
        if not bool(gradient.any()):
            assert not bool(ours[name].any()), f"{name} has a gradient in one and none in the other"
            continue
        differences.append(float((ours[name] - gradient).double().norm() / gradient.double().norm()))
    return max(differences)


def full_weight_client(dtype: torch.dtype = torch.float32, **settings: Any) -> TrainingClient:
    """All weights of the tiny decoder in training, the same ones in every client."""
    return lb.ServiceClient(device="cpu", dtype=dtype, **settings).create_training_client("tiny")


def inputs_of(datum: lb.Datum, key: str, like: Tensor) -> Tensor:
    return torch.tensor(datum.loss_fn_inputs[key].data).to(like)


def read(datum: lb.Datum, logprobs: Tensor) -> dict[str, Tensor]:
    """One datum's numbers at the positions that count: p, q, f, w, A in the notation of the papers."""
    weights = inputs_of(datum, "weights", logprobs)
    counts = weights != 0
    keys = {"q": "sampling_logprobs", "f": "ref_logprobs", "A": "advantages"}
    return {
        "p": logprobs[counts],
        "w": weights[counts],
        **{symbol: inputs_of(datum, key, logprobs)[counts] for symbol, key in keys.items()},
    }


def clipped(x: dict[str, Tensor]) -> Tensor:
    """-min(r A, clip(r, 0.8, 1.2) A), Schulman et al. 2017 eq. 7."""
    ratio = (x["p"] - x["q"]).exp()
    return torch.maximum(-ratio * x["A"], -ratio.clamp(0.8, 1.2) * x["A"])


def cross_entropy_twin(data, logprobs_list):
    parts = [read(d, lp) for d, lp in zip(data, logprobs_list, strict=True)]
    return sum(-torch.dot(x["w"], x["p"]) for x in parts), {}


def importance_sampling_twin(data, logprobs_list):
    parts = [read(d, lp) for d, lp in zip(data, logprobs_list, strict=True)]
    return sum(-(x["w"] * (x["p"] - x["q"]).exp() * x["A"]).sum() for x in parts), {}


def ppo_twin(data, logprobs_list):
    parts = [read(d, lp) for d, lp in zip(data, logprobs_list, strict=True)]
    return sum((x["w"] * clipped(x)).sum() for x in parts), {}


def grpo_twin(data, logprobs_list):
    """Clipped surrogate + 0.001 (exp(f - p) - (f - p) - 1), weighted mean over all tokens of the batch."""
    parts = [read(d, lp) for d, lp in zip(data, logprobs_list, strict=True)]
    total = sum(
        (x["w"] * (clipped(x) + 0.001 * ((x["f"] - x["p"]).exp() - (x["f"] - x["p"]) - 1))).sum() for x in parts
    )
    return total / sum(x["w"].sum() for x in parts), {}


def dpo_twin(data, logprobs_list):
    parts = [read(d, lp) for d, lp in zip(data, logprobs_list, strict=True)]
    gains = [(x["w"] * (x["p"] - x["f"])).sum() for x in parts]
    losses = [-logsigmoid(0.1 * (gains[i] - gains[i + 1])) for i in range(0, len(gains), 2)]
    return torch.stack(losses).mean(), {}


def info_nce_twin(data, embeddings):
    vectors = normalize(torch.stack(embeddings), dim=-1)
    half = len(data) // 2
    similarity = vectors[:half] @ vectors[half:].T / 0.02
    partner = torch.arange(half)
    return (cross_entropy(similarity, partner) + cross_entropy(similarity.T, partner)) / 2, {}


TWINS = {
    "cross_entropy": cross_entropy_twin,
    "importance_sampling": importance_sampling_twin,
    "ppo": ppo_twin,
    "grpo": grpo_twin,
    "dpo": dpo_twin,
    "info_nce": info_nce_twin,
}


def gradient_by_name(
    name: str, client: TrainingClient, datums: list[lb.Datum], gradients_of: GradientsOf
) -> tuple[Gradients, float]:
    value = client.forward_backward(datums, name).result().metrics["loss:sum"]
    gradients = gradients_of(client)
    client.discard_gradients().result()
    return gradients, value


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_by_name_and_the_same_loss_as_custom_give_the_same_bits(
    name: str, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    client, datums = full_weight_client(), make_datums()
    built_in, value = gradient_by_name(name, client, datums, gradients_of)
    custom = client.forward_backward_custom(datums, lb.get_loss(name)).result()
    gradients = gradients_of(client)
    assert custom.metrics["loss:sum"] == value
    assert all(torch.equal(gradients[key], gradient) for key, gradient in built_in.items())


@pytest.mark.parametrize("name", TWINS)
def test_a_batch_style_function_has_the_gradient_of_the_loss_by_name(
    name: str, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    client, datums = full_weight_client(), make_datums()
    built_in, value = gradient_by_name(name, client, datums, gradients_of)
    output = "embedding" if name == "info_nce" else "logprobs"
    custom = client.forward_backward_custom(datums, TWINS[name], output=output).result()
    assert custom.metrics["loss:sum"] == pytest.approx(value, rel=1e-6)
    difference = relative_difference(gradients_of(client), built_in)
    assert difference < 1e-6


@pytest.mark.parametrize("name", TWINS)
def test_a_batch_style_function_gets_its_datums_in_order_however_they_are_cut(
    name: str, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(8)
    built_in, _ = gradient_by_name(name, full_weight_client(torch.float64), datums, gradients_of)
    for settings in ({"tokens_per_micro_batch": 24}, {"tokens_per_micro_batch": 24, "kept_graph_tokens": 1}):
        client = full_weight_client(torch.float64, **settings)
        output = "embedding" if name == "info_nce" else "logprobs"
        custom = client.forward_backward_custom(datums, TWINS[name], output=output).result()
        assert custom.metrics["forward_passes"] == (2 if "kept_graph_tokens" in settings else 1)
        difference = relative_difference(gradients_of(client), built_in)
        assert difference < SCALED


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"tokens_per_micro_batch": 24}, id="several micro-batches"),
        pytest.param({"tokens_per_micro_batch": 1}, id="one datum (or pair) a micro-batch"),
        pytest.param({"batching": "packed"}, id="packed"),
        pytest.param({"batching": "packed", "tokens_per_micro_batch": 24}, id="packed, several micro-batches"),
    ],
)
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(
    name: str,
    settings: dict[str, Any],
    dtype: torch.dtype,
    tolerance: float,
    make_datums: MakeDatums,
    gradients_of: GradientsOf,
) -> None:
    datums = make_datums(8)
    whole, value = gradient_by_name(name, full_weight_client(dtype), datums, gradients_of)
    client = full_weight_client(dtype, **settings)
    output = client.forward_backward(datums, name).result()
    assert output.metrics["loss:sum"] == pytest.approx(value, rel=tolerance)
    difference = relative_difference(gradients_of(client), whole)
    assert difference < tolerance
    if "tokens_per_micro_batch" in settings:
        assert output.metrics["micro_batches"] > 1


@pytest.mark.parametrize("name", LOSSES)
def test_metrics_do_not_depend_on_how_the_batch_is_cut(name: str, make_datums: MakeDatums) -> None:
    datums = make_datums(8)
    whole = full_weight_client(torch.float64).forward_backward(datums, name).result()
    cut = full_weight_client(torch.float64, tokens_per_micro_batch=1).forward_backward(datums, name).result()
    assert whole.metrics.keys() == cut.metrics.keys()
    assert cut.metrics.pop("micro_batches") > whole.metrics.pop("micro_batches")
    assert cut.metrics == pytest.approx(whole.metrics, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("reduction", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_denominators_are_those_of_the_whole_call_under_every_reduction(
    reduction: str, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(8)
    gradients = []
    for tokens in (4096, 1):
        client = full_weight_client(torch.float64, tokens_per_micro_batch=tokens)
        client.forward_backward(datums, "ppo", {"reduction": reduction}).result()
        gradients.append(gradients_of(client))
    difference = relative_difference(gradients[1], gradients[0])
    assert difference < 1e-9


def test_a_mixture_has_the_gradient_of_its_parts_however_it_is_cut(
    make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(8)
    parts = []
    for name in ("dpo", "cross_entropy"):
        client = full_weight_client(torch.float64)
        client.forward_backward(datums, name).result()
        parts.append(gradients_of(client))
    mixture = 0.5 * lb.get_loss("dpo") + 0.25 * lb.get_loss("cross_entropy")
    client = full_weight_client(torch.float64, tokens_per_micro_batch=1)
    client.forward_backward(datums, mixture).result()
    expected = {name: 0.5 * gradient + 0.25 * parts[1][name] for name, gradient in parts[0].items()}
    difference = relative_difference(gradients_of(client), expected)
    assert difference < SCALED


def test_a_mixture_of_logprobs_and_embeddings_has_the_gradient_of_its_parts(
    make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(6)
    parts = [
        gradient_by_name(name, full_weight_client(torch.float64), datums, gradients_of)[0]
        for name in ("cross_entropy", "info_nce")
    ]
    client = full_weight_client(torch.float64, tokens_per_micro_batch=24)
    output = client.forward_backward(datums, lb.get_loss("cross_entropy") + 0.5 * lb.get_loss("info_nce")).result()
    assert output.loss_fn_outputs[0].keys() == {"logprobs", "embedding"}
    expected = {name: gradient + 0.5 * parts[1][name] for name, gradient in parts[0].items()}
    difference = relative_difference(gradients_of(client), expected)
    assert difference < SCALED


@pytest.mark.parametrize("other", ["z_loss", "label_smoothing", "entropy_bonus", "reference_kl"])
def test_a_mixture_whose_parts_read_different_outputs_has_the_gradient_of_its_parts(
    other: str, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(6)
    parts = [
        gradient_by_name(name, full_weight_client(torch.float64), datums, gradients_of)[0] for name in (other, "ppo")
    ]
    mixture = 0.5 * lb.get_loss(other) + lb.get_loss("ppo")
    for settings in ({"tokens_per_micro_batch": 24}, {"batching": "packed"}):
        client = full_weight_client(torch.float64, **settings)
        client.forward_backward(datums, mixture).result()
        expected = {name: 0.5 * gradient + parts[1][name] for name, gradient in parts[0].items()}
        difference = relative_difference(gradients_of(client), expected)
        assert difference < SCALED


def with_entropy(logprobs, entropy):
    """-logprobs - 0.1 entropy."""
    return -logprobs - 0.1 * entropy


def with_logsumexp(logsumexp):
    """0.5 logsumexp^2: reads no logprobs."""
    return 0.5 * logsumexp.square()


def with_mean_logprobs(mean_logprobs, logprobs):
    """-0.9 logprobs - 0.1 mean_logprobs^2."""
    return -0.9 * logprobs - 0.1 * mean_logprobs.square()


def with_everything(entropy, mean_logprobs, logsumexp, logprobs):
    """A product, so that every gradient depends on every other output."""
    return -logprobs * entropy + 0.1 * mean_logprobs * logsumexp


@pytest.mark.parametrize("loss", [with_entropy, with_logsumexp, with_mean_logprobs, with_everything])
@pytest.mark.parametrize(
    "settings", [{}, {"tokens_per_micro_batch": 1}, {"batching": "packed", "tokens_per_micro_batch": 24}], ids=str
)
def test_a_loss_over_the_whole_softmax_has_the_gradient_of_the_dense_computation(
    loss: Callable[..., Tensor], settings: dict[str, Any], make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(4)
    client = full_weight_client(torch.float64, **settings)
    output = client.forward_backward(datums, loss).result()
    gradients = gradients_of(client)
    read = list(inspect.signature(loss).parameters)
    module = client.local.model.module
    parameters = dict(module.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for datum, own in zip(datums, output.loss_fn_outputs, strict=True):
        logits = module(torch.tensor([datum.model_input.to_ints()])).logits[0]
        log_softmax = logits.log_softmax(-1)
        targets, weights = (datum.loss_fn_inputs[key].to_torch() for key in ("target_tokens", "weights"))
        dense = {
            "logprobs": log_softmax.gather(1, targets[:, None])[:, 0],
            "entropy": -(log_softmax.exp() * log_softmax).sum(-1),
            "logsumexp": logits.logsumexp(-1),
            "mean_logprobs": log_softmax.mean(-1),
        }
        total = total + (weights * loss(**{name: dense[name] for name in read})).sum()
        assert own.keys() == set(read)
        for name in read:
            computed = torch.where(weights != 0, dense[name].float(), 0.0)
            torch.testing.assert_close(own[name].to_torch(), computed, rtol=1e-5, atol=1e-5)
    expected = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
    difference = relative_difference(gradients, expected)
    assert difference < SCALED
    assert output.metrics["loss:sum"] == pytest.approx(float(total.detach()), rel=1e-6)


def multi_target_datums() -> list[lb.Datum]:
    """[N, K] targets, K different from datum to datum, and one with [N]."""
    generator = torch.Generator().manual_seed(0)
    datums = []
    for length, width in ((5, 3), (7, 2), (4, None)):
        shape = (length,) if width is None else (length, width)
        weights = torch.rand(shape, generator=generator)
        weights[0] = 0.0
        targets = torch.randint(0, 260, shape, generator=generator)
        tokens = torch.randint(0, 260, (length,), generator=generator)
        datums.append(lb.Datum(lb.ModelInput.from_ints(tokens), {"target_tokens": targets, "weights": weights}))
    return datums


def test_multi_target_cross_entropy_has_one_gradient_however_it_is_cut_or_written(gradients_of: GradientsOf) -> None:
    def twin(data, logprobs_list):
        return sum(
            -(d.loss_fn_inputs["weights"].to_torch().to(lp) * lp).sum()
            for d, lp in zip(data, logprobs_list, strict=True)
        ), {}

    datums = multi_target_datums()
    whole, _ = gradient_by_name("cross_entropy", full_weight_client(torch.float64), datums, gradients_of)
    for settings in ({"tokens_per_micro_batch": 1}, {"batching": "packed"}):
        client = full_weight_client(torch.float64, **settings)
        output = client.forward_backward(datums, "cross_entropy").result()
        difference = relative_difference(gradients_of(client), whole)
        assert difference < 1e-9
        assert [o["logprobs"].shape for o in output.loss_fn_outputs] == [[5, 3], [7, 2], [4]]
    client = full_weight_client(torch.float64)
    client.forward_backward_custom(datums, twin).result()
    difference = relative_difference(gradients_of(client), whole)
    assert difference < 1e-9


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_several_calls_before_a_step_are_one_big_call(
    dtype: torch.dtype, tolerance: float, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(8)
    together, apart = full_weight_client(dtype), full_weight_client(dtype)
    together.forward_backward(datums, "cross_entropy").result()
    for start in range(0, 8, 3):
        apart.forward_backward(datums[start : start + 3], "cross_entropy").result()
    difference = relative_difference(gradients_of(apart), gradients_of(together))
    assert difference < tolerance
    params = lb.AdamParams(learning_rate=1e-3)
    steps = [
        client.optim_step(params, grad_accumulation_normalization="num_loss_tokens").result().metrics
        for client in (together, apart)
    ]
    assert steps[1]["normalizer"] == steps[0]["normalizer"]
    assert steps[1]["grad_norm"] == pytest.approx(steps[0]["grad_norm"], rel=tolerance)


def test_a_sum_normalized_at_the_step_is_a_mean_in_the_loss(make_datums: MakeDatums) -> None:
    datums = [
        lb.Datum(
            d.model_input,
            {"target_tokens": d.loss_fn_inputs["target_tokens"], "weights": [1.0] * len(d.loss_fn_inputs["weights"])},
        )
        for d in make_datums(5)
    ]
    summed, averaged = full_weight_client(torch.float64), full_weight_client(torch.float64)
    summed.forward_backward(datums, "cross_entropy").result()
    averaged.forward_backward(datums, "cross_entropy", {"reduction": "token-mean"}).result()
    params = lb.AdamParams(learning_rate=1e-3)
    norms = [
        summed.optim_step(params, grad_accumulation_normalization="num_loss_tokens").result().metrics["grad_norm"],
        averaged.optim_step(params).result().metrics["grad_norm"],
    ]
    assert norms[0] == pytest.approx(norms[1], rel=SCALED)
