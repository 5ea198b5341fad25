"""Small tokenizers of several kinds, trained on a few words: byte-level BPE, SentencePiece's kind, and the tiny models' bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lossbook.trainer.model.tiny import build_tiny_tokenizer

WORDS = ["the cat sat on the hat", "that is what the cats said", "naïve cats and hats", "a cat's hat"]


def byte_level() -> Any:
    """BPE over bytes, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters))
    return _fast(backend)


def sentence_piece() -> Any:
    """BPE over characters with a mark for spaces, and bytes for what it lacks, as Llama 2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=60))
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {name: i for i, name in enumerate(names)}
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.pre_tokenizer = trained.pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return _fast(backend)


def save_model(folder: Path, *, seed: int = 0) -> Any:
    """Save a tiny Llama whose tokenizer has byte pairs of `WORDS` beside the tiny models' bytes, to be loaded by its folder.

    Returns the tokenizer, which has the tiny models' chat template and special tokens.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    characters = build_tiny_tokenizer()
    tokenizer = characters.train_new_from_iterator(WORDS, vocab_size=300)
    tokenizer.chat_template = characters.chat_template
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _fast(backend: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


BUILDERS: dict[str, Callable[[], Any]] = {
    "bytes": build_tiny_tokenizer,
    "byte-level": byte_level,
    "sentence-piece": sentence_piece,
}
