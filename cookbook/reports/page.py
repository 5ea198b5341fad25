"""A report on runs as one HTML page that needs no network and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...datums.errors import DataFileError
from ..diagnose.diagnostics import diagnose
from ..diagnose.history import History, read_history
from ..inspect.token_page import TOKEN_VIEW_CSS
from ..inspect.token_records import read_loss, read_sequences
from ..run.names import REPORT, SAMPLES
from ..run.runs import read_rows
from .charts import chart_html
from .loss_section import loss_html
from .markup import folded, json_block, text
from .panels import default_panels
from .plots import losses_of
from .sections import data_html, diagnoses_html, differing_settings_html, headline_html, samples_html, settings_html
from .style import CSS, SCRIPT
from .token_section import token_records_html


def report_page(folders: Mapping[str, str | Path]) -> str:
    """The page on runs, by label. Raises RunError for a folder without metrics, DataFileError for damaged files."""
    histories = {label: read_history(folder) for label, folder in folders.items()}
    charts, data = _charts_html(histories, folders)
    runs = {f"m{number}": label for number, label in enumerate(folders)}
    parts: list[str] = []
    if len(folders) > 1:
        settings = {label: history.settings for label, history in histories.items()}
        parts += ["<h2>What differs</h2>", differing_settings_html(settings), charts]
    for name, label in runs.items():
        if len(folders) > 1:
            parts += [f"<h2>{text(label)}</h2>", _run_html(name, histories[label], Path(folders[label]), heading="h3")]
        else:
            parts.append(_run_html(name, histories[label], Path(folders[label]), charts=charts))
    title = ", ".join(folders)
    return _page(title, "".join(parts), {"charts": data})


def _charts_html(
    histories: Mapping[str, History], folders: Mapping[str, str | Path]
) -> tuple[str, list[dict[str, Any]]]:
    runs = {label: history.rows for label, history in histories.items()}
    drawn = [chart_html(panel, runs) for panel in default_panels(runs, losses_of(folders))]
    drawn = [(html, data) for html, data in drawn if html]
    html = f'<h2>Curves</h2><div class="charts">{"".join(html for html, _ in drawn)}</div>'
    return html, [data for _, data in drawn]


def _run_html(name: str, history: History, folder: Path, *, charts: str = "", heading: str = "h2") -> str:
    """One run: headline numbers, diagnoses, curves, token records, loss, samples, settings and data."""
    rows = read_sequences(folder)
    loss = loss_html(history.settings, read_loss(folder), is_open=heading == "h2")
    parts = {
        "What looks wrong": diagnoses_html(diagnose(history)),
        "": charts,
        "Loss and gradient of each token": token_records_html(rows, name),
        "The loss": loss,
        "Answers": samples_html(read_rows(folder / SAMPLES)),
        "Settings and data": folded("settings", settings_html(history.settings))
        + folded("data", data_html(_data_report(folder))),
    }
    titled = ((f"<{heading}>{title}</{heading}>" if title else "") + body for title, body in parts.items() if body)
    return headline_html(history) + "".join(titled)


def _data_report(folder: Path) -> dict[str, Any] | None:
    path = folder / REPORT
    if not path.exists():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataFileError(f"{path} is damaged: {error}") from None
    return report if isinstance(report, dict) else None


def _page(title: str, body: str, data: Mapping[str, Any]) -> str:
    """The whole document. Its content policy forbids all requests, and all scripts but the one whose hash it names."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{TOKEN_VIEW_CSS}{CSS}</style>\n</head>\n"
        f"<body>\n<header><h1>{text(title)}</h1></header>\n<main>{body}</main>\n"
        f"{json_block('data', data)}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
