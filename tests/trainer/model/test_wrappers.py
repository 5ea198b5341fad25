"""Decoders inside of models that read images too: their text side works, or the model is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.tiny import build_tiny_tokenizer

from .architectures import SMALL

VISION = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 16, "patch_size": 8},
}
QWEN_VISION = {
    **{"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32, "patch_size": 8}
}
QWEN_TOKENS = {"image_token_id": 255, "video_token_id": 254, "vision_start_token_id": 253, "vision_end_token_id": 252}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
TOKENS = [list(b"The sky is blue."), list(b"A stone")]


def gemma3() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokens = {"image_token_index": 255, "boi_token_index": 253, "eoi_token_index": 254, "mm_tokens_per_image": 4}
    config = Gemma3Config(text_config={**SMALL, "head_dim": 8}, vision_config=VISION, **tokens)
    return Gemma3ForConditionalGeneration(config)


def llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(**VISION, projection_dim=16)
    config = LlavaConfig(text_config=LlamaConfig(**SMALL), vision_config=vision, image_token_index=255)
    return LlavaForConditionalGeneration(config)


def qwen_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {**SMALL, "rope_parameters": MROPE}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=QWEN_VISION, **QWEN_TOKENS)
    )


def mistral3() -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    text, vision = MistralConfig(**SMALL, head_dim=8), PixtralVisionConfig(**VISION)
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=255)
    )


def llama4() -> Any:
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    text = {**SMALL, "intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}
    vision = {**VISION, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision))


def clip() -> Any:
    from transformers import CLIPConfig, CLIPModel

    sizes = {key: value for key, value in VISION.items() if key not in ("image_size", "patch_size")}
    return CLIPModel(CLIPConfig(text_config={**sizes, "vocab_size": 260}, vision_config=VISION))


def vit() -> Any:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(**VISION))


def save(folder: Path, build: Callable[[], Any]) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build().save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def own_logprobs(module: Any, tokens: list[int]) -> torch.Tensor:
    values = module.eval()(torch.tensor([tokens[:-1]])).logits[0].float().log_softmax(-1)
    return values.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


SLOWER = [pytest.param(build, marks=pytest.mark.slow) for build in (qwen_vl, mistral3, llama4)]


@pytest.mark.parametrize("build", [gemma3, llava, *SLOWER])
def test_the_text_side_of_a_wrapper_is_trained_and_exported_whole(build: Callable[[], Any], tmp_path: Path):
    from transformers import AutoModelForImageTextToText

    folder = save(tmp_path / "base", build)
    service = lb.ServiceClient(device="cpu")
    client = service.create_lora_training_client(folder, rank=2, seed=0)
    data = [lb.datum_from_tokens_weights(tokens, [1.0] * len(tokens)) for tokens in TOKENS]
    base = AutoModelForImageTextToText.from_pretrained(folder)
    outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
    for tokens, output in zip(TOKENS, outputs, strict=True):
        torch.testing.assert_close(output["logprobs"].to_torch(), own_logprobs(base, tokens), rtol=0, atol=1e-5)
    info = client.get_info()
    assert info.kind == "decoder"
    assert not any("vision" in name or "visual" in name for name in info.lora_targets)
    assert any("vision" in name or "visual" in name for name in info.lora_left_out)  # said, rather than adapted in vain
    client.forward_backward(data, "cross_entropy").result()
    client.optim_step(lb.AdamParams(learning_rate=0.05)).result()
    trained = client.forward(data, "cross_entropy").result().loss_fn_outputs
    client.export_model(tmp_path / "merged").result()
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    for tokens, output in zip(TOKENS, trained, strict=True):
        torch.testing.assert_close(output["logprobs"].to_torch(), own_logprobs(merged, tokens), rtol=0, atol=1e-4)
    sampler = client.save_weights_and_get_sampling_client()
    [one] = sampler.sample(
        lb.ModelInput.from_ints(TOKENS[0]), num_samples=1, sampling_params=lb.SamplingParams(max_tokens=3)
    ).result().sequences  # fmt: skip
    assert len(one.tokens) >= 1


@pytest.mark.parametrize("build", [clip, vit])
def test_a_model_that_takes_no_text_alone_is_refused_by_name(build: Callable[[], Any], tmp_path: Path):
    folder = save(tmp_path, build)
    with pytest.raises(ModelError, match=r"\((CLIPModel|ViTModel)\) cannot be used for text alone: "):
        load_model(folder)
