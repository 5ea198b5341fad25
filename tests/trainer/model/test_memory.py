"""A model that needs more memory than there is, is refused before any is taken, also where it has no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lossbook.datums.errors import ModelError
from lossbook.trainer.model import headers
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.tiny import build_tiny_model, build_tiny_tokenizer


def described(folder: Path, model_type: str, architecture: str, **sizes: Any) -> str:
    (folder / "config.json").write_text(
        json.dumps({"model_type": model_type, "architectures": [architecture], **sizes})
    )
    return str(folder)


LLAMA = ("llama", "LlamaForCausalLM")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (LLAMA, "hidden_size", 10**7),
        (LLAMA, "vocab_size", 10**9),
        (LLAMA, "intermediate_size", 10**9),
        (LLAMA, "hidden_size", 10**11),  # more bytes than 64 bits count
        (LLAMA, "num_hidden_layers", 10**9),
        (("qwen2", "Qwen2ForCausalLM"), "num_hidden_layers", 10**9),  # its configuration makes a list of the layers
        (("bert", "BertForMaskedLM"), "max_position_embeddings", 10**9),
        (("opt", "OPTForCausalLM"), "max_position_embeddings", 10**9),  # has two more positions
        (("gptj", "GPTJForCausalLM"), "n_positions", 10**9),  # in a buffer alone
        (("gpt_neo", "GPTNeoForCausalLM"), "max_position_embeddings", 10**6),  # in a buffer, squared
        (("mixtral", "MixtralForCausalLM"), "num_local_experts", 10**6),
    ],
)
def test_an_absurd_size_in_config_json_is_refused_in_one_line_that_names_it(
    kind: tuple[str, str], key: str, value: int, tmp_path: Path
):
    with pytest.raises(ModelError, match=rf"{key} {value}\b") as error:
        load_model(described(tmp_path, *kind, **{key: value}), device="cpu")
    assert "\n" not in str(error.value)


def test_many_layers_are_named_where_they_are_what_takes_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lossbook.trainer.model.load.total_memory", lambda device: 10**6)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
    with pytest.raises(ModelError, match=r"and there are 0\.0 GB .* by num_hidden_layers 100 in config\.json"):
        load_model(described(tmp_path, *LLAMA, num_hidden_layers=100, **sizes), device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_is_refused_exactly_where_its_parameters_and_buffers_are_more_than_the_memory(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module: Any = build_tiny_model()
    module.save_pretrained(tmp_path)
    build_tiny_tokenizer().save_pretrained(tmp_path)
    needed = sum(parameter.numel() * dtype.itemsize for parameter in module.parameters())
    needed += sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    monkeypatch.setattr("lossbook.trainer.model.load.total_memory", lambda device: needed)
    load_model(str(tmp_path), device="cpu", dtype=dtype)
    monkeypatch.setattr("lossbook.trainer.model.load.total_memory", lambda device: needed - 1)
    with pytest.raises(ModelError, match=f"needs .* GB in {str(dtype).removeprefix('torch.')}, and there are"):
        load_model(str(tmp_path), device="cpu", dtype=dtype)
    monkeypatch.setattr("lossbook.trainer.model.load.total_memory", lambda device: None)  # not known
    load_model(str(tmp_path), device="cpu", dtype=dtype)


def test_a_containers_limit_counts_and_no_limit_is_the_machines(tmp_path: Path):
    place = torch.device("cpu")
    machine = headers.total_memory(place, tmp_path)
    assert machine is not None
    assert machine > 10**8
    (tmp_path / "memory.max").write_text("max\n")
    assert headers.total_memory(place, tmp_path) == machine
    (tmp_path / "memory.max").write_text("50000000\n")
    limited = headers.total_memory(place, tmp_path)
    assert limited is not None
    assert limited < machine
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("50000000\n")
    assert headers.total_memory(place, tmp_path) == limited
