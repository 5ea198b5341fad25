"""Adapters on 4-bit base weights train on the quantized weights' own numbers, and nothing takes others for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import lossbook as lb
from lossbook.cookbook.cli import main
from lossbook.cookbook.export.export import export
from lossbook.cookbook.settings.base import RecipeConfig
from lossbook.datums.errors import CheckpointError, ConfigError, ModelError
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.model.export import export_model
from lossbook.trainer.model.fingerprint import weights_fingerprint
from lossbook.trainer.model.fused.kernels import standing_in
from lossbook.trainer.model.fused.reference import reference_kernels
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import load_adapter_into
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.model.weights import four_bit

from ..kinds import KINDS, SIZES, model_of

pytest.importorskip("bitsandbytes")

PARAMS = lb.AdamParams(learning_rate=1e-2)
DATUMS = [lb.datum_from_tokens_weights([i, 7, 3 * i, 11, 2 * i], [0.0, 1.0, 0.5, 1.0, 1.0]) for i in range(1, 7)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with `tiny`, whose layers' weights were quantized and dequantized by bitsandbytes' functions."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    model = load_model("tiny", device="cpu")
    with torch.no_grad():
        for name, layer in model.module.named_modules():
            if isinstance(layer, nn.Linear) and ".layers." in name:
                packed, state = quantize_4bit(layer.weight.data, quant_type="nf4", compress_statistics=True)
                layer.weight.copy_(dequantize_4bit(packed, state))
    folder = tmp_path_factory.mktemp("dense")
    export_model(model, folder)
    return str(folder)


def service_of(folder: Path | str = "checkpoints", **settings: Any) -> lb.ServiceClient:
    return lb.ServiceClient(device="cpu", checkpoint_dir=folder, **{"base_weights": "4bit", **settings})


def client_of(service: lb.ServiceClient, name: str = "tiny") -> TrainingClient:
    """A client whose adapters change something: their B is random."""
    client = service.create_lora_training_client(name, rank=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    for key, parameter in client.local.model.trainable().items():
        if ".lora_B." in key:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return client


def logprobs(client: Any) -> Tensor:
    outputs = client.forward(DATUMS, "cross_entropy").result().loss_fn_outputs
    return torch.cat([output["logprobs"].to_torch() for output in outputs])


def trained(client: TrainingClient, steps: int = 1) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(client.forward_backward(DATUMS, "cross_entropy").result().metrics["loss:sum"])
        client.optim_step(PARAMS).result()
    return losses


def test_logprobs_are_those_of_the_dequantized_weights(dense: str) -> None:
    client = client_of(service_of())
    expected = logprobs(client_of(service_of(base_weights="full"), dense))
    torch.testing.assert_close(logprobs(client), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logprobs(client), expected, rtol=0, atol=1e-4)  # nothing was repacked
    assert (expected - logprobs(client_of(service_of(base_weights="full")))).abs().max() > 1e-3  # quantizing shows


@pytest.mark.parametrize("settings", [{}, {"checkpoint_layers": True}, {"batching": "single"}], ids=str)
def test_gradients_are_autograds_through_the_dequantized_weights(
    dense: str, settings: dict[str, Any], gradients_of: Callable[[TrainingClient], dict[str, Tensor]]
) -> None:
    client = client_of(service_of(**settings))
    logprobs(client)  # a forward without gradients must not stand in the way of one with them
    client.forward_backward(DATUMS, "cross_entropy").result()
    reference = client_of(service_of(base_weights="full"), dense).local.model
    total = torch.zeros(())
    for datum in DATUMS:
        tokens = torch.tensor([datum.model_input.to_ints()])
        targets, weights = (datum.loss_fn_inputs[name].to_torch() for name in ("target_tokens", "weights"))
        own = reference.module(tokens).logits[0].log_softmax(-1)
        total = total - (weights * own.gather(1, targets[:, None])[:, 0]).sum()
    parameters = reference.trainable()
    expected = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
    gradients = gradients_of(client)
    assert gradients.keys() == expected.keys()
    assert all(".lora_" in name for name in gradients)  # adapters alone are trained
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(dtype: torch.dtype) -> None:
    client = service_of(dtype=dtype).create_lora_training_client("tiny", rank=4, seed=0)
    before = {name: p.clone() for name, p in client.local.model.module.named_parameters() if not p.requires_grad}
    losses = trained(client, 8)
    assert losses[-1] < 0.7 * losses[0]
    after = dict(client.local.model.module.named_parameters())
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    info = client.get_info()
    assert (info.base_weights, info.dtype, info.narrow_weights) == ("4bit", str(dtype).removeprefix("torch."), 0)
    assert "4-bit base weights (nf4)" in client.how_it_runs().result()
    assert "4-bit" not in service_of(base_weights="full").create_training_client("tiny").how_it_runs().result()


def test_greedy_samples_are_those_of_the_dequantized_weights(dense: str) -> None:
    tokens = []
    for client in (client_of(service_of()), client_of(service_of(base_weights="full"), dense)):
        params = lb.SamplingParams(max_tokens=8, temperature=0.0)
        sampler = client.save_weights_and_get_sampling_client()
        output = sampler.sample(lb.ModelInput.from_ints([1, 2, 3]), num_samples=1, sampling_params=params).result()
        tokens.append(output.sequences[0].tokens)
    assert tokens[0] == tokens[1]


def test_the_quantized_layers_take_about_a_quarter_of_their_bytes_and_nothing_else_changes(tmp_path: Path) -> None:
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    model_of(transformers.LlamaConfig(**sizes)).module.save_pretrained(tmp_path)
    build_tiny_tokenizer().save_pretrained(tmp_path)
    full, small = (
        load_model(str(tmp_path), device="cpu", dtype=torch.bfloat16, base_weights=kind) for kind in ("full", "4bit")
    )
    own, quantized = dict(full.module.named_parameters()), dict(small.module.named_parameters())
    assert own.keys() == quantized.keys()
    counts = [0, 0]
    for name, weight in own.items():
        if ".layers." in name and weight.ndim == 2:
            counts[0] += weight.nbytes
            counts[1] += quantized[name].nbytes + sum(t.nbytes for t in four_bit.scales(quantized[name]).values())
        else:
            assert torch.equal(weight, quantized[name])
    assert counts[1] < 0.28 * counts[0]


def test_a_run_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    client = client_of(service_of(tmp_path))
    trained(client, 2)
    path = client.save_state("state").result().path
    weights = client.save_weights_for_sampler("weights").result().path
    resumed = service_of(tmp_path).create_training_client_from_state(path, optimizer=True)
    assert torch.equal(logprobs(resumed), logprobs(client))
    assert torch.equal(logprobs(service_of().create_reference_client(model_path=weights)), logprobs(client))
    assert trained(resumed) == trained(client)
    assert torch.equal(logprobs(resumed), logprobs(client))


def test_an_exported_adapter_gives_the_trained_numbers_on_the_same_base(tmp_path: Path) -> None:
    client = client_of(service_of(tmp_path))
    trained(client)
    client.export_adapter(tmp_path / "adapter").result()
    again = load_adapter_into(load_model("tiny", device="cpu", base_weights="4bit"), tmp_path / "adapter")
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(again.module(tokens).logits, client.local.model.module(tokens).logits)
    assert again.lora is not None
    assert again.lora.targets is None  # whole parts were recognised
    checked = export(Path(client.save_state("state").result().path), tmp_path / "out")
    assert checked.largest < 1e-3
    assert "4-bit base weights (nf4)" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_checkpoint_is_not_loaded_onto_other_base_weights(tmp_path: Path) -> None:
    for kind, other in (("4bit", "full"), ("full", "4bit")):
        client = client_of(service_of(tmp_path, base_weights=kind))
        path = client.save_state(kind).result().path
        service, message = service_of(base_weights=other), rf"trained on {kind} base weights.*base_weights='{kind}'"
        for load in (
            service.create_training_client_from_state,
            lambda path, service=service: service.create_sampling_client(model_path=path),
            lambda path, service=service: client_of(service).load_state(path).result(),
        ):
            with pytest.raises(CheckpointError, match=message):
                load(path)


def test_all_weights_are_not_trained_and_adapters_not_merged(tmp_path: Path) -> None:
    service = service_of(tmp_path)
    with pytest.raises(ModelError, match="choose a LoRA rank"):
        service.create_training_client("tiny")
    client = client_of(service)
    with pytest.raises(ModelError, match="are not merged: export the adapter"):
        client.export_model(tmp_path / "model").result()
    assert not (tmp_path / "model").exists()
    path = Path(client.save_state("state").result().path)
    with pytest.raises(ConfigError, match="choose --format adapter"):
        export(path, tmp_path / "merged", format="merged")
    with pytest.raises(ValueError, match="all weights, and 4-bit ones cannot be"):
        RecipeConfig(all_weights=True, base_weights="4bit")


def test_what_cannot_be_quantized_is_refused_with_its_name(model_with_dropout: str) -> None:
    with pytest.raises(ModelError, match=r"c_attn\.weight of .* no plain linear layer's \(Conv1D\)"):
        load_model(model_with_dropout, device="cpu", base_weights="4bit")
    with pytest.raises(ModelError, match="is an encoder"):
        load_model("tiny-encoder", device="cpu", base_weights="4bit")
    with pytest.raises(ModelError, match="float64, which has no 4-bit product"):
        load_model("tiny", device="cpu", dtype=torch.float64, base_weights="4bit")
    with pytest.raises(ModelError, match=r"'full', '4bit', not '4-bit'. Did you mean"):
        service_of(base_weights="4-bit")
    with pytest.raises(ModelError, match=r"router.weight of gpt_oss cannot be quantized"):
        four_bit.quantize_base(model_of(KINDS["attention sinks"]()))


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'lossbook\[cuda\]'"):
        service_of()


def test_layers_with_4_bit_weights_are_not_fused() -> None:
    with standing_in(reference_kernels()):
        assert client_of(service_of()).get_info().fused == {}
        with pytest.raises(ModelError, match="its base weights are 4-bit"):
            client_of(service_of(fused_layers="liger"))


def test_the_fingerprint_is_that_of_the_quantized_weights() -> None:
    full, one, other = (load_model("tiny", device="cpu", base_weights=kind) for kind in ("full", "4bit", "4bit"))
    assert weights_fingerprint(full) != weights_fingerprint(one) == weights_fingerprint(other)
    four_bit_layer: Any = next(layer for layer in other.module.modules() if hasattr(layer, "quant_state"))
    four_bit_layer.weight.quant_state.offset += 1.0
    assert weights_fingerprint(one) != weights_fingerprint(other)


@pytest.mark.slow
def test_a_recipe_trains_on_4_bit_base_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ("--task", "letter_counting", "--task-size", "8", "--held-out", "2")
    flags = ("--steps", "1", "--device", "cpu", "--base-weights", "4bit")
    assert main(["train", "sft", *task, *flags, "--out", str(tmp_path / "run")]) == 0
    assert "4-bit base weights (nf4)" in capsys.readouterr().out
