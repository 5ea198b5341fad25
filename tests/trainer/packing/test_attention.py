"""Attention block by block: the hidden states and gradients of each sequence alone, on architectures of many kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

import lossbook as lb
from lossbook.trainer.engine.engine import Engine
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.packing import attention
from lossbook.trainer.packing.hidden import hidden_states, supports_packing
from lossbook.trainer.packing.micro_batches import lengths_read

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
PROMPT = [(7 * i) % 90 for i in range(20)]
SEQUENCES = [
    np.array(s) for s in ([*PROMPT, 1, 2, 3], [4, 5], [*PROMPT, 6], [*PROMPT, *range(9)], [8], list(range(30)))
]


def decoder(config: Any) -> LoadedModel:
    """A causal language model of random weights in float64."""
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    return LoadedModel("random", module, build_tiny_tokenizer(), "decoder", torch.device("cpu")).train_all_weights()


PACKED = {
    "grouped queries": transformers.LlamaConfig(**SIZES),
    "learned positions": transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "a window shorter than the sequences": transformers.MistralConfig(**SIZES, sliding_window=5),
    "windows in some layers": transformers.Gemma3TextConfig(
        **SIZES, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "normed queries and keys": transformers.Qwen3Config(**SIZES),
}
NOT_PACKED = {
    "soft-capped scores": transformers.Gemma2Config(**SIZES),
    "a state along the row": transformers.MambaConfig(
        vocab_size=96, hidden_size=32, state_size=8, num_hidden_layers=2, pad_token_id=None
    ),
    "attention sinks": transformers.GptOssConfig(**SIZES, num_local_experts=4),
}


def alone(model: LoadedModel) -> Tensor:
    return torch.cat([hidden_states(model, [sequence], "padded") for sequence in SEQUENCES])


def gradients(model: LoadedModel, hidden: Tensor) -> dict[str, Tensor]:
    """Of a sum in which each number has a factor of its own."""
    factors = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view(hidden.shape)
    names, parameters = zip(*model.backbone.named_parameters(), strict=True)
    computed = torch.autograd.grad((hidden * factors).sum(), parameters, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, computed, strict=True) if gradient is not None}


@pytest.mark.parametrize("config", PACKED.values(), ids=PACKED.keys())
def test_hidden_states_and_gradients_are_those_of_each_sequence_alone(config: Any) -> None:
    model = decoder(config)
    assert supports_packing(model)
    packed, expected = hidden_states(model, SEQUENCES, "packed"), alone(model)
    torch.testing.assert_close(packed, expected, rtol=1e-6, atol=1e-6)  # transformers' norms compute in float32
    ours, theirs = gradients(model, packed), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-9)


@pytest.mark.parametrize("config", NOT_PACKED.values(), ids=NOT_PACKED.keys())
def test_architectures_whose_attention_is_more_than_that_are_padded(config: Any) -> None:
    model = decoder(config)
    model.module.float()  # experts have no kernel in float64
    assert not supports_packing(model)
    assert Engine(model, EngineSettings()).settings.batching == "padded"


def test_a_window_that_is_not_passed_to_the_attention_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(PACKED["a window shorter than the sequences"])
    monkeypatch.setattr(
        attention,
        "packed_attention",
        lambda *given, sliding_window=None, _real=attention.packed_attention, **options: _real(*given, **options),
    )
    monkeypatch.setattr(attention, "NAME", "lossbook_packed_without_window")
    assert not supports_packing(model)


@pytest.mark.parametrize("rows", [[0], [22, 23, 24, 40], []])
def test_only_the_rows_asked_for_come_back(rows: list[int]) -> None:
    model = decoder(PACKED["grouped queries"])
    wanted = torch.tensor(rows, dtype=torch.int64)
    chosen = hidden_states(model, SEQUENCES, "packed", wanted)
    torch.testing.assert_close(chosen, hidden_states(model, SEQUENCES, "packed")[wanted])


def test_the_model_attends_as_before_after_a_packed_forward_and_after_one_that_fails() -> None:
    model = decoder(PACKED["grouped queries"])
    before = model.config._attn_implementation
    hidden_states(model, SEQUENCES, "packed")
    assert model.config._attn_implementation == before

    def failing(*given: Any, **options: Any) -> Any:
        raise RuntimeError("no attention today")

    model.module.base_model.layers[1].register_forward_pre_hook(failing)  # type: ignore[index, union-attr]
    with pytest.raises(RuntimeError, match="no attention today"):
        hidden_states(model, SEQUENCES, "packed")
    assert model.config._attn_implementation == before


def tokens_seen(model: LoadedModel) -> Callable[[], int]:
    """Counts the tokens that the embedding layer reads."""
    seen = [0]
    embedding: nn.Module = model.module.get_input_embeddings()  # type: ignore[operator]
    embedding.register_forward_pre_hook(lambda _, given: seen.__setitem__(0, seen[0] + given[0].numel()))
    return lambda: seen[0]


def group(answers: list[list[int]], **inputs: list[float]) -> list[lb.Datum]:
    """Datums of one prompt, which has weight 0."""
    datums = []
    for answer in answers:
        tokens = [*PROMPT, *answer]
        weights = [0.0] * len(PROMPT) + [1.0] * len(answer)
        datums.append(lb.datum_from_tokens_weights(tokens, weights))
    return datums


@pytest.mark.parametrize("loss", ["cross_entropy", "simpo"])
def test_a_prompt_that_datums_share_is_computed_once_and_changes_no_number(loss: str, gradients_of: Any) -> None:
    datums = group([[1, 2, 3], [4], [5, 6], [7, 8, 9, 1]])
    clients = {
        batching: lb.ServiceClient(device="cpu", dtype=torch.float64, batching=batching).create_training_client("tiny")
        for batching in ("padded", "packed")
    }
    assert supports_packing(clients["packed"].local.model)
    seen = tokens_seen(clients["packed"].local.model)
    outputs = {name: client.forward_backward(datums, loss).result() for name, client in clients.items()}
    shared = len(PROMPT) - 1  # each datum keeps a token of its own, and the shortest ends with the prompt
    assert seen() == shared + sum(datum.model_input.length - shared for datum in datums)
    for name, value in outputs["padded"].metrics.items():
        assert outputs["packed"].metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    ours = gradients_of(clients["packed"])
    for name, gradient in gradients_of(clients["padded"]).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-7)  # norms are in float32


def test_tokens_after_the_last_position_that_is_read_are_not_computed() -> None:
    client = lb.ServiceClient(device="cpu").create_training_client("tiny")
    seen = tokens_seen(client.local.model)
    datum = lb.datum_from_tokens_weights(list(range(40)), [1.0] * 10 + [0.0] * 30)
    client.forward_backward([datum], "cross_entropy").result()
    assert seen() == 9


def test_lengths_read_reach_to_the_last_active_position_and_are_at_least_one() -> None:
    active = np.array([0, 1, 0, 0, 0, 0, 1, 1], dtype=bool)
    assert lengths_read([3, 2, 3], active).tolist() == [2, 1, 3]


def test_no_prefix_is_shared_under_dropout(model_with_dropout: str) -> None:
    model = load_model(model_with_dropout, device="cpu")
    model.train_all_weights()
    seen = tokens_seen(model)
    model.module.train()
    hidden_states(model, SEQUENCES, "packed")
    model.module.eval()
    assert seen() >= sum(map(len, SEQUENCES))
