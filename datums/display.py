"""How values are shown: on one line for `repr`, and as small pieces of HTML for notebooks.

The HTML takes its text colour from the page and lays translucent colours over its background, so that it is readable in light and
dark themes. All that comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup

#: Most characters of a repr, and most tokens, rows and characters of a cell that a piece of HTML shows.
LINE, MOST_TOKENS, MOST_ROWS, MOST_CHARACTERS = 120, 400, 24, 600
#: red, green, blue of a positive and a negative weight.
_POSITIVE, _NEGATIVE = "22,163,74", "220,38,38"


def one_line(text: str, width: int = LINE) -> str:
    """The text on one line of at most `width` characters, control characters as their codes; an end that is cut off is …"""
    shown = "".join(c if c.isprintable() else " " if c in "\n\t" else ascii(c)[1:-1] for c in text[: 4 * width])
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


def few(values: Sequence[Any] | np.ndarray, most: int = 6) -> str:
    """`[1, 2, 3]`, or `[1, 2, 3, 4, 5, 6, ...]` of more than 8 values; floats in six digits at most."""
    is_whole = len(values) <= most + 2
    shown = [value.item() if hasattr(value, "item") else value for value in (values if is_whole else values[:most])]
    parts = [f"{value:.6g}" if isinstance(value, float) else f"{value!r:.40}" for value in shown]
    return f"[{', '.join(parts if is_whole else [*parts, '...'])}]"


def counted(number: int, what: str) -> str:
    """`1 token`, `4,000 tokens`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def named(values: Mapping[str, Any]) -> str:
    """`name=value` of each, floats in six digits at most."""
    return ", ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v!r}" for k, v in values.items())


def box(title: str, *parts: Markup | str) -> str:
    """A piece of HTML for a notebook: a title in bold over its parts. Parts that are `str` are escaped."""
    from markupsafe import Markup

    style = "font-size:13px;line-height:1.5;color:inherit;max-width:60em;overflow-x:auto"
    body = Markup("").join(Markup("<div>{}</div>").format(cut(part)) for part in parts if part)
    return str(Markup('<div style="{}"><strong>{}</strong>{}</div>').format(style, cut(title), body))


def rows_html(rows: Iterable[Sequence[Any]], title: str = "", heads: Sequence[str] = ()) -> Markup:
    """Rows as a table, at most 24 of them, with a line that counts the others."""
    from markupsafe import Markup

    every = list(rows)
    cell = "text-align:left;vertical-align:top;padding:0 1em 0 0;background:transparent;color:inherit"
    line = Markup("").join
    shown = [
        Markup("<tr>{}</tr>").format(line(Markup('<td style="{}">{}</td>').format(cell, cut(value)) for value in row))
        for row in every[:MOST_ROWS]
    ]
    head = line(Markup('<th style="{}">{}</th>').format(cell, name) for name in heads)
    more = f"… {len(every) - MOST_ROWS:,} more" if len(every) > MOST_ROWS else ""
    caption = Markup('<div style="margin-top:.4em;opacity:.7">{}</div>').format(title) if title else Markup("")
    return Markup('{}<table style="border-collapse:collapse;color:inherit"><tr>{}</tr>{}</table>{}').format(
        caption, head, line(shown), more
    )


def tokens_html(tokens: Sequence[int], weights: Sequence[float]) -> Markup:
    """Token ids in a row, at most 400 of them: green by positive weight, red by negative, grey at weight 0."""
    from markupsafe import Markup

    largest = max((abs(weight) for weight in weights if abs(weight) < float("inf")), default=0.0) or 1.0
    pieces = [
        Markup('<span title="token {}, weight {}" style="{}">{}</span> ').format(
            token, f"{weight:g}", _token_style(weight / largest), token
        )
        for token, weight in zip(tokens[:MOST_TOKENS], weights[:MOST_TOKENS], strict=False)
    ]
    more = f"… {len(tokens) - MOST_TOKENS:,} more tokens" if len(tokens) > MOST_TOKENS else ""
    return Markup('<div style="font-family:monospace;overflow-wrap:anywhere">{}{}</div>').format(
        Markup("").join(pieces), more
    )


def cut(text: Any) -> Any:
    """Text of at most 600 characters; HTML is left as it is."""
    if hasattr(text, "__html__"):
        return text
    whole = str(text)
    return whole if len(whole) <= MOST_CHARACTERS else f"{whole[:MOST_CHARACTERS]}…"


def _token_style(level: float) -> str:
    """level: the weight divided by the datum's largest."""
    if not level:
        return "opacity:.55"
    shade = min(0.15 + 0.4 * abs(level), 0.55)
    return f"background:rgba({_POSITIVE if level > 0 else _NEGATIVE},{shade:.2f});color:inherit"
