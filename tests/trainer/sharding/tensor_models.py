"""Small models of the architectures that tensor parallelism is for, and engines over them, split or whole."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.model.value_head import add_value_head
from lossbook.trainer.ranks import Ranks
from lossbook.trainer.sharding.shard import shard_model
from lossbook.trainer.training.model_trainer import ModelTrainer

#: 4 heads of 10, 2 of keys and values; an MLP of whose halves none can be halved.
SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 36,
    "intermediate_size": 54,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
ARCHITECTURES: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama with biases": lambda: transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=5),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES | {"hidden_size": 40}),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES | {"tie_word_embeddings": True}),
    "gemma": lambda: transformers.GemmaConfig(**SIZES | {"tie_word_embeddings": True}),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES | {"tie_word_embeddings": True}, query_pre_attn_scalar=8),
    "smollm3": lambda: transformers.SmolLM3Config(**SIZES | {"hidden_size": 40}, use_sliding_window=False),
}


def model_of(architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> LoadedModel:
    """A model of random weights, biases too, of which all weights are trained, with a value head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
        for name, parameter in module.named_parameters():
            if name.endswith("bias") or "norm" in name:
                torch.nn.init.normal_(parameter, mean=float(not name.endswith("bias")), std=0.2)
        module.to(dtype).eval().requires_grad_(False)
        model = LoadedModel(architecture, module, build_tiny_tokenizer(), "decoder", torch.device("cpu"))
        head = add_value_head(model.train_all_weights()).value_head
        assert head is not None
        torch.nn.init.normal_(head.weight, std=0.3)
    return model


def trainer_of(
    ranks: Ranks,
    architecture: str,
    width: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **settings: Any,
) -> ModelTrainer:
    """A trainer on these ranks, of which `width` share each matrix; of a single process, whole."""
    model = model_of(architecture, dtype, seed)
    return ModelTrainer(shard_model(model, ranks, tensor_parallel=width), EngineSettings(**settings))
