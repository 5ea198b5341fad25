"""A conversation through a tokenizer's chat template: its tokens, and the mask of the assistant's tokens.

A template with `{% generation %}` marks the assistant's text itself. For any other template the conversation is also
rendered up to each turn. If that rendering is the beginning of the whole, the mask follows from it; otherwise
TemplateError is raised. The mask is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import TemplateError, panics_as
from .messages import GUARD_END, GUARD_START, SPAN_END, SPAN_START, guard, guard_messages

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_GUARDED = re.compile(f"{GUARD_START}([^{GUARD_START}{GUARD_END}]*){GUARD_END}")


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with the options it is called with (`tools`, `enable_thinking`, ...)."""

    tokenizer: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, str):
            raise TemplateError(
                f"tokenizer={self.tokenizer!r:.60} is a name: give the tokenizer, such as client.get_tokenizer() or "
                "transformers.AutoTokenizer.from_pretrained(name)"
            )

    @cached_property
    def source(self) -> str:
        """The template's source. Raises TemplateError when the tokenizer has no template."""
        try:
            return self.tokenizer.get_chat_template(self.options.get("chat_template"), self.options.get("tools"))
        except (ValueError, AttributeError) as error:
            raise TemplateError(f"the tokenizer has no chat template to use: {error}") from error

    @cached_property
    def marks_generation(self) -> bool:
        """Whether the template has `{% generation %}` and the tokenizer gives the character offsets of tokens."""
        return bool(_GENERATION.search(self.source)) and bool(getattr(self.tokenizer, "is_fast", False))

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of the special tokens: end of turn, beginning of sequence, and so on."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset({i for i, token in added.items() if token.special} | set(self.tokenizer.all_special_ids))

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts of the special tokens. Added tokens that are not special (`<think>`) are ordinary text."""
        return tuple(sorted(self.tokenizer.convert_ids_to_tokens(sorted(self.control_ids))))

    @cached_property
    def turn_tokens(self) -> tuple[str, ...]:
        """Control tokens that the template writes: those in its source, and the end of sequence."""
        return tuple(t for t in self.control_tokens if t in self.source or t == self.tokenizer.eos_token)

    def guarded(self, messages: Sequence[Mapping[str, Any]]) -> tuple[ChatTemplate, list[dict[str, Any]]]:
        """This template and these messages, with guards around control tokens in the texts of messages and tools."""
        texts = {key: self.options[key] for key in ("tools", "documents") if self.options.get(key)}
        checked = guard_messages(messages, self.control_tokens, self.turn_tokens)
        if not texts:
            return self, checked
        guarded = {key: guard(value, self.control_tokens, key) for key, value in texts.items()}
        return ChatTemplate(self.tokenizer, {**self.options, **guarded}), checked

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> str:
        """The conversation's text, guards included. Raises TemplateError when the template refuses it."""
        return self._apply(messages, add_generation_prompt=add_generation_prompt)

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text. Guarded control tokens are encoded as text, or TemplateError is raised."""
        return self._encode(text, with_offsets=False)[0]

    def tokens(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> list[int]:
        """Token ids of a rendered conversation."""
        return self.encode(self.render(messages, add_generation_prompt))

    def marked(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], np.ndarray]:
        """Token ids [L], and [L] bool, true for tokens inside the template's `{% generation %}` marks.

        The mask is computed from characters. transformers' own mask uses `char_to_token`, which gives only the first of
        several tokens of a character and, where offsets are trimmed, no token for a space. It then leaves out an answer
        that begins with a space, and learns everything after an answer that ends with one.
        """
        parts = re.split(f"([{SPAN_START}{SPAN_END}])", self._apply(messages, chat_template=self._source_with_spans))
        texts, marks = parts[::2], [*parts[1::2], ""]
        text = "".join(texts)
        if text != self.render(messages):
            raise TemplateError("the chat template's {% generation %} marks change the rendered text")
        ids, offsets = self._encode(text, with_offsets=True)
        texts = [_GUARDED.sub(r"\1", text) for text in texts]
        inside = np.zeros(sum(map(len, texts)), dtype=bool)
        end, start = 0, 0
        for text, mark in zip(texts, marks, strict=True):
            end += len(text)
            if mark == SPAN_START:
                start = end
            elif mark == SPAN_END:
                inside[start:end] = True
        return ids, self._tokens_inside(ids, np.array(offsets).reshape(-1, 2), inside)

    def _tokens_inside(self, ids: list[int], offsets: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """[L] bool, true for tokens with a character that is `inside`. offsets [L, 2]: each token's characters."""
        starts, ends = offsets.T
        reached = np.maximum.accumulate(np.concatenate([[0], ends[:-1]]))
        starts = np.minimum(starts, reached)  # no gap after the token before: trimmed offsets leave out spaces
        before = np.concatenate([[0], np.cumsum(inside)])
        mask = before[ends] > before[starts]
        half = np.flatnonzero(mask & ~inside[np.minimum(starts, len(inside) - 1)])
        if len(half):
            raise TemplateError(
                f"token {half[0]}, {self.describe(ids[half[0]])}, begins in the prompt and ends in an answer, so a "
                "model that continues the prompt would never write it. Strip white space from the answer's start"
            )
        return mask

    @cached_property
    def _source_with_spans(self) -> str:
        def span_mark(match: re.Match[str]) -> str:
            character = SPAN_END if match[2] else SPAN_START
            return f"{{%{match[1]} if true %}}{character}{{% endif {match[3]}%}}"  # trims white space as the mark did

        return _GENERATION.sub(span_mark, self.source)

    def describe(self, token: int | None) -> str:
        """`198 ('\\n')`, for error messages; `none` past the end."""
        return "none" if token is None else f"{token} ({decoded([token], self.tokenizer)!r})"

    def _encode(self, text: str, with_offsets: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and, if asked for, each token's first and past-the-last character, guards not counted."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        start = 0
        for index, part in enumerate(_GUARDED.split(text)):  # every second part was guarded
            if GUARD_START in part or GUARD_END in part:
                raise TemplateError("the chat template splits the messages' text inside a control token")
            # SentencePiece puts a space before a string, but not after a newline; the newline is removed again
            lead = "\n" if start else ""
            new, new_offsets = self._call(lead + part, index % 2 == 1, with_offsets)
            newline = self._call(lead, index % 2 == 1, False)[0] if lead else []
            if new[: len(newline)] != newline:
                lead, newline = "", []
                new, new_offsets = self._call(part, index % 2 == 1, with_offsets)
            new = new[len(newline) :]
            if index % 2 == 1 and self.control_ids & set(new):
                raise TemplateError(f"a message contains {part!r}, which this tokenizer cannot encode as text")
            ids += new
            shift = start - len(lead)
            offsets += [(first + shift, end + shift) for first, end in new_offsets[len(newline) :]]
            start += len(part)
        return ids, offsets

    def _call(self, text: str, as_text: bool, with_offsets: bool) -> tuple[list[int], list[tuple[int, int]]]:
        options = {"split_special_tokens": True} if as_text else {}
        if with_offsets:
            options["return_offsets_mapping"] = True
        with panics_as(TemplateError, "the tokenizer"):
            encoded = self.tokenizer(text, add_special_tokens=False, **options)
        return list(encoded["input_ids"]), encoded["offset_mapping"] if with_offsets else []

    def _apply(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        from .limits import within_limits

        _ = self.source
        with within_limits(len(messages)):
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], **{**self.options, **options, "tokenize": False}
            )


def prompt_of_user(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text as a user's turn, up to where the assistant answers.

    Raises TemplateError, in one line, where the template or the tokenizer fails on it.
    """
    from .limits import within_limits

    message = [{"role": "user", "content": text}]
    with within_limits(1), panics_as(TemplateError, f"the tokenizer, on the text {text[:40]!r},"):
        return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"])


def decoded(tokens: Sequence[int], tokenizer: Any, **options: Any) -> str:
    """The text of tokens. Raises TemplateError where the tokenizer's decoder, in Rust, gives up on them."""
    with panics_as(TemplateError, f"the tokenizer, on {len(tokens)} tokens,"):
        return tokenizer.decode(list(tokens), **options)


def derived_mask(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], whole: Sequence[int], turns: Iterable[int]
) -> np.ndarray:
    """[L] bool over the tokens of the whole conversation, true for the turns with these message indices.

    A turn starts after the messages before it, rendered with a generation prompt, and ends with the token that ends the
    turn (white space after that token is the template's). Raises TemplateError, naming the first differing token, when
    a rendering up to the turn's start or end is not the beginning of the whole.
    """
    mask = np.zeros(len(whole), dtype=bool)
    for turn in turns:
        start, end = turn_span(template, messages, whole, turn)
        mask[start:end] = True
    return mask


def turn_span(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], whole: Sequence[int], turn: int
) -> tuple[int, int]:
    """First and one past the last token of an assistant's turn; see `derived_mask`."""
    if turn == 0:
        raise TemplateError(
            "message 0 is the assistant's, and this template has no {% generation %} marks, so the start of its text is "
            "unknown. Put a system or user message first"
        )
    before = template.tokens(messages[:turn], add_generation_prompt=True)
    through = template.tokens(messages[: turn + 1])
    _check_beginning(template, before, whole, f"messages 0 to {turn - 1} with a generation prompt")
    end = _turn_end(template, through, len(before))
    _check_beginning(template, through[:end], whole, f"messages 0 to {turn}")
    if end <= len(before):
        raise TemplateError(f"the chat template renders nothing for message {turn}, an assistant's")
    if whole[len(before)] in template.control_ids and before == template.tokens(messages[:turn]):
        raise TemplateError(
            "the chat template ignores add_generation_prompt, so the beginning of an assistant's turn "
            f"({template.describe(whole[len(before)])} ...) cannot be told from its text. Use a template with "
            "{% generation %} marks"
        )
    return len(before), end


def _turn_end(template: ChatTemplate, through: Sequence[int], start: int) -> int:
    last = max((i for i in range(start, len(through)) if through[i] in template.control_ids), default=None)
    if last is None or decoded(through[last + 1 :], template.tokenizer).strip():
        return len(through)
    return last + 1


def _check_beginning(template: ChatTemplate, part: Sequence[int], whole: Sequence[int], name: str) -> None:
    index = next((i for i, token in enumerate(part) if i >= len(whole) or token != whole[i]), None)
    if index is None:
        return
    in_whole = template.describe(whole[index] if index < len(whole) else None)
    raise TemplateError(
        f"the chat template does not preserve prefixes: {name}, rendered alone, are not how the conversation begins. "
        f"First differing token: {index}, {template.describe(part[index])} alone and {in_whole} in the whole. Use a "
        "template with {% generation %} marks, or train_on='last_assistant'; or strip white space from the answers' ends"
    )
