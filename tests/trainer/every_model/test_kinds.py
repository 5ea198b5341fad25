"""Kinds of layer and model that the sweep found, one small model each; the sweep holds all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.tiny import build_tiny_tokenizer

from .building import model_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def saved(model_type: str, folder: Path) -> str:
    model_of(model_type).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("model_type", "layer", "reason"),
    [
        ("deepseek_v4", "self_attn.o_a_proj", "gives something else than the product with it"),
        ("deepseek_v32", "self_attn.indexer.wk", "no gradient reaches it"),
        ("inkling2_text", "self_attn.k_sconv.weight_proj", "peft would not read its adapter back"),
        ("gemma4_text", "per_layer_projection", "by its name neither attention nor MLP"),
    ],
)
def test_a_layer_on_which_an_adapter_would_not_do_is_left_out_with_the_reason(
    model_type: str, layer: str, reason: str, tmp_path: Path
) -> None:
    client = lb.ServiceClient(device="cpu").create_lora_training_client(saved(model_type, tmp_path), rank=2)
    assert reason in client.get_info().lora_left_out[f"model.layers.*.{layer}"]


def test_an_adapter_is_written_under_the_names_that_peft_reads_back(tmp_path: Path) -> None:
    client = lb.ServiceClient(device="cpu").create_lora_training_client(saved("laguna", tmp_path / "base"), rank=2)
    client.export_adapter(tmp_path / "adapter").result()
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert any(".mlp.shared_expert.gate_proj." in name for name in names)
    assert not any(".mlp.shared_experts." in name for name in names)


def test_a_decoder_whose_tokens_see_those_behind_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"XLNetLMHeadModel.* cannot be trained on next tokens: its tokens change with those"
    ):
        lb.ServiceClient(device="cpu").create_training_client(saved("xlnet", tmp_path))


def test_rows_of_the_output_layer_that_pad_it_are_no_tokens(tmp_path: Path) -> None:
    model = load_model(saved("inkling_text", tmp_path), device="cpu")
    assert model.module.get_output_embeddings().weight.shape[0] == 264  # type: ignore[operator]
    assert model.vocab_size == len(model.head().weight) == 260
