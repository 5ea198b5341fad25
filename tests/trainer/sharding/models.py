"""Small models of random weights, and passes over them, as ranks and a single process make them alike."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from lossbook.trainer.model.lora.lora import add_lora
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.model.value_head import add_value_head
from lossbook.trainer.ranks import Ranks
from lossbook.trainer.sharding.gradients import sum_gradients
from lossbook.trainer.sharding.shard import shard_model
from lossbook.trainer.shards import whole

#: Odd on purpose: no number of ranks divides it.
VOCABULARY = 259
#: What is trained: all weights, with a tied head, with a head of its own, and a value head; or adapters.
TRAINED = ("untied", "tied", "value head", "lora", "lora with a value head")


def built(trained: str, seed: int = 0, **settings: Any) -> LoadedModel:
    """A Llama of three layers, not sharded, with what is trained chosen."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    options = sizes | {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64} | settings
    config = transformers.LlamaConfig(tie_word_embeddings=trained == "tied", initializer_range=0.1, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    model = LoadedModel("llama", module, build_tiny_tokenizer(), "decoder", torch.device("cpu"))
    if "lora" in trained:
        add_lora(model, rank=4, seed=seed)
        for name, parameter in model.trainable().items():
            if "lora_B" in name:  # else A would have no gradient
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    else:
        model.train_all_weights()
    return add_value_head(model) if "value head" in trained else model


def sharded(ranks: Ranks, trained: str, **settings: Any) -> LoadedModel:
    return shard_model(built(trained, **settings), ranks)


@functools.cache
def rows(count: int = 8) -> list[Tensor]:
    """Token ids, [1, length] each, of different lengths: as many for each of 2 or 4 ranks."""
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(0, VOCABULARY, (1, 5 + 2 * i))) for i in range(count)]


def loss_of(model: LoadedModel, tokens: Tensor, count: float) -> Tensor:
    """A sum over tokens divided by the count of the whole call, so that ranks' gradients add up."""
    hidden = model.backbone(tokens, use_cache=False).last_hidden_state[0]
    logits = hidden @ model.head().weight.T
    loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="sum")
    if model.value_head is not None:
        loss = loss + model.value_head(hidden).square().sum() + model.value_head(hidden).sum()
    return loss / count


def accumulate(model: LoadedModel, ranks: Ranks) -> float:
    """Forward and backward of all rows, each by one rank; returns the loss of the whole call."""
    count = float(sum(row.numel() for row in rows()))
    total = 0.0
    for row in rows()[ranks.rank :: ranks.size]:
        loss = model.inside(lambda row=row: {"loss": loss_of(model, row, count)})["loss"]
        loss.backward()
        total += float(loss.detach())
    sum_gradients(model)
    return ranks.sum([total])[0]


def gradients(model: LoadedModel) -> dict[str, Tensor]:
    """Whole gradients by name."""
    return {name: whole(p.grad).clone() for name, p in model.trainable().items() if p.grad is not None}


def off(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of the worst tensor, as a fraction of its largest number."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[k] - theirs[k]).abs().max() / theirs[k].abs().max().clamp(min=1e-30)) for k in theirs)
