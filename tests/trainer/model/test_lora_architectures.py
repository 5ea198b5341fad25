"""Over many architectures: adapters are on what was asked for, one step changes only them, and exports give the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.clients.training import TrainingClient

from .architectures import ARCHITECTURES, names

TOKENS = list(b"The sky is blue, and a stone sinks.")
DATUM = lb.datum_from_tokens_weights(TOKENS, [1.0] * len(TOKENS))
#: Dense, fused experts, experts with biases, a state along the row, transposed weights; the others run in `make test-slow`.
FAST = ("Llama", "Mixtral", "gpt-oss", "Qwen3-Next", "GPT-2")
EACH = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
MIXTURES = [
    name for name in ARCHITECTURES if any("experts.down_proj" in leaves for leaves in ARCHITECTURES[name].mlp.values())
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's own question
    pytest.mark.filterwarnings(
        "ignore:fan_in_fan_out is set to"
    ),  # GPT-2's head is a plain linear layer, its blocks are not
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),  # the head's adapter is the head's alone
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    """saved(name): a folder with a small random model, written once."""
    folders: dict[str, str] = {}

    def save(name: str) -> str:
        if name not in folders:
            folders[name] = ARCHITECTURES[name].save(tmp_path_factory.mktemp("model"))
        return folders[name]

    return save


def adapted(client: TrainingClient) -> set[str]:
    """The weights with an adapter, by the names of their modules or parameters."""
    wrapped = {
        (path, getattr(layer, "parameter_name", "weight"))
        for path, layer in client.local.model.module.named_modules()
        if hasattr(layer, "lora_A")
    }
    return {f"{path.replace('.base_layer', '')}.{leaf}".removesuffix(".weight") for path, leaf in wrapped}


def client_of(folder: str, tmp_path: Path, **how) -> TrainingClient:
    service = lb.ServiceClient(device="cpu", checkpoint_dir=tmp_path / "checkpoints", batching="padded")
    return service.create_lora_training_client(folder, rank=2, seed=0, **how)


def step(client: TrainingClient) -> None:
    for _ in range(2):
        client.forward_backward([DATUM], "cross_entropy").result()
        client.optim_step(lb.AdamParams(learning_rate=0.05)).result()


def logprobs(client: TrainingClient) -> Tensor:
    return client.forward([DATUM], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_torch().float()


@torch.no_grad()
def own_logprobs(module: nn.Module) -> Tensor:
    values = module.eval()(torch.tensor([TOKENS[:-1]])).logits[0].float().log_softmax(-1)
    return values.gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0]


@EACH
def test_adapters_are_on_what_was_asked_for_and_the_rest_is_named(name: str, saved, tmp_path: Path):
    expected = ARCHITECTURES[name]
    client = client_of(saved(name), tmp_path)
    assert adapted(client) == names(expected.attention) | names(expected.mlp)
    left_out = client.get_info().lora_left_out
    for part in expected.left_out:
        assert any(key.endswith(part) or f"{part}." in key for key in left_out), (part, left_out)
    if expected.mlp:
        without = client_of(saved(name), tmp_path, train_mlp=False)
        assert adapted(without) == names(expected.attention)


@EACH
def test_a_step_changes_every_adapter_and_nothing_else(name: str, saved, tmp_path: Path):
    client = client_of(saved(name), tmp_path)
    before = {key: value.detach().clone() for key, value in client.local.model.module.state_dict().items()}
    step(client)
    after = client.local.model.module.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if ".lora_A." in key or ".lora_B." in key}


@EACH
@pytest.mark.parametrize("head", [False, True], ids=["", "with its head"])
def test_both_exports_reload_with_the_same_logprobs(name: str, head: bool, saved, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    client = client_of(saved(name), tmp_path, train_unembed=head)
    base = logprobs(client)
    step(client)
    expected = logprobs(client)
    assert (expected - base).abs().max() > 0.05
    client.export_adapter(tmp_path / "adapter").result()
    client.export_model(tmp_path / "merged").result()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(own_logprobs(merged), expected, rtol=0, atol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(saved(name))
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    torch.testing.assert_close(own_logprobs(loaded), expected, rtol=0, atol=1e-4)


@EACH
def test_a_checkpoint_brings_back_the_same_adapters(name: str, saved, tmp_path: Path):
    client = client_of(saved(name), tmp_path)
    step(client)
    path = client.save_state("one").result().path
    service = lb.ServiceClient(device="cpu", batching="padded")
    again = service.create_training_client_from_state(path)
    assert torch.equal(logprobs(again), logprobs(client))
    assert adapted(again) == adapted(client)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_router_is_adapted_only_where_it_is_named(name: str, saved, tmp_path: Path):
    router = ARCHITECTURES[name].left_out[0]
    client = client_of(saved(name), tmp_path, lora_targets=[router.rsplit(".", 1)[-1]])
    assert adapted(client)
    assert all(key.endswith(router) for key in adapted(client))
    step(client)
    expected = logprobs(client)
    client.export_model(tmp_path / "merged").result()
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(own_logprobs(merged), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MIXTURES)
def test_dropout_on_fused_experts_is_refused_with_the_flags_that_mend_it(name: str, saved, tmp_path: Path):
    with pytest.raises(ModelError, match="--lora-dropout at 0, or leave these out with --no-train-mlp"):
        client_of(saved(name), tmp_path, lora_dropout=0.1)
    client_of(saved(name), tmp_path, lora_dropout=0.1, train_mlp=False)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("q_proj", {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}),
        ("model.layers.1.mlp.up_proj", {"model.layers.1.mlp.up_proj"}),
        ("layers.1.self_attn", {f"model.layers.1.self_attn.{leaf}_proj" for leaf in "qkvo"}),
        ("*.0.mlp.*_proj", {f"model.layers.0.mlp.{leaf}_proj" for leaf in ("gate", "up", "down")}),
        ("lm_head", {"lm_head"}),
    ],
)
def test_targets_are_names_or_parts_of_them_or_patterns(pattern: str, expected: set[str], saved, tmp_path: Path):
    assert adapted(client_of(saved("Llama"), tmp_path, lora_targets=[pattern])) == expected


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"lora_targets": ["q_porj"]}, r"'q_porj' matches no layer of .*Did you mean 'q_proj'\? There are: "),
        ({"lora_targets": ["embed_tokens"]}, r"embed_tokens.weight of .* is not a weight that LoRA can adapt"),
        ({"lora_targets": []}, "names no layer"),
        ({"lora_targets": "q_proj"}, r"a list of names or patterns, not the text 'q_proj'"),
        ({"lora_targets": ["q_proj"], "train_mlp": False}, "not by both"),
        ({"lora_dropout": 1.0}, "at least 0 and below 1, not 1.0"),
        ({"lora_dropout": 0.1, "train_unembed": True}, "does not apply to the output head"),
        ({"lora_alpha": 2.0, "alpha": 2.0}, "give lora_alpha alone"),
    ],
)
def test_what_cannot_be_meant_is_refused(how: dict, message: str, saved, tmp_path: Path):
    with pytest.raises(ModelError, match=message):
        client_of(saved("Llama"), tmp_path, **how)


def test_a_layer_on_which_an_adapter_would_do_nothing_is_refused_when_named(saved, tmp_path: Path):
    with pytest.raises(ModelError, match=r"dt_proj of .* would do nothing: .*its weight is read without calling"):
        client_of(saved("Jamba"), tmp_path, lora_targets=["dt_proj"])


def test_dropout_of_adapters_is_on_in_forward_backward_alone(saved, tmp_path: Path):
    client = client_of(saved("Llama"), tmp_path, lora_dropout=0.5)
    step(client)
    losses = [client.forward_backward([DATUM], "cross_entropy").result().metrics["loss:sum"] for _ in range(2)]
    assert losses[0] != losses[1]
    assert torch.equal(logprobs(client), logprobs(client))
    client.export_model(tmp_path / "merged").result()
