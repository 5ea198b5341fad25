"""A report on runs as one HTML page that needs no network and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..diagnose.diagnostics import diagnose
from ..diagnose.history import History, read_history
from ..inspect.token_page import TOKEN_VIEW_CSS
from ..inspect.token_records import read_sequences
from ..pages.render import render
from ..run.names import SAMPLES
from ..run.provenance import read_provenance
from ..run.records import read_rows
from .charts import chart_html
from .loss_section import loss_html
from .panels import default_panels
from .plots import COLOURS, losses_of
from .sections import (
    comparison_html,
    data_rows,
    diagnoses_html,
    differing_settings_html,
    headline_html,
    provenance_rows,
    samples_html,
)
from .style import CSS, SCRIPT
from .token_section import token_records_html


def report_page(folders: Mapping[str, str | Path]) -> str:
    """The page on runs, by label. Raises RunError for a folder without metrics, DataFileError for damaged files."""
    histories = {label: read_history(folder) for label, folder in folders.items()}
    runs = {label: history.rows for label, history in histories.items()}
    panels = [chart_html(panel, runs) for panel in default_panels(runs, losses_of(folders))]
    charts = [(figure, data) for figure, data in panels if figure]
    figures, is_alone = [figure for figure, _ in charts], len(folders) == 1
    body = render(
        "runs",
        comparison=None if is_alone else comparison_html(histories),
        differing=differing_settings_html({label: history.settings for label, history in histories.items()}),
        charts=figures,
        colours=len(COLOURS),
        runs=[
            (
                label,
                _run_html(f"m{number}", histories[label], Path(folder), figures if is_alone else [], is_alone=is_alone),
            )
            for number, (label, folder) in enumerate(folders.items())
        ],
    )
    return _page(", ".join(folders), body, {"charts": [data for _, data in charts]})


def _run_html(name: str, history: History, folder: Path, charts: Sequence[str], *, is_alone: bool) -> Markup:
    """One run: headline numbers, diagnoses, curves, token records, loss, samples, settings and data."""
    return render(
        "run",
        is_alone=is_alone,
        headline=headline_html(history),
        diagnoses=diagnoses_html(diagnose(history)),
        charts=charts,
        records=token_records_html(read_sequences(folder), name),
        loss=loss_html(history.settings, history.loss, is_open=is_alone),
        samples=samples_html(read_rows(folder / SAMPLES)),
        provenance=provenance_rows(read_provenance(folder)),
        settings=sorted(history.settings.items()),
        data=data_rows(history.data),
    )


def _page(title: str, body: Markup, data: Mapping[str, Any]) -> str:
    """The whole document. Its content policy forbids all requests, and all scripts but the one whose hash it names."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    css, script = Markup(TOKEN_VIEW_CSS + CSS), Markup(SCRIPT)
    return str(render("report", title=title, body=body, data=data, digest=digest, css=css, script=script))
