"""The tokenizer that a GGUF file describes, rebuilt as its model's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....datums.errors import did_you_mean
from .pre_tokenizers import REFUSED, RULES
from .sentence_pieces import sentence_pieces
from .vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, read_vocabulary

#: Tokens of these types are looked for in the text before it is cut.
WHOLE = (UNKNOWN, CONTROL, USER_DEFINED)
#: Phi-3's tokenizer takes spaces away behind every special token but these.
PHI3_KEEPS_SPACES = ("<unk>", "<s>", "<|endoftext|>")
#: Kinds that are not read.
OTHER_KINDS = {
    "bert": "WordPiece, which encoders have",
    "t5": "a unigram model, which encoders and encoder-decoders have",
    "rwkv": "RWKV's own",
    "plamo2": "PLaMo-2's own",
    "hybriddna": "HybridDNA's own",
    "whitespace": "words as they are",
    "no_vocab": "no tokenizer at all",
    "none": "no tokenizer at all",
}


def read_tokenizer(file: Path, reader: Any = None) -> Any:
    """A transformers tokenizer that gives the tokens of the model's own.

    reader: a `gguf.GGUFReader` of the file, where there is one already; reading takes seconds.

    Raises ModelError, naming the file's value, for a kind of tokenizer or a pre-tokenizer whose rule is not known, and
    for a vocabulary that contradicts itself.
    """
    from gguf import GGUFReader
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    vocabulary = read_vocabulary(file, reader or GGUFReader(file))
    roles = vocabulary.roles()
    ends: list[str] = []
    if vocabulary.complete is not None:
        backend: Any = Tokenizer.from_str(vocabulary.complete)
    else:
        backend, add_bos = _build(vocabulary)
        _add_whole_tokens(backend, vocabulary)
        ends = [
            name
            for name, default in (("add_bos_token", add_bos), ("add_eos_token", False))
            if vocabulary.flag(name, default)
        ]
    for name in ends:
        role = name.removeprefix("add_")
        if role not in roles:
            raise vocabulary.refusal(f"{name} is true, but the file has no tokenizer.ggml.{role}_id")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=vocabulary.chat_template,
        clean_up_tokenization_spaces=False,
        **{"bos_token": None, "eos_token": None, **roles},
        **{name: True for name in ends},
    )


def _build(vocabulary: Vocabulary) -> tuple[Any, bool]:
    """A `tokenizers.Tokenizer`, and whether texts begin with BOS where the file does not say."""
    builders: dict[str, Callable[[Vocabulary], tuple[Any, bool]]] = {
        "gpt2": _byte_level,
        "llama": sentence_pieces,
        "gemma4": sentence_pieces,
    }
    kind = vocabulary.kind
    if kind not in builders:
        what = f" ({OTHER_KINDS[kind]})" if kind in OTHER_KINDS else did_you_mean(kind, builders)
        raise vocabulary.refusal(f"tokenizer.ggml.model is {kind!r}{what}; gpt2, llama and gemma4 are read")
    if not vocabulary.tokens:
        raise vocabulary.refusal("it has no tokenizer.ggml.tokens")
    return builders[kind](vocabulary)


def _byte_level(vocabulary: Vocabulary) -> tuple[Any, bool]:
    """BPE over GPT-2's letters for bytes."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE

    rule = RULES.get(vocabulary.pre)
    if rule is None:
        reason = REFUSED.get(vocabulary.pre) or f"no rule of that name is known.{did_you_mean(vocabulary.pre, RULES)}"
        raise vocabulary.refusal(f"tokenizer.ggml.pre is {vocabulary.pre!r}: {reason.rstrip('.')}")
    if vocabulary.flag("add_space_prefix", False):
        raise vocabulary.refusal("tokenizer.ggml.add_space_prefix is true for a byte-level tokenizer")
    if vocabulary.merges is None:
        raise vocabulary.refusal("it has no tokenizer.ggml.merges")
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    model: Any = BPE(vocab=ids, merges=vocabulary.merges, ignore_merges=rule.ignore_merges)
    tokenizer: Any = Tokenizer(model)
    rule.apply_to(tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rule.add_bos


def _add_whole_tokens(tokenizer: Any, vocabulary: Vocabulary) -> None:
    """Tokens that are looked for in the text itself, such as <|im_end|> or <think>; control tokens are special."""
    from tokenizers import AddedToken

    phi3 = vocabulary.architecture == "phi3" and vocabulary.kind == "llama"
    for i, kind in enumerate(vocabulary.types):
        if kind in WHOLE:
            token = tokenizer.id_to_token(i)
            strip = phi3 and token not in PHI3_KEEPS_SPACES
            added = AddedToken(token, special=kind != USER_DEFINED, normalized=False, rstrip=strip)
            (tokenizer.add_tokens if kind == USER_DEFINED else tokenizer.add_special_tokens)([added])
