"""The parts of a report that are text and tables; the templates lie in `pages/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..diagnose.diagnosis import Diagnosis
from ..diagnose.history import History
from ..diagnose.numbers import compare, final_numbers
from ..pages.render import render, shown
from ..run.provenance import Provenance

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


def provenance_rows(parts: Sequence[Provenance]) -> list[tuple[str, Any]]:
    """Where the run's numbers come from, a row per subject; of a resumed run each part that began anew is said."""
    if not parts:
        return []
    first, last = parts[0], parts[-1]
    share = f" of {last.parameters:,} ({last.parameters_trained / last.parameters:.2%})" if last.parameters else ""
    rows: list[tuple[str, Any]] = [
        ("date", first.date.replace("T", " ").replace("+00:00", " UTC")),
        ("duration", f"{duration(sum(part.seconds for part in parts))}, without loading, until step {last.to_step:,}"),
        ("command", first.command),
        *(
            (f"continued from step {part.from_step:,}", f"{part.date[:16].replace('T', ' ')}: {part.command}")
            for part in parts[1:]
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in last.versions.items() if version)),
        ("machine", f"{last.device}; {last.platform}"),
        (
            "commit",
            f"{last.commit}{', with changes' if last.dirty else ''}" if last.commit else "not in a git repository",
        ),
        ("parameters trained", f"{last.parameters_trained:,}{share}"),
        ("dtype", last.dtype),
    ]
    return rows + ([("rows", last.rows)] if last.rows is not None else []) + [("steps asked for", last.steps)]


def duration(seconds: float) -> str:
    """Such as "12 s", "3:05 min" or "2:10:00 h"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"


def comparison_html(histories: Mapping[str, History]) -> Markup | None:
    """The table of the runs' final numbers; None where they have no metric in common that tells anything."""
    compared = compare(histories)
    if not compared.labels:
        return None
    rows = [
        (
            row.name,
            [
                ("–" if key not in row.numbers else str(row.numbers[key]), compared.best.get(key) == number)
                for key in compared.labels
            ],
        )
        for number, row in enumerate(compared.rows)
    ]
    is_grouped = any(len(row.runs) > 1 for row in compared.rows)
    groups = [(row.name, row.runs) for row in compared.rows if len(row.runs) > 1 and row.name != ", ".join(row.runs)]
    return render("comparison", heads=list(compared.labels.values()), rows=rows, is_grouped=is_grouped, groups=groups)


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
