"""The loss microscope on the page: recorded sequences, coloured by what the loss made of each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..inspect.token_page import TokenSequence, token_view_html
from .markup import folded, table, text

#: What is coloured by, in this order, of what was recorded. The first is chosen when the page opens, so a column that is the
#: same for all tokens of a step, such as cross-entropy's gradient, comes behind those that tell tokens apart.
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
_VALUE_OF = {"token": "its tokens' weighted mean", "datum": "the sequence", "pair": "its pair", "batch": "the batch"}


def microscope_html(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """A chooser of steps, and each step's sequences with colours on a scale of their own: late gradients are small.

    rows: of sequences.jsonl. name: of this run's chooser on the page, a letter and digits.
    """
    refused = [row for row in rows if "refused" in row]
    rows = [row for row in rows if "refused" not in row]
    said = "".join(f"<p>Step {row['step']} could not be looked into: {text(row['refused'])}</p>" for row in refused[:3])
    if not rows:
        return said or "<p>No sequences.jsonl: the recipe recorded none.</p>"
    steps = sorted({int(row["step"]) for row in rows})
    columns = _columns(rows)
    buttons = "".join(
        f'<button type="button" data-step="{step}" aria-pressed="false">{step}</button>' for step in steps
    )
    views = "".join(_step_html(step, rows, columns, f"{name}s{step}") for step in steps)
    return f'{said}<div class="microscope"><div class="steps"><span>step</span>{buttons}</div>{views}</div>'


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that hold any number, those first that tell tokens apart."""
    there = dict.fromkeys(column for row in rows for column in row["tokens"] if column not in ("text", "id"))
    used = [column for column in there if any(v is not None for row in rows for v in row["tokens"].get(column, ()))]
    return sorted(
        used,
        key=lambda column: (
            not any(
                _varies(column, [row for row in rows if row["step"] == step]) for step in {row["step"] for row in rows}
            ),
            ORDER.index(column) if column in ORDER else len(ORDER),
            column,
        ),
    )


def _step_html(step: int, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], name: str) -> str:
    own = [row for row in rows if row["step"] == step]
    view = token_view_html([_sequence(row, columns) for row in own], columns or None, name=name)
    targets = "".join(_candidates_html(row) for row in own if row.get("candidates"))
    return f'<div class="step" data-step="{step}">{view}{targets}</div>'


def _varies(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return len({value for row in rows for value in row["tokens"].get(column, ()) if value is not None}) > 1


def _sequence(row: Mapping[str, Any], columns: Sequence[str]) -> TokenSequence:
    tokens = row["tokens"]
    side = f", {row['side']}" if row.get("side") else ""
    said = [f"{name} {_number(value)} ({_VALUE_OF.get(per, per)})" for name, (value, per) in row["losses"].items()]
    if row.get("embedding_gradient") is not None:
        said.append(f"norm of the embedding's gradient {_number(row['embedding_gradient'])}")
    before, behind = row.get("cut", (0, 0))
    if before or behind:
        said.append(f"{before} tokens before and {behind} behind are left out")
    return TokenSequence(
        f"step {row['step']}: sequence {row['datum'] + 1} of {row['of']}{side}",
        tokens["text"],
        tokens["id"],
        {column: tokens[column] for column in columns if column in tokens},
        "; ".join(said),
    )


def _candidates_html(row: Mapping[str, Any]) -> str:
    """The likeliest targets of each position, where there are several."""
    lines = [
        (
            position,
            tokens_text,
            " · ".join(
                f"{c[0]!r} weight {_number(c[1])}, logprob {_number(c[2])}, gradient {_number(c[3])}" for c in found
            ),
        )
        for position, (tokens_text, found) in enumerate(zip(row["tokens"]["text"], row["candidates"], strict=True))
        if found
    ]
    title = f"step {row['step']}, sequence {row['datum'] + 1}: the targets of each position, likeliest first"
    return folded(title, table(lines, head=("position", "token", "targets")))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
