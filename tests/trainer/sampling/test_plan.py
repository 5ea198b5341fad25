"""Samples of every kind of model are those of decoding without a cache: states, hybrids, sinks, and across a length switch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from lossbook.datums.types import SamplingParams
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.sampling.generate import generate_batch
from lossbook.trainer.sampling.plan import plan_of

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
LINEAR: dict[str, Any] = SIZES | {
    "num_key_value_heads": 2,
    "head_dim": 8,
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
MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
SWITCH: dict[str, Any] = {
    "original_max_position_embeddings": 32,
    "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]},
}
STATE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "state_size": 8,
    "num_hidden_layers": 2,
    "pad_token_id": None,
}
KINDS: dict[str, Any] = {
    "Qwen3.5": lambda: transformers.Qwen3_5TextConfig(**LINEAR),
    "Qwen3-Next": lambda: transformers.Qwen3NextConfig(**LINEAR, **EXPERTS),
    "Mamba": lambda: transformers.MambaConfig(**STATE),
    "Mamba-2": lambda: transformers.Mamba2Config(**STATE, num_heads=8, head_dim=8, n_groups=1),
    "Falcon-Mamba": lambda: transformers.FalconMambaConfig(**STATE),
    "Falcon-H1": lambda: transformers.FalconH1Config(**SIZES, **MAMBA2, mamba_d_ssm=64),
    "LFM2": lambda: transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    "Bamba": lambda: transformers.BambaConfig(**SIZES, **MAMBA2, attn_layer_indices=[1]),
    "Jamba": lambda: transformers.JambaConfig(
        **SIZES, attn_layer_offset=1, attn_layer_period=2, num_experts=2, mamba_d_state=8, mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "RWKV": lambda: transformers.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=128),
    "gpt-oss": lambda: transformers.GptOssConfig(**SIZES, head_dim=8, num_local_experts=4, sliding_window=5),
    "longrope": lambda: transformers.Phi3Config(**SIZES, **SWITCH),
}  # fmt: skip
PROMPTS = [[5, 9, 2, 40, 41, 7, 8, 3], [11, 12, 13], [1, 90, 30, 31, 32, 60, 61, 62]]


def model_of(kind: str) -> LoadedModel:
    """A causal language model of random weights in float32, far from uniform."""
    torch.manual_seed(1)
    module = transformers.AutoModelForCausalLM.from_config(KINDS[kind]()).float().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return LoadedModel(kind, module, build_tiny_tokenizer(), "decoder", torch.device("cpu"))


def own_logprobs(model: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """Of every next token, from the module's own logits over the whole of `tokens`."""
    return model.module(torch.tensor([tokens]), use_cache=False).logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_samples_of_a_batch_have_the_logprobs_of_a_forward_over_the_tokens_before_them(kind: str) -> None:
    model = model_of(kind)
    params = SamplingParams(max_tokens=30 if kind == "longrope" else 8, temperature=1.0, seed=3, stop=[])
    for samples in (1, 2):
        groups = generate_batch(model, PROMPTS, num_samples=samples, params=params)
        for prompt, group in zip(PROMPTS, groups, strict=True):
            assert len(group) == samples
            for sample in group:
                for i, (token, logprob) in enumerate(zip(sample.tokens, sample.logprobs, strict=True)):
                    own = own_logprobs(model, [*prompt, *sample.tokens[:i]])
                    assert logprob == pytest.approx(float(own[token]), abs=1e-4)


@torch.no_grad()
def test_greedy_tokens_across_a_length_switch_are_those_of_generate() -> None:
    model = model_of("longrope")
    prompt = [(i * 7) % 96 for i in range(24)]
    (sample,) = generate_batch(model, [prompt], params=SamplingParams(max_tokens=24, temperature=0.0, stop=[]))[0]
    theirs = model.module.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)  # type: ignore[operator]
    assert sample.tokens == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["Qwen3.5", "Qwen3-Next", "Mamba", "LFM2", "Bamba", "Falcon-H1", "Jamba", "longrope"])
def test_these_are_decoded_with_a_cache(kind: str) -> None:
    assert plan_of(model_of(kind)).cached
