"""Small pieces of HTML. All text from data is escaped here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ...datums.files.show import visible


def text(value: Any) -> str:
    """A value as escaped text, with control characters as their codes."""
    return escape(visible(str(value)), quote=True)


def shown(value: Any) -> str:
    """A setting or a number in readable form."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] = (), classes: str = "") -> str:
    """A table whose first column names its rows. On a narrow page it scrolls by itself."""
    parts = [f'<div class="wide"><table class="{classes}">']
    if head:
        parts.append("<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in head) + "</tr>")
    for first, *rest in rows:
        cells = "".join(f"<td>{text(shown(cell))}</td>" for cell in rest)
        parts.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>')
    return "".join([*parts, "</table></div>"])


def folded(title: str, body: str, *, is_open: bool = False) -> str:
    """A section that opens on a click."""
    return f"<details{' open' if is_open else ''}><summary>{text(title)}</summary>{body}</details>"


def json_block(name: str, value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Data for the page's script, escaped so that no text can end the block."""
    written = json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{name}">{written}</script>'
