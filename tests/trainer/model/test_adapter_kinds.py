"""Adapter folders of peft that are more than A and B: loaded so that the logprobs are peft's own, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossbook.datums.errors import CheckpointError
from lossbook.trainer.head.logprobs import linear_logprobs
from lossbook.trainer.model.export import export_model
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import add_lora, export_adapter, load_adapter_into
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_model

from .architectures import ARCHITECTURES

TOKENS = torch.tensor([[258, 117, 10, 104, 105, 259, 10]])
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's own question
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
    pytest.mark.filterwarnings("ignore:.*have invalid shape"),  # peft of its own lora_bias
    pytest.mark.filterwarnings("ignore:.*Setting `save_embedding_layers`"),
]


@torch.no_grad()
def own_logprobs(module: nn.Module) -> Tensor:
    return module.eval()(TOKENS).logits.log_softmax(-1)[0, :-1].gather(1, TOKENS[0, 1:, None])[:, 0]


@torch.no_grad()
def logprobs(model: LoadedModel) -> Tensor:
    hidden = model.backbone(TOKENS).last_hidden_state[0, :-1]
    return linear_logprobs(hidden, model.head(), TOKENS[0, 1:]).logprobs


def made_by_peft(folder: Path, module: nn.Module, **settings: Any) -> Tensor:
    """Write an adapter of random A and B with peft; returns the logprobs of peft's reload on fresh weights."""
    from peft import LoraConfig, get_peft_model

    defaults = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapter = get_peft_model(module, LoraConfig(**(defaults | settings)))  # type: ignore[arg-type]
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    adapter.save_pretrained(str(folder))
    return own_logprobs(adapter)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"init_lora_weights": "gaussian"}, id="gaussian"),
        pytest.param({"init_lora_weights": "orthogonal"}, id="orthogonal"),
        pytest.param({"use_rslora": True}, id="scaled by the root of the rank"),
        pytest.param({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}, id="ranks and scales by layer"),
        pytest.param({"layers_to_transform": [1]}, id="one layer"),
        pytest.param({"target_modules": r".*layers\.0\..*(q|up)_proj"}, id="a regular expression"),
        pytest.param({"target_modules": "all-linear"}, id="all linear layers"),
        pytest.param(
            {"target_modules": ["up_proj"], "target_parameters": ["self_attn.q_proj.weight"]}, id="a parameter"
        ),
        pytest.param({"target_modules": ["q_proj", "lm_head"]}, id="the head"),
        pytest.param({"lora_dropout": 0.1}, id="dropout"),
    ],
)
def test_an_adapter_of_a_and_b_loads_to_peft_s_logprobs_and_exports_to_them(settings: dict[str, Any], tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    expected = made_by_peft(tmp_path / "adapter", build_tiny_model(), **settings)
    model = load_adapter_into(load_model("tiny", device="cpu"), tmp_path / "adapter")
    torch.testing.assert_close(logprobs(model), expected, rtol=0, atol=1e-5)
    export_model(model, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(own_logprobs(merged), expected, rtol=0, atol=1e-5)
    export_adapter(model, tmp_path / "again")
    again = PeftModel.from_pretrained(build_tiny_model(), str(tmp_path / "again"))
    torch.testing.assert_close(own_logprobs(again), expected, rtol=0, atol=1e-5)
    assert model.lora is not None
    if not {"use_rslora", "rank_pattern"} & set(settings):  # which add_lora does not make
        twin = add_lora(load_model("tiny", device="cpu"), **{**model.lora.to_json(), "seed": 0})
        assert list(twin.trainable()) == list(model.trainable())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base weights too. Convert"),
        (
            {"init_lora_weights": "pissa_niter_2"},
            "init_lora_weights='pissa_niter_2', which changes the base weights too",
        ),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora', which changes the base weights too"),
        ({"lora_bias": True}, "it has lora_bias=True. Merge it"),
        ({"bias": "all"}, "it has bias='all'"),
        ({"use_dora": True}, "it has use_dora=True"),
        ({"trainable_token_indices": [1, 2]}, r"it has trainable_token_indices=\[1, 2\]"),
        ({"modules_to_save": ["lm_head"]}, r"it has modules_to_save=\['lm_head'\]"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "adapts model.embed_tokens.weight by a Embedding of peft"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_adapter_that_is_more_is_refused_by_name_and_the_model_is_as_before(
    settings: dict[str, Any], message: str, tmp_path: Path
):
    made_by_peft(tmp_path, build_tiny_model(), **settings)
    model = load_model("tiny", device="cpu")
    before, names = logprobs(model), list(model.module.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_adapter_into(model, tmp_path)
    assert torch.equal(logprobs(model), before)
    assert list(model.module.state_dict()) == names
    assert (model.lora, model.adapter) == (None, None)


def test_an_adapter_of_another_method_is_refused(tmp_path: Path):
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    get_peft_model(build_tiny_model(), config).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match="IA3"):
        load_adapter_into(load_model("tiny", device="cpu"), tmp_path)


@pytest.mark.parametrize("name", ["Qwen3-MoE, its first layer dense", "Mixtral", "gpt-oss", "PhiMoE"])
def test_an_adapter_on_experts_made_by_peft_loads_and_merges(name: str, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    base = ARCHITECTURES[name].save(tmp_path / "base")
    settings = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    expected = made_by_peft(tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(base), **settings)
    model = load_adapter_into(load_model(base, device="cpu"), tmp_path / "adapter")
    torch.testing.assert_close(logprobs(model), expected, rtol=0, atol=1e-4)
    export_model(model, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(own_logprobs(merged), expected, rtol=0, atol=1e-4)
