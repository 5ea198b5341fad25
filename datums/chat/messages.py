"""Chat messages: checks of their form, and guards that keep control tokens in their text as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..builders.notes import note_heeded
from ..checks.numbers import is_finite
from ..errors import MessageError, did_you_mean
from .tool_calls import check_tool_calls

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
#: Names of these roles in other data formats.
ROLES_ELSEWHERE = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}

#: Keys by which other libraries say whether a message is learned: true or false.
FLAGS = ("trainable", "train", "training", "loss")
#: Keys that say in another way what is learned, or hold what is no text. They are refused.
REFUSED = {
    **dict.fromkeys(
        ("train_detail", "loss_mask", "mask", "masked", "weights", "loss_weight", "loss_scale", "sample_weight"),
        "what is learned of a message is said by 'weight', a number, or 'trainable', true or false",
    ),
    **dict.fromkeys(
        ("image", "images", "audio", "audios", "video", "videos"), "lossbook reads text alone; leave such rows out"
    ),
}

#: Guards stand around a control token that a message holds as text, span marks around an assistant's text, part marks
#: around the number of a part. Unicode reserves these characters for use inside programs.
RESERVED = tuple(map(chr, range(0xFDD0, 0xFDD6)))
GUARD_START, GUARD_END, SPAN_START, SPAN_END, PART_START, PART_END = RESERVED


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages as plain dicts. Raises MessageError naming the message's index from 0.

    A message has a known `role` and a `content`: text, or a list of parts {"type": "text", "text": ...}. Only an
    assistant's message with `tool_calls` may have no content; the older `function_call` becomes one of them. Only an
    assistant's message may have a nonzero `weight`. A flag of `FLAGS` that is false makes the weight 0.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise MessageError(f"messages must be a list of messages, not {_kind(messages)}")
    if not messages:
        raise MessageError("messages is empty: a conversation needs at least one message")
    return [_check_message(message, f"message {index}") for index, message in enumerate(messages)]


def _check_message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise MessageError(f"{name} must be a mapping with role and content, not {_kind(message)}")
    keys = ", ".join(map(str, message)) or "nothing"
    if "role" not in message:
        hint = " Rows of 'from' and 'value' must be renamed to 'role' and 'content'." if "from" in message else ""
        raise MessageError(f"{name} has no 'role'; it holds {keys}.{hint}")
    role = message["role"]
    if role not in ROLES:
        known = ROLES_ELSEWHERE.get(role) if isinstance(role, str) else None
        hint = f" Did you mean {known!r}?" if known else did_you_mean(str(role), ROLES)
        raise MessageError(f"{name} has the unknown role {role!r}; known are {', '.join(ROLES)}.{hint}")
    name = f"{name} ({role})"
    for key, advice in REFUSED.items():
        if message.get(key) not in (None, [], {}, ""):
            raise MessageError(f"{name} has {key!r}, which is not read: {advice}")
    weight = _weight(message, role, name)
    calls = check_tool_calls(message, name)
    content = message.get("content")
    if content is None:
        if not calls:
            state = "content is None" if "content" in message else f"no 'content'; it holds {keys}"
            raise MessageError(f"{name} has {state}. Only an assistant's message with tool_calls may have none")
    elif not isinstance(content, str):
        _check_parts(content, name)
    added = {**({"tool_calls": calls} if calls else {}), **({} if weight is None else {"weight": weight})}
    apart = ("tool_calls", "function_call", "weight", *FLAGS, *REFUSED)
    return {**{k: v for k, v in message.items() if v is not None and k not in apart}, **added}


def _weight(message: Mapping[str, Any], role: str, name: str) -> float | None:
    """The message's weight: its `weight`, and 0 where a flag is false. None where it says nothing about learning."""
    weight = message.get("weight")
    if weight is not None:
        if not is_finite(weight):
            raise MessageError(f"{name} has the weight {weight!r}; a weight is a finite number, such as 0, 1 or 0.5")
        _refuse_learning(weight != 0, f"the weight {weight:g}", "weight", role, name)
        note_heeded("'weight' of messages")
    for key in FLAGS:
        flag = message.get(key)
        if flag is None:
            continue
        if not isinstance(flag, bool | int | float) or flag not in (0, 1):
            raise MessageError(
                f"{name} has {key!r} {flag!r}; it must be true or false (1 or 0): whether the message is learned"
            )
        _refuse_learning(bool(flag), f"{key!r} {flag!r}", key, role, name)
        note_heeded(f"{key!r} of messages")
        weight = (1 if weight is None else weight) if flag else 0
    return weight


def _refuse_learning(is_learned: bool, what: str, key: str, role: str, name: str) -> None:
    if is_learned and role != "assistant":
        raise MessageError(
            f"{name} has {what}, but only an assistant's text is learned. Remove the {key}, or set it to 0"
        )


def _check_parts(content: Any, name: str) -> None:
    if not isinstance(content, list):
        raise MessageError(f"{name} has content that is {_kind(content)}; it must be text or a list of text parts")
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
            raise MessageError(
                f"{name}: content part {index} is {kind!r}; only {{'type': 'text', 'text': ...}} is supported"
            )
        if refused := [key for key in part if key in (*FLAGS, *REFUSED, "weight")]:
            raise MessageError(
                f"{name}: content part {index} has {refused[0]!r}, but a message is learned as a whole: put it beside 'role'"
            )


def text_parts(content: Any) -> list[str]:
    """The texts of a message's content."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or []]


def guard_messages(
    messages: Sequence[Mapping[str, Any]], control_tokens: tuple[str, ...], turn_tokens: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Put guards around control tokens in the messages' text, so that they are encoded as text.

    Turn tokens are those that the template writes itself. In an assistant's message they raise MessageError: the model
    could learn either to spell them or to end its turn there.
    """
    return [_guard_message(message, index, control_tokens, turn_tokens) for index, message in enumerate(messages)]


def _guard_message(
    message: Mapping[str, Any], index: int, control_tokens: tuple[str, ...], turn_tokens: tuple[str, ...]
) -> dict[str, Any]:
    name = f"message {index} ({message['role']})"
    token = _find(message, _pattern(turn_tokens)) if message["role"] == "assistant" else None
    if token:
        raise MessageError(
            f"{name} contains the control token {token!r} as text. Learning it would teach the model to write it in "
            "the middle of an answer. Remove it, or encode the conversation yourself for datum_from_tokens_weights"
        )
    return guard(message, control_tokens, name)


def guard(value: Any, control_tokens: tuple[str, ...], name: str) -> Any:
    """`value` with guards around control tokens in its strings, at any depth, but not in keys of mappings."""
    if isinstance(value, str):
        if any(mark in value for mark in RESERVED):
            raise MessageError(f"{name} contains one of U+FDD0 to U+FDD5, which Unicode reserves for programs")
        return _pattern(control_tokens).sub(f"{GUARD_START}\\g<0>{GUARD_END}", value)
    if isinstance(value, Mapping):
        return {key: guard(item, control_tokens, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [guard(item, control_tokens, name) for item in value]
    return value


def _find(value: Any, pattern: re.Pattern[str]) -> str | None:
    if isinstance(value, str):
        match = pattern.search(value)
        return match.group() if match else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((token for item in value if (token := _find(item, pattern))), None)
    return None


@lru_cache(maxsize=64)
def _pattern(control_tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, control_tokens)) or "(?!)")  # (?!) matches nothing


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
