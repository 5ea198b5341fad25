"""Calls of tools in messages: their form, and their arguments, which OpenAI's files write as JSON in a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..checks.json_text import strict_json
from ..errors import MessageError


def check_tool_calls(message: Mapping[str, Any], name: str) -> list[Any]:
    """The calls of an assistant's message, [] without any. The older `function_call` counts as a call.

    Raises MessageError, naming the message and the call, for calls by other roles, calls without a function, and
    arguments that are neither an object nor the JSON text of one.
    """
    calls = message.get("tool_calls") or []
    older = message.get("function_call")
    if not calls and not older:
        return []
    if message["role"] != "assistant":
        raise MessageError(f"{name} has {'tool_calls' if calls else 'function_call'}; only an assistant calls tools")
    if calls and older:
        raise MessageError(f"{name} has both tool_calls and function_call; remove function_call, the older form")
    calls = calls or [{"type": "function", "function": older}]
    if not isinstance(calls, list):
        raise MessageError(f"{name} has tool_calls that are a {type(calls).__name__}; they must be a list")
    for index, call in enumerate(calls):
        if not tool_name(call):
            raise MessageError(f"{name}: tool call {index} names no function ({{'function': {{'name': ...}}}})")
        try:
            arguments_of(call)
        except ValueError as error:
            raise MessageError(
                f"{name}: the arguments of tool call {index} ({tool_name(call)!r}) are {error}"
            ) from None
    return calls


def tool_name(call: Any) -> str | None:
    """The function's name of a tool call, written {"function": {"name": ...}} or {"name": ...}."""
    function = _function(call)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) and name else None


def arguments_of(call: Any) -> dict[str, Any] | None:
    """The arguments of a call as an object; None if it has none. Raises ValueError that says what they are instead."""
    arguments = _function(call).get("arguments")
    if isinstance(arguments, str):
        if not arguments.strip():  # as some servers write a call without arguments
            return {}
        try:
            arguments = strict_json(arguments)
        except json.JSONDecodeError as error:
            raise ValueError(f"a text that is not JSON: {error.msg} at column {error.colno}") from None
        except ValueError as error:
            raise ValueError(f"a text that is not usable JSON: {error}") from None
    if arguments is None or isinstance(arguments, Mapping):
        return arguments if arguments is None else dict(arguments)
    raise ValueError(f"a {type(arguments).__name__}; they must be an object, or the JSON text of one")


def with_arguments(call: Mapping[str, Any], arguments: Any) -> dict[str, Any]:
    """The call with other arguments."""
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": {**call["function"], "arguments": arguments}}
    return {**call, "arguments": arguments}


def _function(call: Any) -> Any:
    return call.get("function", call) if isinstance(call, Mapping) else None
