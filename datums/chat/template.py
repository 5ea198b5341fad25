"""One conversation through a tokenizer's chat template: its tokens, and which of them the assistant wrote.

Two ways lead to the mask. A template with `{% generation %}` marks the assistant's text itself. For any other, what
is rendered up to and with each turn is compared with the whole: the mask is derived only if the shorter rendering
really is the beginning of the longer one, and refused otherwise. It is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import TemplateError
from .messages import GUARD_END, GUARD_START, SPAN_END, SPAN_START, guard, guard_messages, text_parts, tool_name

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_GUARDED = re.compile(f"{GUARD_START}([^{GUARD_START}{GUARD_END}]*){GUARD_END}")


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with the options it is called with (`tools`, `enable_thinking`, ...)."""

    tokenizer: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def source(self) -> str:
        """The template itself. Raises TemplateError when the tokenizer has none."""
        try:
            return self.tokenizer.get_chat_template(self.options.get("chat_template"), self.options.get("tools"))
        except (ValueError, AttributeError) as error:
            raise TemplateError(f"the tokenizer has no chat template to use: {error}") from error

    @cached_property
    def marks_generation(self) -> bool:
        """Whether the template has `{% generation %}` and the tokenizer can tell where a token came from."""
        return bool(_GENERATION.search(self.source)) and bool(getattr(self.tokenizer, "is_fast", False))

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of the special tokens: ends of turns, beginnings of sequences, and so on."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset({i for i, token in added.items() if token.special} | set(self.tokenizer.all_special_ids))

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        """The special tokens' texts. Added tokens that are not special (`<think>`) are text that anybody may write."""
        return tuple(sorted(self.tokenizer.convert_ids_to_tokens(sorted(self.control_ids))))

    @cached_property
    def turn_tokens(self) -> tuple[str, ...]:
        """The control tokens that the template writes: those in its source, and the end of a sequence."""
        return tuple(t for t in self.control_tokens if t in self.source or t == self.tokenizer.eos_token)

    def guarded(self, messages: Sequence[Mapping[str, Any]]) -> tuple[ChatTemplate, list[dict[str, Any]]]:
        """This template and these messages, with control tokens that are only text guarded (tools' texts too)."""
        texts = {key: self.options[key] for key in ("tools", "documents") if self.options.get(key)}
        checked = guard_messages(messages, self.control_tokens, self.turn_tokens)
        if not texts:
            return self, checked
        kept = {key: guard(value, self.control_tokens, key) for key, value in texts.items()}
        return ChatTemplate(self.tokenizer, {**self.options, **kept}), checked

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> str:
        """The conversation's text, guards included. Raises TemplateError when the template cannot take it."""
        return self._apply(messages, add_generation_prompt=add_generation_prompt)

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text; guarded control tokens are encoded as plain text.

        Raises TemplateError when that is impossible.
        """
        return self._encode(text, places=False)[0]

    def tokens(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> list[int]:
        """Token ids of a rendered conversation."""
        return self.encode(self.render(messages, add_generation_prompt))

    def marked(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], np.ndarray]:
        """Token ids [L], and [L] bool, true for what the template's `{% generation %}` encloses.

        The mask is found by characters. transformers' own goes through `char_to_token`, which knows only the first of
        several tokens of one character and, where offsets are trimmed, none for a space: then it leaves out answers
        that begin with a space, and learns all that follows one that ends with it.
        """
        pieces = re.split(f"([{SPAN_START}{SPAN_END}])", self._apply(messages, chat_template=self._with_marks))
        text = "".join(pieces[::2])
        if text != self.render(messages):
            raise TemplateError("the chat template's {% generation %} marks change what it renders")
        ids, places = self._encode(text, places=True)
        pieces[::2] = [_GUARDED.sub(r"\1", plain) for plain in pieces[::2]]
        inside = np.zeros(sum(map(len, pieces[::2])), dtype=bool)
        at, start = 0, 0
        for plain, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            at += len(plain)
            if mark == SPAN_START:
                start = at
            elif mark == SPAN_END:
                inside[start:at] = True
        return ids, self._inside(ids, np.array(places).reshape(-1, 2), inside)

    def _inside(self, ids: list[int], places: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """[L] bool, true for tokens of characters that are `inside`; places [L, 2] are those of each token."""
        starts, ends = places.T
        reached = np.maximum.accumulate(np.concatenate([[0], ends[:-1]]))
        starts = np.minimum(starts, reached)  # from where the last token ended: offsets may leave out spaces
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
    def _with_marks(self) -> str:
        def mark(found: re.Match[str]) -> str:
            character = SPAN_END if found[2] else SPAN_START
            return f"{{%{found[1]} if true %}}{character}{{% endif {found[3]}%}}"  # white space is trimmed as before

        return _GENERATION.sub(mark, self.source)

    def describe(self, token: int | None) -> str:
        """`198 ('\\n')`, for error messages; `none` past the end."""
        return "none" if token is None else f"{token} ({self.tokenizer.decode([token])!r})"

    def _encode(self, text: str, places: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and, if asked for, which characters each came from, not counting guards."""
        ids: list[int] = []
        found: list[tuple[int, int]] = []
        at = 0
        for index, piece in enumerate(_GUARDED.split(text)):  # every second piece was guarded
            if GUARD_START in piece or GUARD_END in piece:
                raise TemplateError("the chat template takes the messages' text apart inside a control token")
            # SentencePiece puts a space before a string; after a newline, which is taken off again, it does not
            lead = "\n" if at else ""
            new, offsets = self._call(lead + piece, index % 2 == 1, places)
            newline = self._call(lead, index % 2 == 1, False)[0] if lead else []
            if new[: len(newline)] != newline:
                lead, newline = "", []
                new, offsets = self._call(piece, index % 2 == 1, places)
            new = new[len(newline) :]
            if index % 2 == 1 and self.control_ids & set(new):
                raise TemplateError(f"a message contains {piece!r}, which this tokenizer cannot take as text")
            ids += new
            found += [(a + at - len(lead), b + at - len(lead)) for a, b in offsets[len(newline) :]]
            at += len(piece)
        return ids, found

    def _call(self, text: str, as_text: bool, places: bool) -> tuple[list[int], list[tuple[int, int]]]:
        how = {"split_special_tokens": True} if as_text else {}
        if places:
            how["return_offsets_mapping"] = True
        out = self.tokenizer(text, add_special_tokens=False, **how)
        return list(out["input_ids"]), out["offset_mapping"] if places else []

    def _apply(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> str:
        from jinja2 import TemplateError as JinjaError

        _ = self.source
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], **{**self.options, **how, "tokenize": False}
            )
        except (JinjaError, TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
            raise TemplateError(
                f"the chat template does not take these {len(messages)} messages: {type(error).__name__}: {error}"
            ) from error


def derived_mask(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], whole: Sequence[int], turns: Iterable[int]
) -> np.ndarray:
    """[L] bool over the tokens of the whole conversation, true for the turns with these message indices.

    A turn is what follows the rendering of the messages before it with a generation prompt, up to and with the token
    that ends it (white space after that token is the template's). Raises TemplateError, naming the first differing
    token, when either rendering is not the beginning of the whole.
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
            "message 0 is the assistant's, and this template has no {% generation %} marks: what comes before its "
            "text cannot be rendered alone. Put a system or user message first"
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
            "the chat template takes no notice of add_generation_prompt, so the beginning of an assistant's turn "
            f"({template.describe(whole[len(before)])} ...) cannot be told from its text. Use one with "
            "{% generation %} marks"
        )
    return len(before), end


def _turn_end(template: ChatTemplate, through: Sequence[int], start: int) -> int:
    last = max((i for i in range(start, len(through)) if through[i] in template.control_ids), default=None)
    if last is None or template.tokenizer.decode(through[last + 1 :]).strip():
        return len(through)
    return last + 1


def _check_beginning(template: ChatTemplate, part: Sequence[int], whole: Sequence[int], what: str) -> None:
    at = next((i for i, token in enumerate(part) if i >= len(whole) or token != whole[i]), None)
    if at is None:
        return
    there = template.describe(whole[at] if at < len(whole) else None)
    raise TemplateError(
        f"the chat template does not preserve prefixes: {what}, rendered alone, are not how the conversation begins. "
        f"First differing token: {at}, {template.describe(part[at])} alone and {there} in the whole. Use a template "
        "with {% generation %} marks, or train_on='last_assistant'; or strip white space from the answers' ends"
    )


def check_tools_rendered(template: ChatTemplate, messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise TemplateError when the template leaves out a tool call's function or a tool's answer."""
    if not any(message.get("tool_calls") or message["role"] in ("tool", "function") for message in messages):
        return
    text = template.render(messages)
    for index, message in enumerate(messages):
        for call in message.get("tool_calls") or []:
            if (tool_name(call) or "") not in text:
                raise TemplateError(
                    f"message {index} calls the tool {tool_name(call)!r}, but the chat template leaves tool calls out"
                )
        if message["role"] in ("tool", "function"):
            for part in text_parts(message.get("content")):
                if part.strip() not in text:
                    raise TemplateError(f"message {index} is a tool's answer, but the chat template leaves it out")
