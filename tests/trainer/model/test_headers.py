"""config.json against the headers of the weights: what does not fit is refused before any memory is taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lossbook.datums.errors import ModelError
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.tiny import build_tiny_encoder, build_tiny_model, build_tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


def qwen2() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2))


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4))


def deepseek() -> nn.Module:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    ranks = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8}
    experts = {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }
    config = DeepseekV3Config(**SIZES, num_key_value_heads=2, first_k_dense_replace=1, **ranks, **experts)
    return DeepseekV3ForCausalLM(config)


def masked_bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**SIZES, pad_token_id=0))


def headless_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(LlamaConfig(**SIZES, pad_token_id=0))


def save(folder: Path, module: nn.Module, **changes: Any) -> str:
    module.save_pretrained(folder)  # type: ignore[operator]
    build_tiny_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return str(folder)


BUILDERS: list[Callable[[], nn.Module]] = [build_tiny_model, build_tiny_encoder, gpt2, qwen2, mixtral, deepseek]
BUILDERS += [masked_bert, headless_llama]
#: Qwen 2's config.json also has a list with a word per layer, which transformers checks.
COUNTED = [build for build in BUILDERS if build is not qwen2]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_weights_that_fit_load_as_they_are(build: Callable[[], nn.Module], tmp_path: Path):
    module = build()
    model = load_model(save(tmp_path, module), device="cpu")
    prefix = f"{module.base_model_prefix}."
    saved = {key.removeprefix(prefix): value for key, value in module.state_dict().items()}
    for key, value in model.module.state_dict().items():
        if key.startswith("pooler."):  # not used, and not saved with a head
            continue
        assert torch.equal(value, saved[key.removeprefix(prefix)]), key


@pytest.mark.parametrize("build", COUNTED, ids=lambda build: build.__name__)
def test_fewer_layers_in_config_json_than_in_the_weights_are_refused(build: Callable[[], nn.Module], tmp_path: Path):
    layers = "n_layer" if build is gpt2 else "num_hidden_layers"
    with pytest.raises(ModelError, match=r"have \d+ parameters that its config\.json leaves out, .*\.1\.") as error:
        load_model(save(tmp_path, build(), **{layers: 1}), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("build", COUNTED, ids=lambda build: build.__name__)
@pytest.mark.parametrize("layers", [3, 10**7, 0, -1])
def test_more_layers_in_config_json_than_in_the_weights_or_none_are_refused(
    build: Callable[[], nn.Module], layers: int, tmp_path: Path
):
    name = "n_layer" if build is gpt2 else "num_hidden_layers"
    message = (
        r"lack \d+ parameters, which would stay random: .*\.2\."
        if layers == 3
        else f"{name} {layers}; no model has more than 2000 layers"
        if layers > 0
        else f"they have 2 layers, by config.json there are {layers}"
    )
    with pytest.raises(ModelError, match=message):
        load_model(save(tmp_path, build(), **{name: layers}), device="cpu")


@pytest.mark.parametrize(
    ("build", "change", "message"),
    [
        # 10^9 rows of 64 float32 would be 256 GB
        (build_tiny_model, {"vocab_size": 10**9}, r"has the shape \[1000000000, 64\] by config\.json, .* \[260, 64\]"),
        (
            build_tiny_model,
            {"vocab_size": 300},
            r"lm_head\.weight has the shape \[260, 64\], by config\.json it has \[300, 64\]",
        ),
        (build_tiny_model, {"intermediate_size": 10**9}, r"\[1000000000, 64\] by config\.json"),
        (
            build_tiny_model,
            {"num_key_value_heads": 1},
            r"k_proj\.weight has the shape \[32, 64\], .* it has \[16, 64\]",
        ),
        (
            build_tiny_model,
            {"head_dim": 8},
            r"k_proj\.weight has the shape \[32, 64\], by config\.json it has \[16, 64\]",
        ),
        (build_tiny_model, {"attention_bias": True}, r"lack 8 parameters, which would stay random: .*k_proj\.bias"),
        (
            build_tiny_encoder,
            {"max_position_embeddings": 10**9},
            r"position_embeddings\.weight has the shape \[1000000000",
        ),
        (gpt2, {"n_positions": 10**9}, r"wpe\.weight has the shape \[1000000000, 32\] by config\.json"),
        (mixtral, {"num_local_experts": 2}, r"experts\.down_proj has the shape \[4, 32, 32\], .* \[2, 32, 32\]"),
        (
            mixtral,
            {"num_local_experts": 10**6},
            r"has the shape \[1000000, .*\] by config\.json",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_a_size_that_the_weights_do_not_have_is_refused_with_both_shapes(
    build: Callable[[], nn.Module], change: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(ModelError, match=message) as error:
        load_model(save(tmp_path, build(), **change), device="cpu")
    assert "\n" not in str(error.value)


def test_a_bias_that_config_json_leaves_out_is_refused(tmp_path: Path):
    """A Qwen2 whose config.json says Llama: without the biases of queries, keys and values it is another model."""
    path = save(tmp_path, qwen2(), model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(
        ModelError, match=r"have 6 parameters that its config\.json leaves out.*layers\.0\.self_attn\.k_proj\.bias"
    ):
        load_model(path, device="cpu")


def test_parts_that_serve_another_task_are_left_out_without_an_error(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    path = Path(save(tmp_path, deepseek()))
    tensors = load_file(path / "model.safetensors")
    ahead = {
        name: tensors[f"model.layers.1.{name}"].clone()
        for name in ("input_layernorm.weight", "self_attn.o_proj.weight")
    }
    tensors |= {f"model.layers.2.{name}": value for name, value in ahead.items()}
    tensors |= {"model.layers.2.eh_proj.weight": torch.zeros(32, 64), "model.layers.2.enorm.weight": torch.ones(32)}
    tensors |= {"score.weight": torch.zeros(2, 32), "model.rotary_emb.inv_freq": torch.zeros(4)}
    tensors |= {"vision_tower.layers.0.weight": torch.zeros(4)}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(path), device="cpu").kind == "decoder"


def test_several_files_of_weights_are_read_as_one(tmp_path: Path):
    module: Any = build_tiny_model()
    save(tmp_path, module, vocab_size=261)
    (tmp_path / "model.safetensors").unlink()
    module.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    load_model(str(tmp_path), device="cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 261}))
    with pytest.raises(ModelError, match=r"has the shape \[260, 64\], by config\.json it has \[261, 64\]"):
        load_model(str(tmp_path), device="cpu")


def test_every_number_of_config_json_fits_or_is_refused_in_one_line(tmp_path: Path):
    path = Path(save(tmp_path, build_tiny_model()))
    shapes = {key: value.shape for key, value in build_tiny_model().state_dict().items()}
    config = json.loads((path / "config.json").read_text())
    numbers = [name for name, value in config.items() if type(value) is int]
    assert len(numbers) > 8
    for name in numbers:
        for value in (-1, 0, 1, config[name] + 1, 2 * config[name], 10**9):
            (path / "config.json").write_text(json.dumps({**config, name: value}))
            try:
                module = load_model(str(path), device="cpu").module
            except ModelError as error:
                refusal = str(error)
            else:
                refusal = ""
                assert {key: value.shape for key, value in module.state_dict().items()} == shapes, (name, value)
            assert "\n" not in refusal, (name, value)
