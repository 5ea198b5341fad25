"""Token records on the page: sequences with each token coloured by its gradient, loss or another column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..inspect.token_page import MAX_COLUMNS, TokenSequence, token_view
from ..pages.render import render

#: The order of the columns. The page opens with the first, so columns that are equal for all tokens of a step, such as the
#: gradient of cross-entropy, come after those that differ between tokens.
ORDER = (
    "gradient",
    "value_gradient",
    "logprob",
    "value",
    "loss",
    "ratio",
    "advantage",
    "entropy",
    "weight",
    "sampling_logprob",
    "ref_logprob",
)
_VALUE_OF = {
    "token": "weighted mean over its tokens",
    "datum": "of the sequence",
    "pair": "of its pair",
    "batch": "of the batch",
}


def token_records_html(rows: Sequence[Mapping[str, Any]], name: str) -> Markup:
    """Buttons for the steps, and the sequences of each step, each with a colour scale of its own, or with one of the step.

    rows: of sequences.jsonl. name: an id for this run on the page, a letter and digits.
    """
    refused = [row for row in rows if "refused" in row]
    rows = [row for row in rows if "refused" not in row]
    steps = sorted({int(row["step"]) for row in rows})
    columns = _columns(rows)[:MAX_COLUMNS]
    views = [_view(step, rows, columns, f"{name}s{step}") for step in steps]
    return render("records", refused=refused[:3], views=views)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that hold any number; those that differ between tokens come first."""
    names = dict.fromkeys(column for row in rows for column in row["tokens"] if column not in ("text", "id"))
    used = [column for column in names if any(v is not None for row in rows for v in row["tokens"].get(column, ()))]
    by_step = [[row for row in rows if row["step"] == step] for step in {row["step"] for row in rows}]
    varying = {column for column in used if any(_varies(column, step_rows) for step_rows in by_step)}
    order = {column: i for i, column in enumerate(ORDER)}
    return sorted(used, key=lambda column: (column not in varying, order.get(column, len(order)), column))


def _view(
    step: int, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], name: str
) -> tuple[int, str, list[Any]]:
    """The step, its sequences as HTML, and a titled table of the targets of each that has several a position."""
    own = [row for row in rows if row["step"] == step]
    view = token_view([_sequence(row, columns) for row in own], columns or None, name=name)
    return step, view, [_candidates(row) for row in own if row.get("candidates")]


def _varies(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return len({value for row in rows for value in row["tokens"].get(column, ()) if value is not None}) > 1


def _sequence(row: Mapping[str, Any], columns: Sequence[str]) -> TokenSequence:
    tokens = row["tokens"]
    side = f", {row['side']}" if row.get("side") else ""
    notes = [f"{name} {_number(value)} ({_VALUE_OF.get(per, per)})" for name, (value, per) in row["losses"].items()]
    if row.get("embedding_gradient") is not None:
        notes.append(f"norm of the embedding's gradient {_number(row['embedding_gradient'])}")
    before, after = row.get("cut", (0, 0))
    if before or after:
        notes.append(f"{before} tokens before and {after} after are not shown")
    return TokenSequence(
        f"step {row['step']}: sequence {row['datum'] + 1} of {row['of']}{side}",
        tokens["text"],
        tokens["id"],
        {column: tokens[column] for column in columns if column in tokens},
        "; ".join(notes),
    )


def _candidates(row: Mapping[str, Any]) -> tuple[str, list[tuple[int, str, str]]]:
    """The likeliest targets of each position that has several."""
    lines = [
        (position, token, " · ".join(map(_candidate, candidates)))
        for position, (token, candidates) in enumerate(zip(row["tokens"]["text"], row["candidates"], strict=True))
        if candidates
    ]
    return f"step {row['step']}, sequence {row['datum'] + 1}: the targets of each position, likeliest first", lines


def _candidate(candidate: Sequence[Any]) -> str:
    token, weight, logprob, gradient = candidate
    return f"{token!r} weight {_number(weight)}, logprob {_number(logprob)}, gradient {_number(gradient)}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
