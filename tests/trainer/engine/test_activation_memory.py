"""How the model runs: layers checkpointed, offloaded or compiled, the head's strategy, bfloat16; none changes a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.engine import forward
from lossbook.trainer.engine.activation_memory import held_bytes, layers_as_set, repeated_layers
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.head import autograd
from lossbook.trainer.head.logprobs import HeadOutputs
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.packing.hidden import hidden_states, supports_packing

VOCABULARY = 260
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MakeDatums = Callable[..., list[lb.Datum]]
GradientsOf = Callable[[TrainingClient], dict[str, Tensor]]


def client(**options: Any) -> TrainingClient:
    return lb.ServiceClient(device="cpu", **options).create_training_client("tiny")


def assert_same(
    options: dict[str, Any],
    loss: str,
    make_datums: MakeDatums,
    gradients_of: GradientsOf,
    *,
    precision: float = 1e-9,
    **settings: Any,
) -> None:
    """A client with the options gives the loss and gradients of one without."""
    datums = make_datums()
    plain, other = client(dtype=torch.float64), client(dtype=torch.float64, **options)
    expected = plain.forward_backward(datums, loss, settings).result()
    output = other.forward_backward(datums, loss, settings).result()
    assert output.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=precision)
    ours = gradients_of(other)
    for name, gradient in gradients_of(plain).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e3 * precision, atol=precision)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_what_a_forward_holds_is_counted_to_the_byte(device: str) -> None:
    x = torch.ones(1024, device=device, requires_grad=True)
    with held_bytes(x.device) as kept:
        y = (3 * x)[:512].exp()  # the product is freed: the backward of exp needs its result alone
        z = y.view(4, 128).log()  # needs y
    assert kept() == 4 * 512 + 4 * 512
    del z
    assert kept() == 4 * 512
    del y
    assert kept() == 0


@pytest.mark.parametrize("batching", ["padded", "packed"])
@pytest.mark.parametrize("option", ["checkpoint_layers", "offload_activations"])
def test_checkpointing_and_offloading_change_no_number(
    option: str, batching: str, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    assert_same({option: True, "batching": batching}, "grpo", make_datums, gradients_of)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_layers_change_no_number(
    checkpointed: bool, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    options = {"compile_layers": True, "checkpoint_layers": checkpointed}
    # Norms are in float32 also here, and compiled they add up in another order.
    assert_same(options, "grpo", make_datums, gradients_of, precision=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_layers_are_compiled_once_for_all_of_them_and_all_layouts(make_datums: MakeDatums) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = client(compile_layers=True)
    compiled.forward_backward(make_datums(count=4), "cross_entropy").result()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled.forward_backward(make_datums(count=7, seed=3), "cross_entropy").result()
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def kept_bytes(model: LoadedModel, settings: EngineSettings) -> int:
    """Bytes that a forward keeps for its backward."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), layers_as_set(model, settings):
        hidden = hidden_states(model, [range(50), range(60)], "packed")
    hidden.sum().backward()
    return sum(kept.values())


def test_checkpointed_layers_keep_less_for_the_backward() -> None:
    model = load_model("tiny", device="cpu").train_all_weights()
    assert supports_packing(model)
    weights = sum(p.nbytes for p in model.module.parameters())
    plain, checkpointed = (kept_bytes(model, EngineSettings(checkpoint_layers=on)) for on in (False, True))
    assert checkpointed < weights + (plain - weights) / 3


def test_what_a_forward_holds_is_what_autograd_saves_without_the_weights() -> None:
    model = load_model("tiny", device="cpu").train_all_weights()
    weights = {p.data_ptr() for p in model.module.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    held = {}
    for on in (False, True):
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with held_bytes(model.device) as kept, hooks, layers_as_set(model, EngineSettings(checkpoint_layers=on)):
            hidden = hidden_states(model, [range(50), range(60)], "packed")
        held[on] = kept()
        if not on:
            assert sum(saved.values()) <= held[False] <= 1.1 * sum(saved.values())
        del hidden
    inputs = 4 * 110 * model.config.hidden_size * model.config.num_hidden_layers
    assert inputs <= held[True] < held[False] / 3  # checkpoints save nothing, but hold the layers' inputs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", ["checkpoint_layers", "compile_layers"])
def test_the_layers_are_plain_again_after_a_forward_and_after_one_that_fails(option: str) -> None:
    model = load_model("tiny", device="cpu").train_all_weights()

    def fail() -> None:
        with layers_as_set(model, EngineSettings(**{option: True})):
            assert all("forward" in layer.__dict__ for layer in repeated_layers(model))
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        fail()
    assert not any("forward" in layer.__dict__ for layer in repeated_layers(model))


def test_a_model_without_repeated_layers_says_what_to_leave_out() -> None:
    model = load_model("tiny", device="cpu")
    model.module.base_model.layers = nn.ModuleList()  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"tiny .* has no layers .* Leave checkpoint_layers and compile_layers out"):
        repeated_layers(model)


@pytest.fixture
def strategies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The strategy that the head takes in each micro-batch from now on."""
    taken: list[str] = []
    real = forward.linear_logprobs

    def noting(*given: Any, **options: Any) -> HeadOutputs:
        outputs = real(*given, **options)
        taken.append(outputs.strategy)
        return outputs

    monkeypatch.setattr(forward, "linear_logprobs", noting)
    return taken


def test_micro_batches_whose_graphs_are_held_together_share_the_heads_budget(
    strategies: list[str], make_datums: MakeDatums
) -> None:
    datums = [lb.Datum(d.model_input, {**d.loss_fn_inputs, "label": float(i % 2)}) for i, d in enumerate(make_datums())]
    positions = sum(datum.model_input.length for datum in datums)
    budget = 4 * VOCABULARY * positions * 3 // 4  # of three quarters of all logits
    together = client(tokens_per_micro_batch=20, head_memory=budget)
    assert together.forward_backward(datums, "kto").result().metrics["micro_batches"] > 1
    assert "recompute" in strategies
    strategies.clear()
    together.forward_backward(datums, "grpo").result()
    assert set(strategies) == {"keep"}, "each is let go before the next"


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        pytest.param("cross_entropy", {}, "known-gradient", id="linear in logprobs"),
        pytest.param("grpo", {}, "keep", id="fits the budget"),
        pytest.param("grpo", {"head_memory": 0}, "recompute", id="no budget"),
        pytest.param("cross_entropy", {"head_strategy": "recompute"}, "recompute", id="asked for"),
    ],
)
def test_the_head_takes_the_strategy_that_loss_and_memory_allow(
    loss: str,
    options: dict[str, Any],
    expected: str,
    strategies: list[str],
    make_datums: MakeDatums,
    gradients_of: GradientsOf,
) -> None:
    training = client(tokens_per_micro_batch=20, **options)
    training.forward_backward(make_datums(), loss).result()
    assert len(strategies) > 1
    assert set(strategies) == {expected}
    assert training.get_info().head == f"{expected}, chunked"
    assert_same(options, loss, make_datums, gradients_of)


@pytest.mark.parametrize("reduction", ["sum", "token-mean", "seq-mean-token-mean"])
def test_the_backward_of_a_linear_loss_computes_no_logits(
    reduction: str, make_datums: MakeDatums, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*given: Any) -> None:
        raise AssertionError("the gradient differs in some bit from the known one, so it was computed again")

    monkeypatch.setattr(autograd, "recomputed_blocks", computed)
    training = client(tokens_per_micro_batch=20)
    training.forward_backward(make_datums(), "cross_entropy", {"reduction": reduction}).result()
    training.forward_backward(make_datums(), "reinforce", {"reduction": reduction}).result()


@pytest.mark.parametrize("reduction", ["sum", "token-mean", "seq-mean-token-mean"])
def test_a_gradient_known_before_the_forward_is_the_one_computed_after_it(
    reduction: str, make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    assert_same({"head_strategy": "recompute"}, "cross_entropy", make_datums, gradients_of, reduction=reduction)


def test_what_was_chosen_can_be_seen(make_datums: MakeDatums) -> None:
    training = client(head_backend="chunked")
    assert (training.get_info().batching, training.get_info().head) == ("packed", None)
    training.forward(make_datums(), "cross_entropy").result()
    assert training.get_info().head == "forward-only, chunked"


def test_liger_serves_a_loss_of_logprobs_and_entropy(make_datums: MakeDatums, gradients_of: GradientsOf) -> None:
    pytest.importorskip("liger_kernel")
    training, expected = client(head_backend="liger"), client()
    for each in (training, expected):
        each.forward_backward(make_datums(), "entropy_bonus").result()
    assert training.get_info().head == "recompute, liger"
    ours = gradients_of(training)
    for name, gradient in gradients_of(expected).items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_a_backend_that_cannot_serve_the_loss_is_an_error(make_datums: MakeDatums) -> None:
    failing = client(head_backend="cut-cross-entropy").forward_backward(make_datums(), "entropy_bonus")
    with pytest.raises(ModelError, match="has no entropy"):
        failing.result()


def test_a_forward_alone_holds_nothing_for_a_backward(strategies: list[str], make_datums: MakeDatums) -> None:
    client().forward(make_datums(), "cross_entropy").result()
    assert set(strategies) == {"forward-only"}


def test_in_bfloat16_weights_gradients_and_logprobs_are_float32_and_products_are_not(make_datums: MakeDatums) -> None:
    datums = make_datums()
    low, full = client(dtype=torch.bfloat16), client()
    products: list[torch.dtype] = []
    layer: nn.Module = low.local.model.module.base_model.layers[0].mlp.up_proj  # type: ignore[union-attr]
    layer.register_forward_hook(lambda module, given, result: products.append(result.dtype))
    output, expected = (each.forward_backward(datums, "cross_entropy").result() for each in (low, full))
    assert set(products) == {torch.bfloat16}
    assert {p.dtype for p in low.local.model.trainable().values()} == {torch.float32}
    assert {p.grad.dtype for p in low.local.model.trainable().values() if p.grad is not None} == {torch.float32}
    assert output.loss_fn_outputs[0]["logprobs"].to_torch().dtype == torch.float32
    assert output.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=0.02)
    assert output.metrics["loss:sum"] != expected.metrics["loss:sum"]
