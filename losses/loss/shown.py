"""A loss with its settings as text, as HTML for notebooks, and as a signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ...datums.display import LINE, box, one_line, rows_html


def written(name: str, settings: Mapping[str, Any]) -> str:
    """`ppo(reduction='sum', clip_low=0.8, clip_high=1.2)`."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def on_one_line(name: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The same where it fits a line; else with the settings alone that differ from their defaults."""
    if len(whole := written(name, settings)) <= LINE:
        return whole
    changed = "".join(f"{key}={value!r}, " for key, value in settings.items() if value != defaults[key])
    return one_line(f"{name}({changed}...)")


def loss_html(name: str, level: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> str:
    """What it is about, the paragraphs of its docstring, and its settings."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return box(name, level, *paragraphs, rows_html(settings.items(), "settings"))


def signature_of(function: Callable[..., Any], settings: Mapping[str, Any]) -> inspect.Signature:
    """The function's signature with these settings in place of its defaults."""
    own = inspect.signature(function)
    parameters = own.parameters.items()
    return own.replace(
        parameters=[one.replace(default=settings[name]) if name in settings else one for name, one in parameters]
    )
