"""Datums as text, coloured by the weight of each token."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..chat.template import decoded
from ..checks.validation import count_labels
from ..errors import LossbookError, RowLeftOut, ShapeError, located
from ..types import Datum
from .formats import known_format
from .jsonl import Row
from .rows import datums_from_row
from .sources import Source, first_rows

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: Marks around learned tokens in output without colour.
LEARNED = ("«", "»")
#: Most tokens that spell one character: UTF-8 has at most four bytes.
_LONGEST_CHARACTER = 4
#: The result of decoding bytes that are not a character.
_BROKEN = "\ufffd"
_VISIBLE = {"\n": "↵\n", "\t": "⇥"}
#: Unicode categories: controls, formatting (also right-to-left overrides), line and paragraph separators.
_INVISIBLE = {"Cc", "Cf", "Zl", "Zp"}


def render_datum(datum: Datum, tokenizer: Any, *, marks: bool = False) -> Text:
    """The datum's tokens as a rich Text: weight 0 dim, positive weights green, negative weights red.

    Brightness grows with the size of the weight, relative to the datum's largest. Special tokens are underlined, line
    ends are shown as ↵, other invisible characters by their codes. For output without colour `marks=True` also puts «»
    around learned tokens, followed by the weight where it is not 1. Raises ShapeError for targets of shape [N, K].
    """
    from rich.text import Text

    tokens, weights = datum_tokens(datum)
    largest = float(np.abs(weights).max(initial=0)) or 1.0
    special = set(getattr(tokenizer, "all_special_ids", ())) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    text = Text()
    before = 0.0
    for start, end in _characters(tokens, weights, tokenizer):
        weight = float(weights[start])
        if marks and weight != before:
            text.append(_closing(before) + (LEARNED[0] if weight else ""))
        before = weight
        shown = visible(_decoded(tokens, start, end, tokenizer)) or f"⟨{tokens[start]}⟩"
        text.append(shown, style=_style(weight / largest, underlined=tokens[start] in special))
    if marks:
        text.append(_closing(before))
    return text


def visible(text: str) -> str:
    """The text with line ends as ↵, tabs as ⇥, and control and formatting characters by their codes, such as `\\x1b`.

    A data file can therefore neither hide text in the terminal nor send commands to it.
    """
    return "".join(_VISIBLE.get(c) or (_code(c) if unicodedata.category(c) in _INVISIBLE else c) for c in text)


def token_texts(tokens: Sequence[int], tokenizer: Any) -> list[str]:
    """The text of each token; joined they are the whole text.

    Where several tokens spell one character, the first has the character and the others "".
    """
    texts = [""] * len(tokens)
    for start, end in _characters(tokens, np.zeros(len(tokens)), tokenizer):
        texts[start] = _decoded(tokens, start, end, tokenizer)
    return texts


def show_file(source: Source, tokenizer: Any, count: int = 3, *, console: Console | None = None, **options: Any) -> int:
    """Print the first `count` rows of a file or another source (see `read_rows`) with their learned tokens.

    options: those of `datum_from_row` (`train_on`, `max_length`, ...). Without colour (NO_COLOR, a pipe) learned tokens
    are in «». A last line says if the source has more rows. Returns the number of rows shown. Errors name the row.
    """
    from rich.console import Console

    console = console or Console()
    without_colour = console.no_color or not console.is_terminal
    rows, is_more = first_rows(source, count)
    for row in rows:
        named = named_datums(row, tokenizer, **options)
        if not named:
            console.print(f"{row.place}: left out: its weight is 0\n", style="bold", markup=False, highlight=False)
        for name, datum in named:
            console.print(f"{name}: {summary(datum)}", style="bold", markup=False, highlight=False, soft_wrap=True)
            console.print(render_datum(datum, tokenizer, marks=without_colour), soft_wrap=True)
            console.print()
    if is_more:
        console.print(more_rows(len(rows)), style="dim", markup=False, highlight=False, soft_wrap=True)
    return len(rows)


def more_rows(shown: int) -> str:
    """The sentence that says that a source has more rows than these."""
    return f"There are more rows than {'this one' if shown == 1 else f'these {shown}'}; --count N shows N."


def named_datums(row: Row, tokenizer: Any, **options: Any) -> list[tuple[str, Datum]]:
    """The datums of a row, each with a name: the row's place and, in a pair, the side, in a packed row the number.

    Empty for a row of weight 0. Errors name the row.
    """
    try:
        datums = datums_from_row(row, tokenizer, **options)
    except RowLeftOut:
        return []
    except LossbookError as error:
        raise located(error, row.place) from error
    if len(datums) == 1:
        return [(row.place, datums[0])]
    is_pair = known_format(row) == "preference pair"
    names = ("chosen", "rejected") if is_pair else [f"sequence {number}" for number in range(1, len(datums) + 1)]
    return [(f"{row.place}, {name}", datum) for name, datum in zip(names, datums, strict=True)]


def summary(datum: Datum) -> str:
    """`25 tokens, 3 learned`, and the label of a labelled completion."""
    label = datum.loss_fn_inputs.get("label")
    labelled = "" if label is None else f", label {label.data[0]}"
    return f"{datum.model_input.length + 1} tokens, {count_labels(datum)} learned{labelled}"


def datum_tokens(datum: Datum) -> tuple[list[int], np.ndarray]:
    """All N + 1 tokens of the sequence and their weights. The first is never a target, so its weight is 0.

    Without `target_tokens`: the N input tokens, and weights of 0. Raises ShapeError for targets of shape [N, K].
    """
    tokens = datum.model_input.to_ints()
    targets = datum.loss_fn_inputs.get("target_tokens")
    if targets is None:
        return tokens, np.zeros(len(tokens))
    if len(targets.shape) != 1:
        raise ShapeError(f"target_tokens of shape {targets.shape} are not one text; only [N] can be shown")
    weights = datum.loss_fn_inputs.get("weights")
    numbers = np.ones(len(tokens)) if weights is None else weights.to_numpy().reshape(-1)
    return [*tokens[:1], *targets.to_numpy().tolist()], np.concatenate([[0.0], numbers])


def _characters(tokens: Sequence[int], weights: np.ndarray, tokenizer: Any) -> Iterator[tuple[int, int]]:
    """Spans (start, end) of one token, or of several of equal weight that together spell a character."""
    start = 0
    while start < len(tokens):
        ends = range(start + 1, min(start + _LONGEST_CHARACTER, len(tokens)) + 1)
        equal = [end for end in ends if (weights[start:end] == weights[start]).all()]
        whole = (end for end in equal if _BROKEN not in _decoded(tokens, start, end, tokenizer))
        end = next(whole, start + 1)
        yield start, end
        start = end


def _decoded(tokens: Sequence[int], start: int, end: int, tokenizer: Any) -> str:
    def decode(ids: Sequence[int]) -> str:
        return decoded(ids, tokenizer, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    alone = decode(tokens[start:end])
    if start == 0:
        return alone
    # some tokenizers drop the space before a text's first word, so decode together with the token before
    before, together = decode(tokens[start - 1 : start]), decode(tokens[start - 1 : end])
    return together[len(before) :] if _BROKEN not in before and together.startswith(before) else alone


def _style(level: float, underlined: bool) -> str:
    """A rich style. level: the weight divided by the datum's largest, in [-1, 1]."""
    if level == 0:
        colour = "dim"
    else:
        bright = 110 + round(145 * min(abs(level), 1.0))
        colour = f"rgb(0,{bright},0)" if level > 0 else f"rgb({bright},60,60)"
    return f"{colour} underline" if underlined else colour


def _closing(weight: float) -> str:
    if not weight:
        return ""
    return LEARNED[1] if weight == 1 else f"{LEARNED[1]}×{weight:g} "


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
