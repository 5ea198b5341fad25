"""A small random model of any type that transformers knows, built from the sizes that its configuration names."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .overrides import OVERRIDES

#: Most layers of a small model: as many as show each kind of layer that the configuration's own pattern has.
MOST_LAYERS = 4
#: Small values by the names that configurations give to sizes. Names that a configuration lacks are left out.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input"), 260),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim_model", "emb_dim", "embedding_dim", "lru_width"), 32),
    **dict.fromkeys(("embedding_size", "input_embedding_size", "word_embed_proj_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("output_embedding_size", "mamba_d_ssm", "mamba_d_inner", "backbone_hidden_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "attention_heads", "linear_num_value_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("linear_num_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "kv_n_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("linear_num_key_heads", "num_global_key_value_heads", "num_query_groups", "n_mamba_heads"), 2),
    **dict.fromkeys(("head_dim", "d_head", "dim_head", "attention_head_size", "swa_head_dim", "mamba_head_dim"), 8),
    **dict.fromkeys(("global_head_dim", "kv_channels", "mamba_d_head", "mamba_headdim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "v_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "index_head_dim", "query_pre_attn_scalar", "swa_v_head_dim"), 8),
    "qk_head_dim": 16,
    "index_n_heads": 16,  # with few, many scores are exactly 0, and which of those are chosen depends on the machine
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff"), 48),
    **dict.fromkeys(("dff", "d_inner", "ffn_hidden_size", "feed_forward_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("dense_intermediate_size", "prefix_dense_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "moe_latent_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"), 2),
    **dict.fromkeys(("top_k_experts",), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "zero_expert_num", "first_k_dense_replace"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "laurel_rank", "router_hidden_size"), 16),
    **dict.fromkeys(("hidden_size_per_layer_input", "mamba_dt_rank", "time_step_rank", "rotary_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 128),
    **dict.fromkeys(("context_length", "model_max_length"), 128),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "local_attention", "attention_window_size"), 12),
    **dict.fromkeys(("window_size", "keep_window_size", "attention_chunk_size"), 12),
    **dict.fromkeys(("index_topk", "index_topk_blocks", "index_block_size"), 4),
    **dict.fromkeys(("o_groups",), 2),
    **dict.fromkeys(("prompt_length", "prompt_types", "segment_types"), 4),
    "pad_token_id": 257,
    "bos_token_id": 258,
    "eos_token_id": 256,
    "is_decoder": True,
    "initializer_range": 0.1,
    "init_std": 0.1,
}
#: Names for the number of layers.
LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers"),
)


def config_of(model_type: str, own: dict[str, Any] | None = None) -> Any:
    """A small configuration of this type. own: settings beside those that are common and the type's."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind: Any = CONFIG_MAPPING[model_type]
    return _small(kind, {**OVERRIDES.get(model_type, {}), **(own or {})})


def model_of(model_type: str) -> Any:
    """A small causal language model of this type, each of its parameters random."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(config_of(model_type), attn_implementation=None)
        stir(module)
    return module.eval()


@torch.no_grad()
def stir(module: nn.Module) -> None:
    """Move every parameter off 0 and 1, where many begin, so that a part that is left out is missed."""
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)


def _small(kind: Any, own: dict[str, Any]) -> Any:
    given = {key: value for key, value in own.items() if key not in kind.sub_configs}
    base = kind(**{key: value for key, value in given.items() if key.startswith("hidden_size_per")})
    default = base.to_dict()
    picked = _picked(default)
    settings: dict[str, Any] = {key: copy.deepcopy(value) for key, value in SIZES.items() if key in default}
    settings |= {key: len(picked) for key in LAYERS if key in default}
    depth = next((default[key] for key in LAYERS if key in default), None)
    for key, value in default.items():
        if isinstance(value, list) and len(value) == depth and depth > 1:
            settings[key] = [value[i] for i in picked]
    if "kv_lora_rank" in default:  # attention over a latent has a key and value per query head
        settings |= {key: 4 for key in ("num_key_value_heads",) if key in default}
    for name in kind.sub_configs:
        sub_kind: Any = type(getattr(base, name, None))
        if hasattr(sub_kind, "sub_configs"):
            settings[name] = _small(sub_kind, {**OVERRIDES.get(sub_kind.model_type, {}), **own.get(name, {})})
    return kind(**settings | given)


def _picked(default: dict[str, Any]) -> list[int]:
    """The numbers of layers that show each kind of layer, at least two."""
    depth = next((default[key] for key in LAYERS if key in default), 2)
    lists = [value for value in default.values() if isinstance(value, list) and len(value) == depth and depth > 1]
    kinds: dict[str, int] = {}
    for index in range(depth):
        kinds.setdefault(repr([value[index] for value in lists if isinstance(value[index], str)]), index)
    first = sorted(kinds.values())[:MOST_LAYERS]
    return first if len(first) > 1 else [first[0] if first else 0] * 2
