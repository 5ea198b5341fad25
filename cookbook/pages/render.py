"""HTML from the templates of this folder. Whatever a template prints is escaped, so no data can become markup.

Only `render` makes `Markup`, text that is printed as it is, and only of its own templates; a stylesheet or a script of the
package is handed over as `Markup` by its name in capitals.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...datums.files.show import visible


def render(template: str, **values: Any) -> Markup:
    """The template of this name, filled in. Raises jinja2.UndefinedError for a value that it lacks."""
    return Markup(_templates().get_template(f"{template}.html").render(values))


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printed,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["shown"] = shown
    return templates


def _printed(value: Any) -> Any:
    """What is printed of a value, before it is escaped: of a text its control characters as codes."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def shown(value: Any) -> str:
    """A setting or a number in readable form."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
