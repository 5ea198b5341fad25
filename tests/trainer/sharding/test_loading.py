"""Only the first rank reads weights; the others get their shards of them, and everything that lies in no file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from lossbook.datums.errors import ModelError
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import add_lora
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.sharding.shard import shard_model
from lossbook.trainer.shards import whole
from lossbook.trainer.training.local_models import LocalModels

from ..ranks.processes import RankProcesses
from .models import built, off


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model on disk whose rotation depends on buffers that are in no file, with generation settings of its own."""
    path = tmp_path_factory.mktemp("model")
    module: Any = built("tied").module
    module.generation_config = transformers.GenerationConfig(eos_token_id=[256, 259])
    module.save_pretrained(path)
    build_tiny_tokenizer().save_pretrained(path)
    return str(path)


def logprobs(ranks: Ranks, folder: str, is_lora: bool) -> tuple[bool, Tensor, dict[str, Tensor], Any]:
    """Whether a rank began without weights, what the model gives, its parameters whole, and where generation stops."""
    model = load_model(folder, device="cpu", ranks=ranks)
    began_without = any(p.is_meta for p in model.module.parameters())
    model = add_lora(model, rank=2, seed=3) if is_lora else model.train_all_weights()
    shard_model(model, ranks)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        hidden = model.inside(lambda: model.backbone(tokens, use_cache=False).last_hidden_state)
    weights = {name: whole(weight).clone() for name, weight in model.module.named_parameters()}
    return began_without, hidden, weights, model.module.generation_config.eos_token_id  # type: ignore[union-attr]


@pytest.mark.parametrize("is_lora", [False, True], ids=["all weights", "lora"])
def test_ranks_without_weights_get_the_first_ones(ranks: RankProcesses, folder: str, is_lora: bool) -> None:
    _, expected, weights, stops = logprobs(ALONE, folder, is_lora)
    for rank, (began_without, hidden, theirs, stop) in enumerate(ranks.run(logprobs, folder, is_lora)):
        assert began_without == (rank > 0)
        assert off(theirs, weights) == 0.0
        torch.testing.assert_close(
            hidden, expected, rtol=0, atol=1e-6
        )  # off by 1e-3 and more with other rotary frequencies
        assert stop == stops == [256, 259]


def without_buffers(ranks: Ranks, folder: str) -> float:
    """How far hidden states are off where parameters are sent and buffers are only given memory."""
    model = load_model(folder, device="cpu")
    tokens = torch.arange(20)[None]
    before = model.backbone(tokens, use_cache=False).last_hidden_state
    for name, buffer in list(model.module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        setattr(model.module.get_submodule(owner), leaf, torch.zeros_like(buffer))
    return float((model.backbone(tokens, use_cache=False).last_hidden_state - before).abs().max())


@torch.no_grad()
def test_buffers_that_are_not_sent_would_show(folder: str) -> None:
    assert without_buffers(ALONE, folder) > 1e-3


def fails_to_load(ranks: Ranks, name: str) -> str:
    try:
        load_model(name, device="cpu", ranks=ranks)
    except ModelError as error:
        return str(error)
    return ""


def differs(ranks: Ranks) -> str:
    model = add_lora(load_model("tiny", device="cpu"), rank=2, seed=ranks.rank)
    try:
        shard_model(model, ranks)
    except ModelError as error:
        return str(error)
    return ""


def test_what_one_rank_refuses_all_do(ranks: RankProcesses, tmp_path: Path) -> None:
    texts = ranks.run(fails_to_load, str(tmp_path / "nothing"))
    assert all("there is no file or directory" in text for text in texts)
    assert all("ranks hold different models: the LoRA settings" in text for text in ranks.run(differs))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"compile_layers": True}, "compile_layers"), ({"fused_layers": "liger"}, "fused_layers='liger'")],
)
def test_settings_that_were_never_tried_over_ranks_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=f"^{words} is for one process"):
        LocalModels(EngineSettings(**settings), ranks=Ranks(0, 2))


def refuses(ranks: Ranks, way: str) -> str:
    model = built("untied")
    if way == "4bit":
        model.base_weights = "4bit"
    if way == "scalar":
        model.module.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.0)))
    if way == "twice":
        shard_model(model, ranks)
    try:
        shard_model(model, ranks, tensor_parallel=3 if way == "tensor parallel" else 1)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("4bit", "the base weights of llama are 4-bit"),
        ("scalar", r"a weight without dimensions \(scale\)"),
        ("twice", "llama is sharded over ranks already"),
        ("tensor parallel", "tensor_parallel=3 does not divide 2 workers"),
    ],
)
def test_what_cannot_be_sharded_is_refused_by_name(ranks: RankProcesses, way: str, words: str) -> None:
    for text in ranks.run(refuses, way):
        assert re.search(words, text)
