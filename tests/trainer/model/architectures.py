"""Small random models of many architectures, with the weights that adapters belong on, written by hand from their code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lossbook.trainer.model.tiny import build_tiny_tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 257,
    "bos_token_id": None,
    "eos_token_id": 256,
    "initializer_range": 0.1,
}
EXPERTS: dict[str, Any] = {**SMALL, "head_dim": 8, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
MAMBA: dict[str, Any] = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
FUSED = ("experts.gate_up_proj", "experts.down_proj")


@dataclass(frozen=True)
class Architecture:
    """A model to build, and by layer number what has an adapter by default; what is left out is named as a part of its name.

    mlp   those of `adapted` that --no-train-mlp leaves out
    """

    config: str
    settings: dict[str, Any]
    attention: dict[str, tuple[str, ...]]
    mlp: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def save(self, folder: Path) -> str:
        import transformers

        config = getattr(transformers, self.config)(**self.settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = transformers.AutoModelForCausalLM.from_config(config)
        module.save_pretrained(folder)
        build_tiny_tokenizer().save_pretrained(folder)
        return str(folder)


def names(layers: dict[str, tuple[str, ...]]) -> set[str]:
    return {f"{path}.{leaf}" for path, leaves in layers.items() for leaf in leaves}


def _decoder(first: str, second: str = "", *, layers: str = "model.layers") -> dict[str, tuple[str, ...]]:
    return {f"{layers}.0.{first}": QKVO, f"{layers}.1.{second or first}": QKVO}


DEEPSEEK = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
ARCHITECTURES: dict[str, Architecture] = {
    "Llama": Architecture(
        "LlamaConfig", SMALL, _decoder("self_attn"), {f"model.layers.{i}.mlp": GATED for i in (0, 1)}
    ),
    "Qwen3-MoE, its first layer dense": Architecture(
        "Qwen3MoeConfig",
        {**EXPERTS, "num_experts": 4, "mlp_only_layers": [0]},
        _decoder("self_attn"),
        {"model.layers.0.mlp": GATED, "model.layers.1.mlp": FUSED},
        ("mlp.gate",),
    ),
    "Qwen2-MoE": Architecture(
        "Qwen2MoeConfig",
        {
            **{key: value for key, value in EXPERTS.items() if key != "head_dim"},
            **{"num_experts": 4, "shared_expert_intermediate_size": 40, "mlp_only_layers": [0]},
        },
        _decoder("self_attn"),
        {"model.layers.0.mlp": GATED, "model.layers.1.mlp": FUSED, "model.layers.1.mlp.shared_expert": GATED},
        ("mlp.gate", "shared_expert_gate"),
    ),
    "Mixtral": Architecture(
        "MixtralConfig",
        {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
        _decoder("self_attn"),
        {f"model.layers.{i}.mlp": FUSED for i in (0, 1)},
        ("mlp.gate",),
    ),
    "DeepSeek-V3, its first layer dense": Architecture(
        "DeepseekV3Config",
        {
            **{key: value for key, value in EXPERTS.items() if key != "head_dim"},
            **{
                "num_key_value_heads": 4,
                "n_routed_experts": 4,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
            },
            **{"n_shared_experts": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8},
            "qk_nope_head_dim": 8,
        },
        {f"model.layers.{i}.self_attn": DEEPSEEK for i in (0, 1)},
        {"model.layers.0.mlp": GATED, "model.layers.1.mlp": FUSED, "model.layers.1.mlp.shared_experts": GATED},
        ("mlp.gate",),
    ),
    "GLM-4-MoE, its first layer dense": Architecture(
        "Glm4MoeConfig",
        {
            **{**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
            **{"first_k_dense_replace": 1, "n_shared_experts": 1},
        },
        _decoder("self_attn"),
        {"model.layers.0.mlp": GATED, "model.layers.1.mlp": FUSED, "model.layers.1.mlp.shared_experts": GATED},
        ("mlp.gate",),
    ),
    "PhiMoE": Architecture(
        "PhimoeConfig",
        {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
        _decoder("self_attn"),
        {f"model.layers.{i}.mlp": FUSED for i in (0, 1)},
        ("mlp.router",),
    ),
    "gpt-oss": Architecture(
        "GptOssConfig",
        {
            **{**SMALL, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        _decoder("self_attn"),
        {f"model.layers.{i}.mlp": FUSED for i in (0, 1)},
        ("mlp.router",),
    ),
    "Qwen3-Next": Architecture(
        "Qwen3NextConfig",
        {
            **{**EXPERTS, "shared_expert_intermediate_size": 24, "num_experts": 4, "mlp_only_layers": [1]},
            **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8},
            **{"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
        },
        {
            "model.layers.0.linear_attn": ("in_proj_qkvz", "in_proj_ba", "out_proj"),
            "model.layers.1.self_attn": QKVO,
        },
        {"model.layers.0.mlp": FUSED, "model.layers.0.mlp.shared_expert": GATED, "model.layers.1.mlp": GATED},
        ("mlp.gate", "shared_expert_gate", "linear_attn.conv1d"),
    ),
    "Mamba": Architecture(
        "MambaConfig",
        {**MAMBA, "pad_token_id": 257, "eos_token_id": 256, "bos_token_id": None},
        {f"backbone.layers.{i}.mixer": ("in_proj", "x_proj") for i in (0, 1)},
        left_out=("mixer.conv1d", "mixer.A_log", "mixer.dt_proj", "mixer.out_proj"),
    ),
    "Jamba": Architecture(
        "JambaConfig",
        {
            **{**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
            **{"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
        },
        {"model.layers.0.mamba": ("in_proj", "x_proj", "out_proj"), "model.layers.1.self_attn": QKVO},
        {"model.layers.0.feed_forward": GATED, "model.layers.1.feed_forward": FUSED},
        ("feed_forward.router", "mamba.conv1d", "mamba.A_log", "mamba.dt_proj"),
    ),
    "Falcon-H1": Architecture(
        "FalconH1Config",
        {
            **{**SMALL, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
            **{"mamba_n_groups": 1, "mamba_chunk_size": 8},
        },
        {**_decoder("self_attn"), **{f"model.layers.{i}.mamba": ("in_proj",) for i in (0, 1)}},
        {f"model.layers.{i}.feed_forward": GATED for i in (0, 1)},
        ("mamba.conv1d", "mamba.out_proj"),
    ),
    "LFM2": Architecture(
        "Lfm2Config",
        {**SMALL, "layer_types": ["conv", "full_attention"]},
        {
            "model.layers.0.conv": ("in_proj", "out_proj"),
            "model.layers.1.self_attn": ("q_proj", "k_proj", "v_proj", "out_proj"),
        },
        {f"model.layers.{i}.feed_forward": ("w1", "w2", "w3") for i in (0, 1)},
        ("conv.conv",),
    ),
    "GPT-2": Architecture(
        "GPT2Config",
        {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "eos_token_id": 256},
        {f"transformer.h.{i}.attn": ("c_attn", "c_proj") for i in (0, 1)},
        {f"transformer.h.{i}.mlp": ("c_fc", "c_proj") for i in (0, 1)},
    ),
    "MPT": Architecture(
        "MptConfig",
        {"vocab_size": 260, "d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
        {f"transformer.blocks.{i}.attn": ("Wqkv", "out_proj") for i in (0, 1)},
        {f"transformer.blocks.{i}.ffn": ("up_proj", "down_proj") for i in (0, 1)},
    ),
    "Llama-4, text alone": Architecture(
        "Llama4TextConfig",
        {**SMALL, "intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        _decoder("self_attn"),
        {
            f"model.layers.{i}.feed_forward{part}": leaves
            for i in (0, 1)
            for part, leaves in (("", FUSED), (".shared_expert", GATED))
        },
        ("feed_forward.router",),
    ),
    "Nemotron-H": Architecture(
        "NemotronHConfig",
        {
            **{**SMALL, "hybrid_override_pattern": "M*-", "mamba_num_heads": 4, "mamba_head_dim": 8, "head_dim": 8},
            **{"ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
        },
        {"model.layers.0.mixer": ("in_proj",), "model.layers.1.mixer": QKVO},
        {"model.layers.2.mixer": ("up_proj", "down_proj")},
        ("mixer.conv1d", "mixer.out_proj"),
    ),
    "GraniteMoE": Architecture(
        "GraniteMoeConfig",
        {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
        _decoder("self_attn"),
        {f"model.layers.{i}.block_sparse_moe": FUSED for i in (0, 1)},
        ("block_sparse_moe.router",),
    ),
}
