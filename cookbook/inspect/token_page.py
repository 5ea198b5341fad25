"""Sequences of tokens as HTML, each token coloured by one of several columns of numbers.

The page needs no network, no other file and no script: radio buttons switch between the columns, and CSS shows a token's
numbers under the pointer. A template makes it, which escapes all text, so data cannot become markup.

    body = token_view_html([token_sequence(datum, tokenizer, "line 1", {"logprob": logprobs})])
    Path("tokens.html").write_text(token_page("my data", body), encoding="utf-8")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from ...datums.files.show import datum_tokens, token_texts, visible
from ...datums.types import Datum
from ..pages.render import render

#: A number of a token; None if it has none (the first token has no logprob, a prompt no advantage).
Number = float | None


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    name     its key in `TokenSequence.columns`
    unit     nats, or "" for a unitless number
    centre   the number that gets no colour
    about    one sentence on what to look for, shown while the column is selected
    """

    name: str
    unit: str = ""
    centre: float = 0.0
    about: str = ""


#: The known columns in the order in which they are offered. Other columns follow, centred on 0.
COLUMNS = (
    Column("weight", about="The token's weight in the loss; a token without colour is only read."),
    Column(
        "logprob",
        "nats",
        about="How likely the token is under the model; the stronger the colour, the more surprising.",
    ),
    Column("ref_logprob", "nats", about="How likely the token is under the frozen reference."),
    Column("sampling_logprob", "nats", about="How likely the token was under the policy that sampled it."),
    Column("advantage", about="How much better than expected the token's outcome was."),
    Column("ratio", centre=1.0, about="exp(logprob - sampling_logprob): 1 where the policy has not changed."),
    Column("loss", about="The token's loss before weighting and reduction."),
    Column(
        "gradient", about="d loss / d logprob: below 0, the step makes the token more likely; above 0, less likely."
    ),
)
#: The number of columns that the stylesheet can switch between.
MAX_COLUMNS = 16
#: RGB above the centre, below it, and for NaN and infinity. Colour-blind readers can tell blue from orange.
_ABOVE, _BELOW, _BROKEN = "33,110,190", "225,105,10", "200,0,200"
#: The opacity of the strongest colour; text on it stays readable in light and dark mode.
_OPACITY = 0.75


@dataclass(frozen=True)
class TokenSequence:
    """One sequence of N tokens and their numbers.

    title      for example `train.jsonl, line 7`
    texts      [N] each token's text; "" for a token that only continues a character
    ids        [N] each token's id
    columns    by name, [N] numbers each; the name is one of `COLUMNS` or any other
    note       a line under the title
    """

    title: str
    texts: Sequence[str]
    ids: Sequence[int]
    columns: Mapping[str, Sequence[Number]] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        for name, values in {"ids": self.ids, **self.columns}.items():
            if len(values) != len(self.texts):
                raise ValueError(f"{self.title}: {name} has {len(values)} entries for {len(self.texts)} tokens")


def token_sequence(
    datum: Datum,
    tokenizer: Any,
    title: str,
    columns: Mapping[str, Sequence[Number]] | None = None,
    note: str = "",
) -> TokenSequence:
    """The N + 1 tokens of a datum of N positions, with its weights, its advantages and the given columns.

    columns: by name, [N] numbers each, of the token that position t predicts; the first token has none.
    Raises ShapeError for targets of shape [N, K], which are not a single text.
    """
    ids, weights = datum_tokens(datum)
    known: dict[str, Sequence[Number]] = {"weight": weights.tolist()[1:]}
    advantages = datum.loss_fn_inputs.get("advantages")
    if advantages is not None and advantages.shape == [len(ids) - 1]:
        known["advantage"] = list(advantages.data)
    known.update(columns or {})
    shifted = {name: [None, *values] for name, values in known.items()}
    return TokenSequence(title, token_texts(ids, tokenizer), ids, shifted, note)


def token_view_html(
    sequences: Sequence[TokenSequence],
    columns: Sequence[Column | str] | None = None,
    *,
    name: str = "tokens",
    note: str = "",
    shared: bool = False,
) -> str:
    """An HTML fragment: a switch between columns, and the sequences with their tokens coloured by the selected column.

    sequences  shown in this order
    columns    `Column`s or names, the first selected; None for all columns of the sequences
    name       of the switch; each fragment of a page needs its own
    note       a line above all sequences
    shared     whether the page opens with one colour scale for all sequences; it has a switch

    Colour strength is the distance from the column's centre, relative to the largest one in the sequence, or in all of them:
    blue above the centre, orange below, violet for NaN and infinity. On the scale of its own a sequence stays readable beside
    one with much larger gradients. The page needs `TOKEN_VIEW_CSS` once, in a <style>; `token_page`
    returns a whole page.
    """
    return str(token_view(sequences, columns, name=name, note=note, shared=shared))


def token_view(
    sequences: Sequence[TokenSequence],
    columns: Sequence[Column | str] | None = None,
    *,
    name: str = "tokens",
    note: str = "",
    shared: bool = False,
) -> Markup:
    """As `token_view_html`, for the package's own templates, which print it as it is."""
    offered = _offered(sequences, columns)
    spans = [_span(column, sequences) for column in offered]
    return render(
        "token_view",
        name=name,
        note=note,
        shared=shared,
        is_scaled=len(sequences) > 1,
        legends=[_legend(column, span, _reach(column, span)) for column, span in zip(offered, spans, strict=True)],
        sequences=[_sequence(sequence, offered, spans) for sequence in sequences],
    )


def token_page(title: str, body: str) -> str:
    """A whole page around fragments of `token_view_html`. Its content policy forbids scripts and any request.

    body: HTML, which is not escaped: it must come from `token_view_html`, or be your own.
    """
    return str(render("token_page", title=title, body=Markup(body), css=Markup(PAGE_CSS + TOKEN_VIEW_CSS)))


def _offered(sequences: Sequence[TokenSequence], columns: Sequence[Column | str] | None) -> list[Column]:
    known = {column.name: column for column in COLUMNS}
    if columns is None:
        given = dict.fromkeys(name for sequence in sequences for name in sequence.columns)
        columns = [*(name for name in known if name in given), *(name for name in given if name not in known)]
    if len(columns) > MAX_COLUMNS:
        raise ValueError(f"{len(columns)} columns are more than the {MAX_COLUMNS} that can be offered")
    return [known.get(column, Column(column)) if isinstance(column, str) else column for column in columns]


def _span(column: Column, sequences: Sequence[TokenSequence]) -> tuple[float, float]:
    """The smallest and the largest finite number of a column, its centre included."""
    values = (value for sequence in sequences for value in sequence.columns.get(column.name, ()) if value is not None)
    finite = [column.centre, *(value for value in values if math.isfinite(value))]
    return min(finite), max(finite)


def _reach(column: Column, span: tuple[float, float]) -> float:
    """The distance from the centre that has the strongest colour."""
    return max(span[1] - column.centre, column.centre - span[0])


def _sequence(
    sequence: TokenSequence, columns: Sequence[Column], spans: Sequence[tuple[float, float]]
) -> tuple[TokenSequence, str, list[list[tuple[str, str]]], list[dict[str, str]]]:
    """A sequence, how strong its colours are on the scale of all sequences, the ends of its own scales, and its tokens."""
    own = [_span(column, [sequence]) for column in columns]
    reaches = [_reach(column, span) for column, span in zip(columns, own, strict=True)]
    whole = [_reach(column, span) for column, span in zip(columns, spans, strict=True)]
    shares = [
        f"--s{i}:{100 * reach / most if most else 100:.0f}%"
        for i, (reach, most) in enumerate(zip(reaches, whole, strict=True))
    ]
    ends = [_legend(*scale)["ends"] for scale in zip(columns, own, reaches, strict=True)]
    tokens = [_token(sequence, position, columns, reaches) for position in range(len(sequence.texts))]
    return sequence, ";".join(shares), ends, tokens


def _colour(value: Number, column: Column, reach: float) -> str:
    """A CSS colour; "" for no colour."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return f"rgba({_BROKEN},{_OPACITY})"
    strength = abs(value - column.centre) / reach if reach else 0.0
    opacity = round(strength * _OPACITY, 2)
    return f"rgba({_ABOVE if value > column.centre else _BELOW},{opacity:g})" if opacity else ""


def _legend(column: Column, span: tuple[float, float], reach: float) -> dict[str, Any]:
    """The column's name, the ends of its scale with their colours, and what it is about."""
    ends = dict.fromkeys((span[0], column.centre, span[1]))  # two ends if all numbers are on one side of the centre
    return {
        "column": column.name,
        "ends": [(f"{end:.4g}", _colour(end, column, reach) or "transparent") for end in ends],
        "about": (f"{column.unit}. " if column.unit else "") + column.about,
    }


def _token(
    sequence: TokenSequence, position: int, columns: Sequence[Column], reaches: Sequence[float]
) -> dict[str, str]:
    """One token: its text, its colour in each column, and its numbers for the pointer."""
    text = visible(sequence.texts[position])
    said = f"“{text.rstrip(chr(10))}”" if text else "continues a character"
    style, tip = [], [f"token {sequence.ids[position]} {said}"]
    for index, (column, reach) in enumerate(zip(columns, reaches, strict=True)):
        values = sequence.columns.get(column.name)
        value = None if values is None else values[position]
        colour = _colour(value, column, reach)
        if colour:
            style.append(f"--c{index}:{colour}")
        if value is not None:
            tip.append(visible(f"{column.name} {value:.4g} {column.unit}".rstrip()))
    lines = Markup("\n").join(tip)  # escaped; these line ends stay line ends
    return {"text": sequence.texts[position] or "▫", "style": ";".join(style), "tip": lines}


PAGE_CSS = """
:root { color-scheme: light dark; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
"""
TOKEN_VIEW_CSS = """
.tv > input { position: absolute; opacity: 0; }
.tv > label { display: inline-block; margin: 0 .3rem .3rem 0; padding: .1rem .7rem; border: 1px solid #8888;
  border-radius: 1rem; cursor: pointer; }
.tv > input:checked + label { background: #6664; font-weight: 600; }
.tv > input:focus-visible + label { outline: 2px solid #216ebe; }
.tv-legend { display: none; margin: .3rem 0; font-size: .85rem; }
.tv > input:checked + label.tv-scale { font-weight: 600; }
.tv-end, .tv-range { font-variant-numeric: tabular-nums; } .tv-ranges { margin: .2rem 0; font-size: .8rem; } .tv-range { display: none; }
.tv > .tv-shared:checked ~ .tv-all .tv-ranges { display: none; }
.tv > .tv-shared:not(:checked) ~ .tv-legend .tv-end { display: none; }
.tv-end, .tv-own { padding: .1rem .5rem; border: 1px solid #8884; }
.tv-sequence h3 { margin: 1.2rem 0 .2rem; font-size: 1rem; }
p.tv-note, .tv-sequence p { margin: .2rem 0; font-size: .85rem; }
.tv-text { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.8 ui-monospace, monospace; }
.tv-token { position: relative; border-radius: 2px; background: var(--chosen, transparent); }
.tv-token:hover, .tv-token.tv-current { outline: 1px solid currentColor; }
.tv-token:hover::after, .tv-token.tv-current::after { content: attr(data-tip); position: absolute; left: 0; top: 100%; z-index: 1; white-space: pre;
  padding: .3rem .6rem; border-radius: 4px; background: #222; color: #eee; font-size: 12px; line-height: 1.4;
  pointer-events: none; }
""" + "".join(
    f"""{chosen} ~ .tv-all .tv-token {{ background: var(--c{index}, transparent); }}
{chosen} ~ .tv-shared:checked ~ .tv-all .tv-token {{
  background: color-mix(in srgb, var(--c{index}, transparent) var(--s{index}, 100%), transparent); }}
{chosen} ~ .tv-legend:nth-of-type({index + 1}) {{ display: block; }}
{chosen} ~ .tv-all .tv-range:nth-of-type({index + 1}) {{ display: inline; }}
"""
    for index, chosen in enumerate(
        f".tv > input[type=radio]:nth-of-type({index + 1}):checked" for index in range(MAX_COLUMNS)
    )
)
