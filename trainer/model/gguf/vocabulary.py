"""What a GGUF file says about its tokens, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....datums.errors import ModelError

#: Types of tokens, as `tokenizer.ggml.token_type` counts them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
REMEDY = "Name the folder or hub id of the model that the file was made from"
#: The model's own tokenizer.json, in files that keep it.
COMPLETE = "tokenizer.huggingface.json"
#: transformers' names for tokens with a role, and the keys of their ids.
ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # the format's own spelling
    "mask_token": "mask_token_id",
    "cls_token": "cls_token_id",
}
#: Ids in sentencepiece's models, for files that do not name them.
SENTENCEPIECE_IDS = {"unk_token": 0, "bos_token": 1, "eos_token": 2}


@dataclass(frozen=True)
class Vocabulary:
    """A file's tokens.

    tokens    by id, as the file spells them
    types     beside them; all NORMAL where the file has none
    scores    beside them, or None
    merges    pairs, the first to be applied first, or None
    settings  what else stands under tokenizer.ggml, by name
    complete  a tokenizer.json, or None
    """

    file: str
    architecture: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[tuple[str, str]] | None
    settings: dict[str, Any]
    complete: str | None
    chat_template: str | None

    @property
    def kind(self) -> str:
        """`tokenizer.ggml.model`."""
        return str(self.settings.get("model", ""))

    @property
    def pre(self) -> str:
        """`tokenizer.ggml.pre`."""
        return str(self.settings.get("pre", ""))

    def flag(self, name: str, default: bool) -> bool:
        """A true or false of the file, such as add_bos_token."""
        return bool(self.settings.get(name, default))

    def refusal(self, reason: str) -> ModelError:
        """The error to raise."""
        return ModelError(f"cannot rebuild the tokenizer of {self.file}: {reason}. {REMEDY}")

    def roles(self) -> dict[str, str]:
        """The tokens that the file names by id, such as bos_token."""
        tokens: dict[str, str] = {}
        for name, key in ROLES.items():
            place = self.settings.get(key, SENTENCEPIECE_IDS.get(name) if self.kind == "llama" else None)
            if place is None:
                continue
            if not 0 <= place < len(self.tokens):
                raise self.refusal(f"tokenizer.ggml.{key} is {place}, but there are {len(self.tokens)} tokens")
            tokens[name] = self.tokens[place]
        return tokens


def read_vocabulary(file: Path, reader: Any) -> Vocabulary:
    """The vocabulary of a file that a `gguf.GGUFReader` has open.

    Raises ModelError for one that contradicts itself or has what is not read.
    """
    data = {
        name: field.contents()
        for name, field in reader.fields.items()
        if name.startswith("tokenizer.") or name == "general.architecture"
    }
    own = {name.removeprefix("tokenizer.ggml."): value for name, value in data.items() if ".ggml." in name}
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(own.pop("tokens", ()))]  # llama.cpp's name for it
    types, scores, merges = (own.pop(name, None) for name in ("token_type", "scores", "merges"))
    vocabulary = Vocabulary(
        file.name,
        str(data.get("general.architecture", "")),
        tokens,
        types or [NORMAL] * len(tokens),
        scores,
        None if merges is None else [_pair(merge) for merge in merges],
        own,
        data.get(COMPLETE),
        data.get("tokenizer.chat_template"),
    )
    if vocabulary.complete is None:
        _check(vocabulary)
    return vocabulary


def _pair(merge: str) -> tuple[str, str]:
    """The two parts that a space parts; the first may begin with one."""
    cut = merge.find(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _check(vocabulary: Vocabulary) -> None:
    tokens = vocabulary.tokens
    for name, values in (("token_type", vocabulary.types), ("scores", vocabulary.scores)):
        if values is not None and len(values) != len(tokens):
            raise vocabulary.refusal(f"it has {len(tokens)} tokens but {len(values)} values in tokenizer.ggml.{name}")
    if len(set(tokens)) != len(tokens):
        first: dict[str, int] = {}
        for i, token in enumerate(tokens):
            if first.setdefault(token, i) != i:
                raise vocabulary.refusal(f"tokens {first[token]} and {i} are both {token!r}")
    if vocabulary.settings.get("added_tokens"):
        raise vocabulary.refusal("it has tokenizer.ggml.added_tokens, whose ids the file does not say")
    if vocabulary.settings.get("precompiled_charsmap") and vocabulary.kind != "t5":
        raise vocabulary.refusal("it has a tokenizer.ggml.precompiled_charsmap, which only unigram models have")
    for name in ("remove_extra_whitespaces", "add_sep_token"):
        if vocabulary.flag(name, False) and vocabulary.kind not in ("t5", "bert"):
            raise vocabulary.refusal(f"tokenizer.ggml.{name} is true, which is not read for a decoder")
    ids = set(tokens)
    for rank, (left, right) in enumerate(vocabulary.merges or ()):
        if not {left, right, left + right} <= ids:
            raise vocabulary.refusal(f"merge {rank}, {left!r} with {right!r}, is of parts that are not all tokens")
