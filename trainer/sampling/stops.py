"""Stop strings: whether the newest token of a continuation completed one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ...datums.chat.template import decoded
from ...datums.errors import TemplateError, panics_as

#: What decoders write for bytes that are no character, or not yet one.
REPLACEMENT = "\ufffd"
#: Tokens decoded beyond those that a stop string can have, because decoders may change the first few.
SPARE = 8
#: Texts of which one should give an ordinary token.
ORDINARY = ("a", "A", "x", "0")


class StopStrings:
    """Looks for strings in the text of continuations.

    Decoders change the beginning of what they are given: Llama 2's takes away a space, WordPiece's puts none before its first
    word. So the text of tokens is what they add to the text of a token before them.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self.tokenizer, self.strings = tokenizer, tuple(strings)
        self.characters = max((len(text) for text in strings), default=0)
        self.bytes = max((len(text.encode()) for text in strings), default=0)

    def completed(self, before: int, tokens: Sequence[int]) -> bool:
        """Whether the last of `tokens` completed a string; before: the last token of the prompt."""
        if not self.strings:
            return False
        width = self.bytes + SPARE  # a token holds a byte at least, but for a few that hold nothing
        while True:
            start = max(0, len(tokens) - width)
            text = self._text(tokens, start, before)
            if self._in(text):
                return True
            if start == 0 or len(text) > self.characters:
                break
            width *= 2
        if REPLACEMENT not in text:
            return False
        # A decoder may give up on all bytes between two ordinary tokens because of the first ones: look behind those.
        return any(self._in(self._text(tokens, i, before)) for i in range(start + 1, len(tokens)))

    def _in(self, text: str) -> bool:
        return any(stop in text for stop in self.strings)

    def _text(self, tokens: Sequence[int], start: int, before: int) -> str:
        """The text that tokens[start:] add to what stands before them."""
        for context in (tokens[start - 1] if start else before, self._ordinary):
            if context is None:
                continue
            known, whole = self._decode([context]), self._decode([context, *tokens[start:]])
            if known and REPLACEMENT not in known and whole.startswith(known):
                return whole[len(known) :]
        return self._decode(tokens[start:])

    @cached_property
    def _ordinary(self) -> int | None:
        """A token of ordinary text, for contexts whose own text is not known: half a character, or nothing."""
        for text in ORDINARY:
            with panics_as(TemplateError, f"the tokenizer, on the text {text!r},"):
                tokens = self.tokenizer.encode(text, add_special_tokens=False)
            if tokens and self._decode(tokens[-1:]).strip() == text:
                return tokens[-1]
        return None

    def _decode(self, tokens: Sequence[int]) -> str:
        return decoded(tokens, self.tokenizer, skip_special_tokens=False, clean_up_tokenization_spaces=False)
