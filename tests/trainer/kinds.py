"""Small random models of every kind of position, state and mask, for properties that must hold for all of them."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SWITCH: dict[str, Any] = {
    "original_max_position_embeddings": 32,
    "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]},
}
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
LINEAR: dict[str, Any] = GROUPED | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
STATE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "state_size": 8,
    "num_hidden_layers": 2,
    "pad_token_id": None,
}
CHOOSING: dict[str, Any] = SIZES | {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    **{"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8},
    **{"moe_intermediate_size": 16, "index_topk": 24, "index_n_heads": 2, "index_head_dim": 16},
}
KINDS: dict[str, Any] = {
    "grouped queries": lambda: transformers.LlamaConfig(**GROUPED),
    "learned positions": lambda: transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=None, eos_token_id=None
    ),
    "no positions": lambda: transformers.SmolLM3Config(
        **SIZES | {"num_key_value_heads": 2}, no_rope_layers=[0, 0], use_sliding_window=False
    ),
    "biases by distance": lambda: transformers.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4),
    "a rotation that switches at 32 tokens": lambda: transformers.Phi3Config(**SIZES, **SWITCH),
    "a rotation that grows beyond the context": lambda: transformers.LlamaConfig(
        **GROUPED, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    ),
    "a window": lambda: transformers.MistralConfig(**SIZES, sliding_window=5),
    "a window longer than a probe": lambda: transformers.MistralConfig(**SIZES, sliding_window=40),
    "chunks longer than a probe": lambda: transformers.Llama4TextConfig(
        **GROUPED, intermediate_size_mlp=48, num_local_experts=2, num_experts_per_tok=1, attention_chunk_size=32
    ),
    "tokens chosen by score": lambda: transformers.GlmMoeDsaConfig(**CHOOSING),
    "soft-capped scores": lambda: transformers.Gemma2Config(**GROUPED),
    "attention sinks": lambda: transformers.GptOssConfig(**SIZES, head_dim=8, num_local_experts=4, sliding_window=5),
    "a state along the row": lambda: transformers.MambaConfig(**STATE),
    "a state in some layers": lambda: transformers.Qwen3NextConfig(**LINEAR, **EXPERTS),
}  # fmt: skip


def model_of(config: Any, seed: int = 0) -> LoadedModel:
    """A causal language model of random weights in float32, far from uniform, so that a mistake shows."""
    torch.manual_seed(seed)
    module = transformers.AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return LoadedModel(config.model_type, module, build_tiny_tokenizer(), "decoder", torch.device("cpu"))


def own_logprobs(model: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """[length, vocabulary] nats: of every next token, from the module's own logits."""
    return model.module(torch.tensor([tokens]), use_cache=False).logits[0].double().log_softmax(-1)
