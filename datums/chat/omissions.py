"""What a chat template leaves out of a conversation, and how it writes the arguments of calls."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..builders.notes import note_heeded, note_unread
from ..errors import TemplateError
from .messages import PART_END, PART_START
from .parts import STRUCTURE, Marker, unescaped
from .template import ChatTemplate
from .tool_calls import arguments_of, with_arguments

#: A name and a value that are searched for in a rendered call.
_NAME, _VALUE = f"{PART_START}name{PART_END}", f"{PART_START}value{PART_END}"
_ADVICE = {
    "content": "Use a template that renders it, put the text into a message that is rendered, or leave the message out",
    "reasoning": "Write it into 'content' as the model writes it, use train_on='last_assistant', or remove the key",
    "call": "Use a template that renders calls of tools, or leave the row out",
    "tool": "Use a template that renders tools, or remove them from the row",
}


def with_readable_arguments(template: ChatTemplate, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with the arguments of calls as this template reads them: objects, or texts of JSON.

    Templates that write arguments with `tojson`, or one by one, read objects; those that write them as they are read
    texts. Raises TemplateError when the template writes neither as JSON.
    """
    called = [dict(message) for message in messages]
    if not any(arguments_of(call) is not None for message in called for call in message.get("tool_calls", [])):
        return called
    as_text = _reads_texts(template, called)
    for message in called:
        if message.get("tool_calls"):
            message["tool_calls"] = [_rewritten(call, as_text) for call in message["tool_calls"]]
    return called


def check_rendered(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], learned: Collection[int] | None = None
) -> None:
    """Raise TemplateError, naming the part, when the template leaves out a part of the conversation or of the tools.

    learned: indices of the messages that are learned; None: all. What is left out of other answers (reasoning, which many
    templates render in the last answer only), and keys of messages that are no text of the conversation (such as `id`),
    are noted for the data report.
    """
    marker, missing = _missing(template, messages)
    for part in dict.fromkeys(marker.parts[mark] for mark in sorted(missing)):
        role = "" if part.message is None else messages[part.message]["role"]
        is_only_read = learned is not None and role == "assistant" and part.message not in learned
        if part.kind == "key":
            note_unread(f"{part.what} of messages")
        elif is_only_read and part.kind in ("content", "reasoning"):
            note_unread(f"{part.what} of answers that are not learned, which the chat template leaves out")
        else:
            of = f" of message {part.message} ({role})" if role else ""
            some = "a part of " if any(marker.parts[mark] == part for mark in marker.all - missing) else ""
            raise TemplateError(f"the chat template leaves out {some}{part.what}{of}. {_ADVICE[part.kind]}")
    for message in messages:
        for key in message.keys() - STRUCTURE:
            if not isinstance(message[key], str | list | tuple | Mapping) and key not in template.source:
                note_unread(f"{key!r} of messages")


def _missing(template: ChatTemplate, messages: Sequence[Mapping[str, Any]]) -> tuple[Marker, set[int]]:
    """The marks of all parts, and those that were not rendered."""
    marker = Marker()
    marked = marker.messages(messages)
    options = dict(template.options)
    if options.get("tools"):
        options["tools"] = marker.tools(options["tools"])
    try:
        return marker, marker.all - marker.rendered(ChatTemplate(template.tokenizer, options).render(marked))
    except TemplateError:  # the template reads a text in a way that a mark disturbs
        return marker, _missing_one_by_one(template, messages, marked, marker)


def _missing_one_by_one(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], marked: Sequence[Mapping[str, Any]], marker: Marker
) -> set[int]:
    """As `_missing`, with the marks of one message at a time; where a message bears none, by its text."""
    plain = template.render(messages)
    missing: set[int] = set()
    for index in range(len(messages)):
        own = {mark for mark, part in enumerate(marker.parts) if part.message == index}
        try:
            rendered = marker.rendered(template.render([*messages[:index], marked[index], *messages[index + 1 :]]))
        except TemplateError:
            rendered = {mark for mark in own if marker.texts[mark] in plain}
        missing |= own - rendered
    return missing | {m for m, part in enumerate(marker.parts) if part.message is None and marker.texts[m] not in plain}


def _reads_texts(template: ChatTemplate, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the template must be given the arguments of calls as texts of JSON rather than as objects."""
    problem: TemplateError | None = None
    for as_text in (False, True):
        probe = json.dumps({_NAME: _VALUE}, ensure_ascii=False) if as_text else {_NAME: _VALUE}
        try:
            text = template.render([_with_all_arguments(message, probe) for message in messages])
        except TemplateError as error:
            problem = problem or error
            continue
        if not _is_garbled(unescaped(text)):
            return as_text
    if problem is not None:
        raise problem
    raise TemplateError(
        "the chat template writes the arguments of tool calls neither from an object nor from a text as JSON, so a model "
        "would learn calls that nothing can read. Use a template that writes them with `tojson`"
    )


def _with_all_arguments(message: Mapping[str, Any], arguments: Any) -> dict[str, Any]:
    """The message with these arguments in every call that has any."""
    calls = message.get("tool_calls", [])
    called = [with_arguments(c, arguments) if arguments_of(c) is not None else c for c in calls]
    return {**message, **({"tool_calls": called} if calls else {})}


def _is_garbled(text: str) -> bool:
    """Whether arguments were written as Python writes a dict, or as a JSON text inside a JSON text."""
    return f"'{_NAME}'" in text or f'\\"{_NAME}' in text


def _rewritten(call: Mapping[str, Any], as_text: bool) -> dict[str, Any]:
    arguments = arguments_of(call)
    if arguments is None:
        return dict(call)
    given = call.get("function", call)["arguments"]
    if isinstance(given, str) and not as_text:
        note_heeded("arguments of tool calls that are JSON texts")
    if as_text:
        return with_arguments(
            call, given if isinstance(given, str) and given.strip() else json.dumps(arguments, ensure_ascii=False)
        )
    return with_arguments(call, arguments)
