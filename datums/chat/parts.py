"""Marks in the texts of a conversation, which show what of it a chat template renders.

A text that stands elsewhere too cannot stand in for one that is left out, because every mark has a number of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .messages import PART_END, PART_START
from .tool_calls import arguments_of, tool_name, with_arguments

#: Keys that hold an assistant's reasoning.
REASONING = ("reasoning_content", "reasoning", "thinking")
#: Keys of messages that are structure: they are not looked for in the text.
STRUCTURE = ("role", "tool_call_id", "tool_calls", "weight", "content")
#: Markup in a text, such as <think>. Templates search texts for it, so no mark stands inside.
_MARKUP = re.compile(r"(<[^<>\s][^<>]*>|\[/?[A-Z_]+\])")
_MARK = re.compile(f"{PART_START}([0-9]+){PART_END}")
_ESCAPED = re.compile(rf"\\+u({ord(PART_START):x}|{ord(PART_END):x})")

#: What a part is: words of a message, its reasoning, a call of a tool, the schema of a tool, or another key's text.
Kind = Literal["content", "reasoning", "call", "tool", "key"]


def unescaped(text: str) -> str:
    """The text, with marks that JSON or Python escaped (once or more often) as marks."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


@dataclass(frozen=True)
class Part:
    """A part of a conversation that a template may leave out.

    message: its message's index, None for the schema of a tool. what: the part in words.
    """

    message: int | None
    kind: Kind
    what: str


@dataclass
class Marker:
    """Puts marks into texts and knows whose they are: mark i belongs to `parts[i]`. texts[i] is the text it marks."""

    parts: list[Part] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def all(self) -> set[int]:
        """The numbers of all marks."""
        return set(range(len(self.parts)))

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages, with marks in every text that a template should render."""
        return [self._message(message, index) for index, message in enumerate(messages)]

    def tools(self, tools: Sequence[Any]) -> list[Any]:
        """The schemas, with marks at the tools' names and descriptions and at the names of their parameters."""
        return [self._tool(tool, index) for index, tool in enumerate(tools)]

    def rendered(self, text: str) -> set[int]:
        """The marks in a rendered text, also in JSON that escapes what is not ASCII."""
        return {int(number) for number in _MARK.findall(unescaped(text))}

    def _message(self, message: Mapping[str, Any], index: int) -> dict[str, Any]:
        marked = dict(message)
        content = message.get("content")
        part = Part(index, "content", "the content")
        if isinstance(content, str):
            marked["content"] = self._text(content, part)
        elif content:
            marked["content"] = [{**item, "text": self._text(item["text"], part)} for item in content]
        for key in message:
            if key not in STRUCTURE and not (key == "name" and message["role"] in ("tool", "function")):
                kind: Kind = "reasoning" if key in REASONING else "key"
                marked[key] = self._value(message[key], Part(index, kind, repr(key)))
        if message.get("tool_calls"):
            marked["tool_calls"] = [self._call(call, index, n) for n, call in enumerate(message["tool_calls"])]
        return marked

    def _call(self, call: Mapping[str, Any], message: int, number: int) -> dict[str, Any]:
        named = f"tool call {number} ({tool_name(call)!r})"
        marked = self._renamed(call, Part(message, "call", named))
        arguments = arguments_of(call)
        if not arguments:
            return marked
        told = self._value(arguments, Part(message, "call", f"the arguments of {named}"), with_keys=True)
        is_text = isinstance(call.get("function", call)["arguments"], str)
        return with_arguments(marked, json.dumps(told, ensure_ascii=False) if is_text else told)

    def _tool(self, tool: Any, index: int) -> Any:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            return tool
        part = Part(None, "tool", f"tool {index} ({tool_name(tool)!r})")
        renamed = self._renamed(tool, part)
        marked = dict(renamed["function"] if "function" in tool else renamed)
        if isinstance(function.get("description"), str):
            marked["description"] = self._text(function["description"], part)
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(parameters, Mapping) and isinstance(properties, Mapping):
            names = {name: name + self._mark(part, str(name)) for name in properties if isinstance(name, str)}
            required = parameters.get("required")
            marked["parameters"] = {**parameters, "properties": {names.get(k, k): v for k, v in properties.items()}}
            if isinstance(required, list):
                marked["parameters"]["required"] = [names.get(k, k) if isinstance(k, str) else k for k in required]
        return {**tool, "function": marked} if "function" in tool else marked

    def _renamed(self, call: Mapping[str, Any], part: Part) -> dict[str, Any]:
        """A call or a schema whose function's name ends with a mark."""
        function = call.get("function", call)
        if not isinstance(function.get("name"), str) or not function["name"]:
            return dict(call)
        renamed = {**function, "name": function["name"] + self._mark(part, function["name"])}
        return {**call, "function": renamed} if "function" in call else renamed

    def _value(self, value: Any, part: Part, with_keys: bool = False) -> Any:
        """`value` with marks in its strings at any depth, and at the keys of its mappings."""
        if isinstance(value, str):
            return self._text(value, part)
        if isinstance(value, Mapping):
            return {
                (key + self._mark(part, key) if with_keys and isinstance(key, str) else key): self._value(
                    item, part, with_keys
                )
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._value(item, part, with_keys) for item in value]
        return value

    def _text(self, text: str, part: Part) -> str:
        """The text with a mark at the beginning and the end of each stretch without markup; a blank text has none.

        A text of nothing but markup has one mark, at its end.
        """
        pieces = _MARKUP.split(text)
        for index in range(0, len(pieces), 2):
            bare = pieces[index].strip()
            if bare:
                lead, trail = pieces[index].split(bare, 1)
                pieces[index] = f"{lead}{self._mark(part, bare)}{bare}{self._mark(part, bare)}{trail}"
        marked = "".join(pieces)
        return marked + self._mark(part, text) if marked == text and text.strip() else marked

    def _mark(self, part: Part, text: str) -> str:
        self.parts.append(part)
        self.texts.append(text)
        return f"{PART_START}{len(self.parts) - 1}{PART_END}"
