"""What some types of model need beside the common small sizes."""

from __future__ import annotations

from typing import Any

#: RoBERTa and its kin number positions from the padding token's id on.
POSITIONS_AFTER_PADDING: dict[str, Any] = {"pad_token_id": 1}
#: Heads times their width must be `expand` (2) times the model's width.
EIGHT_MAMBA_HEADS: dict[str, Any] = {"mamba_n_heads": 8}
#: No layer borrows the keys and values of an earlier one: in so few layers there would be none to lend them.
OWN_KEYS: dict[str, Any] = {"num_kv_shared_layers": 0}
ROTATIONS: dict[str, Any] = {
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
    }
}
#: A drafting model that reads the keys and values of another model.
ASSISTANT: dict[str, Any] = {
    "text_config": {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8},
    "camembert": POSITIONS_AFTER_PADDING,
    "data2vec-text": POSITIONS_AFTER_PADDING,
    "roberta": POSITIONS_AFTER_PADDING,
    "roberta-prelayernorm": POSITIONS_AFTER_PADDING,
    "xlm-roberta": POSITIONS_AFTER_PADDING,
    "xlm-roberta-xl": POSITIONS_AFTER_PADDING,
    "prophetnet": POSITIONS_AFTER_PADDING,
    "gemma3n_text": OWN_KEYS,
    "gemma4_text": OWN_KEYS,
    "gemma4_unified_text": OWN_KEYS,
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 16, "per_layer_config": {}},
    "cohere_compass_text": {"layer_types": ["full_attention", "sliding_attention"]} | ROTATIONS,
    "gemma4_assistant": ASSISTANT,
    "gemma4_unified_assistant": ASSISTANT,
    "inkling_text": {"vocab_size": 264},
    "inkling2_text": {"vocab_size": 264},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": EIGHT_MAMBA_HEADS | {"attn_layer_indices": [1]},
    "granitemoehybrid": EIGHT_MAMBA_HEADS | {"layer_types": ["mamba", "attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
    | {"indexer_compress_ratio": 2, "hc_lowrank": 8},
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [8, 24], "attn_layers": ["local", "lsh"]}
    | {"lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8, "hash_seed": 0},
    "xglm": {"pad_token_id": 1},
    "xmod": POSITIONS_AFTER_PADDING | {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"mamba_headdim": 8, "n_mamba_heads": 8, "attention_head_dim": 16, "attention_hidden_size": 64},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}
