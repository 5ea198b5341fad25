"""The bytes that each token of a tokenizer writes, so that texts cut by two tokenizers can be laid beside each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import AlignmentError

#: Written for a space by tokenizers of SentencePiece's kind, and how these write a byte that is in no piece.
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: From a token's name to what it writes; None where it is not spelled in this way.
Spelling = Callable[[str], bytes | None]
#: A text whose tokens tell byte-level spelling from SentencePiece's.
PROBE = "The naïve cat's hat"


class Pieces:
    """What each token of a tokenizer writes.

    `of(tokens)` gives one `bytes` per token: b"" for special tokens, such as the end of a turn, which write no text. Bytes of
    one character may be spread over several tokens. Known are byte-level tokenizers (GPT-2's letters for bytes), those of
    SentencePiece's kind, with or without byte fallback, and tokenizers whose tokens are the text itself.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._added = {int(i): str(token).encode() for i, token in added.items()}

    def of(self, tokens: Sequence[int]) -> list[bytes]:
        """[L] bytes. Together they are the text that the tokenizer decodes, which is checked.

        Raises AlignmentError for a tokenizer whose tokens do not spell its text in any known way.
        """
        return self._kind([int(token) for token in tokens])[1]

    def _kind(self, ids: list[int]) -> tuple[Spelling, list[bytes]]:
        """How these tokens are spelled, and what they write."""
        names = self._tokenizer.convert_ids_to_tokens(ids)
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for spelled in (_byte_level, _sentence_piece, _plain):
            pieces = self._spelled(ids, names, spelled)
            if pieces is None:
                continue
            joined = b"".join(pieces).decode("utf-8", errors="replace")
            if joined == text:
                return spelled, pieces
            if joined == f" {text}":  # the space before the first word is dropped in decoding
                return spelled, _without_first_space(pieces)
        raise AlignmentError(
            f"the {len(ids)} tokens of a {type(self._tokenizer).__name__} do not spell the text that it decodes, {text[:40]!r}..., "
            "so they cannot be aligned with another tokenizer's. Known are byte-level tokenizers and SentencePiece's"
        )

    def each(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of single tokens that stand in no text, such as all of a vocabulary. Spelled as those of a probe."""
        spelled = self._kind(self._tokenizer(PROBE, add_special_tokens=False)["input_ids"])[0]
        names = self._tokenizer.convert_ids_to_tokens(list(ids))
        pieces = self._spelled(ids, names, spelled)
        if pieces is None:
            wrong = next(i for i, name in zip(ids, names, strict=True) if self._spelled([i], [name], spelled) is None)
            raise AlignmentError(f"token {wrong} of a {type(self._tokenizer).__name__} is not spelled as others are")
        return pieces

    def _spelled(self, ids: Iterable[int], names: Iterable[str | None], spelled: Spelling) -> list[bytes] | None:
        """The pieces if every token is spelled in this way, else None."""
        pieces: list[bytes] = []
        for i, name in zip(ids, names, strict=True):
            if i in self._special:
                piece: bytes | None = b""
            elif i in self._added:
                piece = self._added[i]
            else:
                piece = None if name is None else spelled(name)
            if piece is None:
                return None
            pieces.append(piece)
        return pieces


def _byte_level(name: str) -> bytes | None:
    if any(letter not in _BYTES for letter in name):
        return None
    return bytes(_BYTES[letter] for letter in name)


def _sentence_piece(name: str) -> bytes | None:
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()


def _plain(name: str) -> bytes | None:
    return name.encode()


def _without_first_space(pieces: Sequence[bytes]) -> list[bytes]:
    first = next(i for i, piece in enumerate(pieces) if piece)
    return [piece[1:] if i == first else piece for i, piece in enumerate(pieces)]


def _letters_of_bytes() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters stand for their byte, characters from U+0100 on for the other 68."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = iter(range(256, 512))
    return {chr(byte if byte in printable else next(spare)): byte for byte in range(256)}


_BYTES = _letters_of_bytes()
