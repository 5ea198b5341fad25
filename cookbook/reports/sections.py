"""The parts of a report that are text and tables; the templates lie in `pages/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..diagnose.diagnosis import Diagnosis
from ..diagnose.history import History
from ..diagnose.numbers import final_numbers
from ..pages.render import render, shown

#: Cards with numbers at the top of a report.
MOST_HEADLINES = 4
_MARK = {"problem": "✖", "warning": "▲", "note": "●"}


def headline_html(history: History) -> Markup:
    """Cards with the final numbers of the main metrics, of which steps they are, and what they were at the start."""
    cards = [
        (number.label, f"{number.value:.3g}", number.where, f"{number.first:.3g} at the start ({number.first_where})")
        if number.steps != number.first_steps
        else (number.label, f"{number.value:.3g}", number.where, "")
        for number in final_numbers(history)[:MOST_HEADLINES]
    ]
    steps = max((int(row["step"]) for row in history.rows), default=0)
    tokens, speed = history.find("response_tokens"), history.find("tokens_per_second")
    learned = f"{tokens.values.sum():,.0f} learned tokens" if tokens is not None else ""
    cards.append(("steps", f"{steps:,}", learned, ""))
    if speed is not None:
        cards.append(("tokens/s", f"{speed.last:,.0f}", "training only, mean so far", ""))
    return render("headline", about=_about(history.settings), cards=cards)


def _about(settings: Mapping[str, Any]) -> str:
    """One line with model, loss, data and learning rate."""
    named = [
        ("model", "{}"),
        ("loss", "{}"),
        ("data", "data {}"),
        ("task", "task {}"),
        ("learning_rate", "learning rate {}"),
    ]
    given = {key: value for key, value in settings.items() if value is not None}
    if "model" in given:
        given["model"] = Path(str(given["model"])).name  # the last part of a path or a hub id
    parts = [form.format(shown(given[key])) for key, form in named if key in given]
    return " · ".join(parts)


def diagnoses_html(diagnoses: Sequence[Diagnosis]) -> Markup:
    """The title, evidence, advice and reason of each diagnosis."""
    return render("diagnoses", diagnoses=diagnoses, marks=_MARK)


def differing_settings_html(runs: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The settings in which runs differ."""
    keys = sorted({key for settings in runs.values() for key in settings} - {"out"})
    rows = [
        (key, *(shown(settings[key]) if key in settings else "–" for settings in runs.values()))
        for key in keys
        if len({str(settings.get(key)) for settings in runs.values()}) > 1
    ]
    return render("differing", rows=rows, head=("setting", *runs))


def data_rows(report: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """data_report.json as rows of a table: how many rows were kept, truncated and dropped."""
    return _flat(report or {})


def _flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, entry in value.items():
        name = f"{before}{key}"
        rows += _flat(entry, f"{name}: ") if isinstance(entry, Mapping) else [(name, entry)]
    return rows


def samples_html(rows: Sequence[Mapping[str, Any]], most: int = 6) -> Markup | None:
    """The model's answers at the first and the last step with samples; None without any."""
    steps = sorted({row["step"] for row in rows})
    tables: list[tuple[int, tuple[str, ...], list[list[Any]]]] = []
    for step in dict.fromkeys((steps[0], steps[-1])) if steps else ():
        own = [row for row in rows if row["step"] == step][:most]
        columns = [key for key in dict.fromkeys(key for row in own for key in row) if key != "step"]
        cells = [[i + 1, *(row.get(key, "") for key in columns)] for i, row in enumerate(own)]
        tables.append((step, ("", *columns), cells))
    return render("samples", steps=tables) if tables else None
