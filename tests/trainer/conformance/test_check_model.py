"""The conformance kit for models holds for models that run rightly, and names what a planted fault breaks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lossbook as lb
from lossbook.cookbook.cli import main
from lossbook.testing import check_model
from lossbook.trainer.conformance import CHECKS
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.model.verdict import Verdict


def folder_of(config: Any, folder: Path) -> str:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_every_check_holds_for_the_tiny_model_and_the_last_line_says_how_it_runs() -> None:
    report = check_model("tiny", device="cpu")
    assert report.ok, str(report)
    assert str(report).splitlines()[-1] == (
        "lossbook therefore packs; shares prefixes; cuts what is not read; samples with a cache that keeps each prompt once; "
        "LoRA reaches mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, "
        "self_attn.v_proj"
    )


@pytest.mark.slow
def test_a_model_with_a_state_holds_every_check_and_the_reason_for_padding_is_given(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=260, hidden_size=32, state_size=8, num_hidden_layers=2)
    report = check_model(folder_of(config, tmp_path), device="cpu")
    assert report.ok, str(report)
    assert "pads (packs: no, layer 0 (linear_attention) carries a state along the row)" in report.summary
    assert "LoRA reaches mixer.in_proj, mixer.x_proj; none on" in report.summary
    assert "mixer.out_proj (peft refuses it in mamba models)" in report.summary


def test_a_layout_that_mixes_sequences_fails_by_name() -> None:
    client = lb.ServiceClient(device="cpu").create_training_client("tiny")
    with torch.no_grad():
        for parameter in client.local.model.module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    for probe in ("sharing", "blocks"):
        client.local.model.verdicts[probe] = Verdict(False, "planted")
    rotation: Any = client.local.model.module.model.rotary_emb  # type: ignore[union-attr]
    rotation.register_forward_hook(
        lambda _module, given, output: tuple(x * (1 + 0.1 * given[0].shape[1]) for x in output)
    )
    report = check_model(client)
    failed = {check.name for check in report.checks if check.outcome == "fails"}
    assert "a datum's numbers do not depend on its company" in failed
    assert not report.ok


LORA, EXPORTS, RESUME = list(CHECKS)[-3:]


def failures_of(client: lb.TrainingClient) -> dict[str, str]:
    """What fails, by the name of the check."""
    return {check.name: check.detail for check in check_model(client).checks if check.outcome == "fails"}


@pytest.fixture
def lora_client() -> lb.TrainingClient:
    return lb.ServiceClient(device="cpu").create_lora_training_client("tiny", rank=2, seed=0)


def test_a_layer_without_an_adapter_that_nobody_named_fails(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=260, hidden_size=32, state_size=8, num_hidden_layers=1)
    client = lb.ServiceClient(device="cpu").create_lora_training_client(folder_of(config, tmp_path), rank=2, seed=0)
    assert LORA not in failures_of(client)
    client.local.model.lora = replace(client.local.model.lora, left_out={})  # type: ignore[type-var]
    assert "mixer.conv1d.weight (no adapter, and not named as left out)" in failures_of(client)[LORA]


def test_a_base_weight_that_a_step_changes_and_an_adapter_that_is_not_trained_fail(
    lora_client: lb.TrainingClient,
) -> None:
    layer: Any = lora_client.local.model.module.get_submodule("model.layers.0.mlp.up_proj")
    layer.base_layer.weight.requires_grad_(True)
    layer.lora_B["default"].weight.requires_grad_(False)
    text = failures_of(lora_client)[LORA]
    assert "model.layers.0.mlp.up_proj.lora_B.default.weight (is not trained)" in text
    assert "model.layers.0.mlp.up_proj.weight (changed by a step)" in text


def test_an_adapter_that_its_file_does_not_describe_fails_on_reloading(lora_client: lb.TrainingClient) -> None:
    layer: Any = lora_client.local.model.module.get_submodule("model.layers.1.self_attn.q_proj")
    layer.scaling["default"] *= 2
    assert set(failures_of(lora_client)) == {EXPORTS}


def test_state_that_a_checkpoint_does_not_hold_fails_on_resuming(lora_client: lb.TrainingClient) -> None:
    calls = itertools.count()
    lora_client.local.model.module.get_input_embeddings().register_forward_hook(  # type: ignore[operator]
        lambda _module, _given, output: output * (1 + 1e-6 * next(calls))
    )
    assert "logprobs of datum 0" in failures_of(lora_client)[RESUME]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_client_is_as_before_after_all_checks(rank: int, state_of: Any, make_datums: Any) -> None:
    client = lb.ServiceClient(device="cpu").create_training_client("tiny", lora_rank=rank)
    client.forward_backward(make_datums(), "cross_entropy").result()
    client.optim_step(lb.AdamParams(learning_rate=1e-3)).result()
    client.forward_backward(make_datums(), "cross_entropy").result()
    before = state_of(client)
    info = client.get_info()
    assert check_model(client).ok
    assert state_of(client) == before
    assert replace(client.get_info(), reasons=info.reasons, cache=None, head=info.head) == info


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_in_bfloat16_the_models_own_rounding_is_the_limit(rank: int) -> None:
    service = lb.ServiceClient(device="cpu", dtype=torch.bfloat16)
    client = service.create_training_client("tiny", lora_rank=rank)
    report = check_model(client)
    assert report.ok, str(report)
    limits = {
        c.name: float(c.detail.split("at most ")[1].split(";")[0]) for c in report.checks if "at most" in c.detail
    }
    assert 1e-3 < limits["sampled logprobs are those of a forward"] < 0.03
    assert limits[EXPORTS] == 1e-4  # compared in float32
    rotation: Any = client.local.model.backbone.rotary_emb
    rotation.register_forward_hook(
        lambda _module, _given, kwargs, output: tuple(x * (1 + kwargs["position_ids"][:, -1:, None]) for x in output),
        with_kwargs=True,
    )
    assert "so are those of several samples of several prompts" in failures_of(client)


def test_an_encoder_has_nothing_to_check() -> None:
    report = check_model("tiny-encoder", device="cpu")
    assert {check.outcome for check in report.checks} == {"does not apply"}


def test_the_command_prints_a_line_per_check_and_ends_with_how_the_model_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "model", "tiny", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith(("holds", "does not apply"))]) == len(CHECKS)
    assert lines[-1].startswith("lossbook therefore packs;")
