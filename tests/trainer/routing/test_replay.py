"""Routing matrices: tokens go to the experts that they name, with the weights that the model's own routers give those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lossbook as lb
from lossbook.datums.routing import encode_routing
from lossbook.trainer.clients.training import TrainingClient

from ..conftest import copied_gradients
from ..every_model.building import model_of
from ..model.architectures import build_tiny_tokenizer
from .routed import assert_close, client, datums_with, gradient, layers_in, logprobs_of, mixed_datums, routes_for

KINDS = (
    "qwen3_moe",
    "mixtral",
    pytest.param("deepseek_v3", marks=pytest.mark.slow),
    pytest.param("gpt_oss", marks=pytest.mark.slow),
)


def weights_by_hand(kind: str, router: Any, hidden: Tensor, experts: Tensor) -> Tensor:
    """[T, WIDTH]: what each architecture's paper makes of the scores of given experts, written anew."""
    logits = hidden @ router.weight.T
    if kind == "gpt_oss":
        return (logits + router.bias).gather(1, experts).softmax(1)
    if kind == "deepseek_v3":
        scores = logits.sigmoid().gather(1, experts)
        return router.routed_scaling_factor * scores / (scores.sum(1, keepdim=True) if router.norm_topk_prob else 1.0)
    scores = logits.softmax(1).gather(1, experts)
    norms = kind == "mixtral" or router.norm_topk_prob
    return scores / scores.sum(1, keepdim=True) if norms else scores


@contextmanager
def by_hand(kind: str, training: TrainingClient, route: np.ndarray) -> Iterator[None]:
    """Inside, each layer's experts are handed `route` and weights made by hand: nothing of the code under test runs."""
    blocks = layers_in(training)
    hooks = []
    for layer, block in enumerate(blocks):
        router: Any = block._modules.get("gate", block._modules.get("router"))
        experts = torch.from_numpy(route[:, layer]).long()

        def exchanged(
            _module: nn.Module, given: Any, keywords: Any, router: Any = router, experts: Tensor = experts
        ) -> Any:
            hidden = given[0]
            return (hidden, experts, weights_by_hand(kind, router, hidden, experts)), {}

        hooks.append(block._modules["experts"].register_forward_pre_hook(exchanged, with_kwargs=True))  # type: ignore[union-attr]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_given_experts_get_the_weights_of_the_models_own_scores_and_routers_their_gradient(
    mixture: Callable[[str], str], kind: str
) -> None:
    training = client(mixture(kind), batching="single")
    (route,) = routes_for([9], len(layers_in(training)))
    (datum,) = datums_with([route])
    free = lb.Datum(lb.ModelInput.from_ints(datum.model_input.to_ints()), datum.loss_fn_inputs)
    with by_hand(kind, training, route):
        expected, expected_gradient = logprobs_of(training, [free])[0], gradient(training, [free])
    assert np.abs(logprobs_of(training, [free])[0] - expected).max() > 1e-3  # the experts matter
    np.testing.assert_allclose(logprobs_of(training, [datum])[0], expected, atol=2e-6)
    ours = gradient(training, [datum])
    assert_close(ours, expected_gradient)
    routers = [name for name in ours if ".gate.weight" in name or ".router.weight" in name]
    assert len(routers) == len(layers_in(training))
    assert all(bool(ours[name].any()) for name in routers)


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_own_experts_given_back_change_no_bit(mixture: Callable[[str], str], kind: str) -> None:
    training = client(mixture(kind), batching="single")
    chosen: dict[int, Tensor] = {}
    hooks = [
        block._modules["experts"].register_forward_pre_hook(  # type: ignore[union-attr]
            lambda _module, given, keywords, layer=layer: chosen.update({layer: [*given, *keywords.values()][1]}),
            with_kwargs=True,
        )
        for layer, block in enumerate(layers_in(training))
    ]
    (free,) = datums_with([7])
    expected = logprobs_of(training, [free])[0]
    for hook in hooks:
        hook.remove()
    route = torch.stack([chosen[layer] for layer in range(len(hooks))], 1).numpy()
    given = lb.Datum(lb.ModelInput.from_ints(free.model_input.to_ints(), encode_routing(route)), free.loss_fn_inputs)
    assert np.array_equal(logprobs_of(training, [given])[0], expected)
    empty = lb.Datum(lb.ModelInput.from_ints(free.model_input.to_ints(), [""] * 7), free.loss_fn_inputs)
    assert np.array_equal(logprobs_of(training, [empty])[0], expected)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"batching": "packed"}, id="packed in one row, where two sequences begin alike and are routed otherwise"
        ),
        pytest.param({"batching": "padded"}, id="padded"),
        pytest.param(
            {"batching": "packed", "tokens_per_micro_batch": 30},
            id="packed, in several micro-batches",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"batching": "padded", "tokens_per_micro_batch": 30},
            id="padded, in several micro-batches",
            marks=pytest.mark.slow,
        ),
        pytest.param({"batching": "packed", "checkpoint_layers": True}, id="layers run again in the backward"),
    ],
)
def test_sequences_are_routed_as_each_alone(mixture: Callable[[str], str], settings: dict[str, Any]) -> None:
    alone, together = client(mixture("qwen3_moe"), batching="single"), client(mixture("qwen3_moe"), **settings)
    datums = mixed_datums(2)
    for ours, theirs in zip(logprobs_of(together, datums), logprobs_of(alone, datums), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-6)
    assert_close(gradient(together, datums), gradient(alone, datums), atol=1e-5)


@pytest.mark.slow
def test_a_batch_whose_graphs_are_made_twice_is_routed_twice(mixture: Callable[[str], str]) -> None:
    def coupled(data: Any, logprobs: list[Tensor]) -> Any:
        return torch.stack([one.sum() for one in logprobs]).logsumexp(0), {}

    sizes: dict[str, Any] = {"tokens_per_micro_batch": 30}
    kept, again = client(mixture("mixtral"), **sizes), client(mixture("mixtral"), kept_graph_tokens=1, **sizes)
    datums = mixed_datums(2)
    metrics = again.forward_backward_custom(datums, coupled).result().metrics
    assert metrics["forward_passes"] == 2
    kept.forward_backward_custom(datums, coupled).result()
    assert_close(copied_gradients(again), copied_gradients(kept))


def test_a_reference_and_its_likeliest_tokens_follow_the_routes(mixture: Callable[[str], str]) -> None:
    training, datums = client(mixture("mixtral")), mixed_datums(2)
    reference = training.create_reference_client()
    expected = logprobs_of(training, datums)
    for ours, theirs in zip(logprobs_of(reference, datums), expected, strict=True):
        assert np.array_equal(ours, theirs)
    vocabulary = reference.vocab_size
    for top, datum, theirs in zip(reference.top_logprobs(datums, vocabulary).result(), datums, expected, strict=True):
        targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
        places = (top.tokens == targets[:, None]).argmax(1)
        np.testing.assert_allclose(top.logprobs[np.arange(len(targets)), places], theirs, atol=3e-6)


@pytest.mark.slow
def test_adapters_are_trained_on_given_experts(mixture: Callable[[str], str]) -> None:
    service = lb.ServiceClient(device="cpu")
    training = service.create_lora_training_client(mixture("qwen3_moe"), rank=2, seed=0)
    datums = mixed_datums(2)
    free = [lb.Datum(lb.ModelInput.from_ints(d.model_input.to_ints()), d.loss_fn_inputs) for d in datums]
    ours, theirs = gradient(training, datums), gradient(training, free)
    assert any(not torch.allclose(ours[name], theirs[name]) for name in ours if "experts" in name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_an_adapter_on_a_router_gets_a_gradient_through_given_experts(mixture: Callable[[str], str], kind: str) -> None:
    service = lb.ServiceClient(device="cpu")
    training = service.create_lora_training_client(mixture(kind), rank=2, seed=0, lora_targets=["mlp.gate"])
    own = gradient(training, datums_with(routes_for([9], 2)))
    assert len(own) == 4
    assert all(bool(one.any()) for name, one in own.items() if "lora_B" in name)


def test_a_dense_model_refuses_routing_matrices_by_name() -> None:
    training = lb.ServiceClient(device="cpu").create_training_client("tiny")
    (datum,) = datums_with([routes_for([5], 2)[0]])
    with pytest.raises(
        lb.errors.ModelError, match="cannot be given routing_matrices: no part of it is known to hold experts"
    ):
        training.forward([datum]).result()


def test_what_does_not_follow_routes_refuses_them(mixture: Callable[[str], str]) -> None:
    folder = mixture("mixtral")
    (datum,) = datums_with(routes_for([5], 2))
    with pytest.raises(lb.errors.ModelError, match="leave compile_layers=True out"):
        client(folder, compile_layers=True).forward([datum]).result()
    sampler = client(folder).save_weights_and_get_sampling_client()
    params = lb.SamplingParams(max_tokens=2)
    for call in (
        lambda: sampler.sample(datum.model_input, num_samples=1, sampling_params=params).result(),
        lambda: sampler.sample_batch([datum.model_input], params).result(),
        lambda: sampler.compute_logprobs(datum.model_input).result(),
    ):
        with pytest.raises(lb.errors.ModelError, match="a prompt carries routing_matrices"):
            call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda route: route[:, :1], r"datum 0 of 1: routing_matrices\[0\] holds 2 bytes", id="a layer too few"
        ),
        pytest.param(
            lambda route: route * 0, r"routing_matrices\[0\] names an expert twice in layer 0", id="an expert twice"
        ),
        pytest.param(lambda route: route + 4, r"names an expert beyond 3 in layer 0", id="an expert that there is not"),
    ],
)
def test_matrices_of_another_model_are_refused_where_they_differ(
    mixture: Callable[[str], str], change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    (route,) = routes_for([5], 2)
    (datum,) = datums_with([change(route)])
    with pytest.raises(lb.errors.ShapeError, match=message):
        client(mixture("mixtral")).forward_backward([datum], "cross_entropy").result()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        pytest.param("phimoe", "PhimoeSparseMoeBlock does not choose its experts by one torch.topk", id="no top-k"),
        pytest.param("jetmoe", "JetMoeTopKGating chooses experts too", id="experts of attention too"),
        pytest.param("llama4_text", "does not hand its experts indices and weights", id="experts that get all tokens"),
    ],
)
def test_mixtures_that_choose_in_another_way_are_refused_with_it(
    mixture: Callable[[str], str], kind: str, reason: str
) -> None:
    training = client(mixture(kind))
    (datum,) = datums_with(routes_for([5], 2))
    with pytest.raises(lb.errors.ModelError, match=reason):
        training.forward([datum]).result()


@pytest.mark.slow
def test_groups_of_experts_that_take_the_weight_of_those_outside_are_refused(tmp_path: Path) -> None:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    config = model_of("deepseek_v2").config.to_dict()
    config |= {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 1, "n_routed_experts": 8}
    DeepseekV2ForCausalLM(DeepseekV2Config(**config)).save_pretrained(tmp_path)
    build_tiny_tokenizer().save_pretrained(tmp_path)
    (datum,) = datums_with(routes_for([5], 1))
    with pytest.raises(lb.errors.ModelError, match="gives some experts no weight"):
        client(str(tmp_path)).forward([datum]).result()
