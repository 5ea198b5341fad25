"""Tokenizers of sentencepiece's BPE models, as GGUF files keep them: pieces with scores, and bytes for what is no piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .vocabulary import BYTE, CONTROL, UNKNOWN, Vocabulary

SPACE = "\u2581"
#: Types of tokens that merging does not make.
NEVER_MERGED = (UNKNOWN, CONTROL, BYTE)


def sentence_pieces(vocabulary: Vocabulary) -> tuple[Any, bool]:
    """A `tokenizers.Tokenizer`, and whether texts begin with BOS where the file does not say.

    A space is put before a text, and before what follows a special token, unless the file's add_space_prefix is false:
    so do llama.cpp and the tokenizer.json files of Llama 2. Gemma's never do.
    """
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    if vocabulary.pre not in ("", "default", "gemma4"):
        raise vocabulary.refusal(
            f"tokenizer.ggml.pre is {vocabulary.pre!r}, but a sentencepiece model has no pre-tokenizer"
        )
    gemma = vocabulary.architecture.startswith("gemma")
    tokens = [_respelled(token) for token in vocabulary.tokens] if gemma else vocabulary.tokens
    if len(set(tokens)) != len(tokens):
        raise vocabulary.refusal("some of its tokens are the same but for the sign for a space")
    ids = {token: i for i, token in enumerate(tokens)}
    model: Any = BPE(
        vocab=ids,
        merges=vocabulary.merges or _merges(vocabulary, ids, in_order=gemma),
        unk_token=vocabulary.roles().get("unk_token"),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer: Any = Tokenizer(model)
    prefix = vocabulary.flag("add_space_prefix", not gemma)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer, vocabulary.kind == "llama"  # Gemma 4's chat template writes BOS itself


def _respelled(token: str) -> str:
    """Gemma's runs of spaces, which files keep as spaces."""
    return SPACE * len(token) if token and not token.strip(" ") else token


def _merges(vocabulary: Vocabulary, ids: Mapping[str, int], *, in_order: bool) -> list[tuple[str, str]]:
    """Every way to make a piece of two, the piece of the highest score first.

    in_order: earlier pieces first, as in Gemma's models, whose scores do not say.
    """
    scores: Sequence[float] | None = [-float(i) for i in ids.values()] if in_order else vocabulary.scores
    if scores is None or len(set(scores)) < 2:
        what = "no tokenizer.ggml.scores" if scores is None else "the same score for every token"
        raise vocabulary.refusal(f"it has {what} and no tokenizer.ggml.merges, so what is merged first is not known")
    pieces = {token for token, i in ids.items() if vocabulary.types[i] not in NEVER_MERGED}
    pairs = [
        (scores[ids[token]], token[:cut], token[cut:])
        for token in ids
        if token in pieces
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    pairs.sort(key=lambda pair: (-pair[0], -len(pair[1]), -len(pair[2])))
    return [(left, right) for _, left, right in pairs]
