"""Tokens of a prompt and its completion, both texts: joined, they spell the two texts and nothing else."""

from __future__ import annotations

from typing import Any

from ..errors import DataFileError, panics_as
from ..types import token_array

#: Texts that a completion is encoded behind, where tokens of the joined text would cross from the prompt into it. The
#: tokens of these are taken off again.
_LEADS = ("\n", ".", "a")


def encode_completion(tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """(prompt tokens, learned tokens); the latter are the completion and the end-of-sequence token.

    The prompt's tokens are those of the prompt alone, as it is encoded when the model is asked. The completion's tokens
    are those that follow them in the joined text; where a token of the joined text would cross from one into the other,
    they are tokens of the completion that spell it behind the prompt. The token that this tokenizer puts before every
    text stands first, once. The completion gets an end-of-sequence token if it has none; white space behind one that
    ends it is left out.

    Raises DataFileError when no tokens spell the completion behind the prompt.
    """
    read = _encode(tokenizer, prompt)
    whole = _encode(tokenizer, prompt + completion)
    learned = whole[len(read) :] if whole[: len(read)] == read else _continuation(tokenizer, read, completion, whole)
    learned = _ended(tokenizer, learned)
    begin = _begin(tokenizer)
    if not read and learned[: len(begin)] == begin:
        return begin, learned[len(begin) :]
    return (read if read[: len(begin)] == begin else [*begin, *read]), learned


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens that `encode_completion` gives for the prompt, for sampling a completion."""
    read, begin = _encode(tokenizer, prompt), _begin(tokenizer)
    return read if read[: len(begin)] == begin else [*begin, *read]


def _continuation(tokenizer: Any, read: list[int], completion: str, whole: list[int]) -> list[int]:
    """Tokens of the completion that spell the joined text behind the prompt's tokens."""
    spelled = _decode(tokenizer, whole)
    for lead in (*_LEADS, ""):
        before = _encode(tokenizer, lead) if lead else []
        together = _encode(tokenizer, lead + completion)
        learned = together[len(before) :]
        if together[: len(before)] == before and _decode(tokenizer, [*read, *learned]) == spelled:
            return learned
    raise DataFileError(
        f"no tokens of this tokenizer spell the completion, which begins {completion[:20]!r}, behind the prompt as one "
        f"text. Move characters between 'prompt' and the completion, so that a word ends where the prompt does"
    )


def _ended(tokenizer: Any, learned: list[int]) -> list[int]:
    """The tokens with one end-of-sequence token at their end."""
    end = tokenizer.eos_token_id
    if end is None:
        return learned
    ends = [position for position, token in enumerate(learned) if token == end]
    while ends and not _decode(tokenizer, learned[ends[-1] + 1 :]).strip():
        del learned[ends.pop() :]  # further ends may stand before this one
    return [*learned, end]


def _encode(tokenizer: Any, text: str) -> list[int]:
    with panics_as(DataFileError, f"the tokenizer, on the text {text[:40]!r},"):
        return token_array(list(tokenizer(text, add_special_tokens=False)["input_ids"])).tolist()


def _decode(tokenizer: Any, tokens: list[int]) -> str:
    with panics_as(DataFileError, f"the tokenizer, on {len(tokens)} tokens,"):
        return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _begin(tokenizer: Any) -> list[int]:
    """The token that this tokenizer puts before every text, if there is one."""
    begin = getattr(tokenizer, "bos_token_id", None)
    with panics_as(DataFileError, "the tokenizer, on an empty text,"):
        return [begin] if begin is not None and list(tokenizer("")["input_ids"])[:1] == [begin] else []
