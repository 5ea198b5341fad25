"""`lossbook runs ...`: plots and reports of finished or running runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from ...datums import disk
from ...datums.errors import ConfigError, did_you_mean
from ..run.names import CURVE
from ..run.runs import writing_run

PICTURES = (".png", ".svg", ".pdf")


def plot(runs: tyro.conf.Positional[tuple[Path, ...]], keys: tuple[str, ...] = (), out: Path | None = None) -> None:
    """Plot the curves of one or several runs in one picture, labelled by their folders.

    Args:
        runs: folders of runs.
        keys: metrics to plot, one panel each (`--keys loss grad_norm`); by default the main ones.
        out: .png, .svg or .pdf; by default curve.png in the folder of a single run, runs.png here for several.
    """
    from ..diagnose.history import read_history
    from ..reports.plots import plot_runs

    folders = labelled(runs)
    known = dict.fromkeys(key for folder in folders.values() for key in read_history(folder).keys)
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"no run recorded {key!r}.{did_you_mean(key, known)} Recorded: {', '.join(sorted(known))}"
            )
    out = out or (runs[0] / CURVE if len(runs) == 1 else Path("runs.png"))
    if out.suffix not in PICTURES:
        raise ConfigError(f"--out {out}: the name of a picture must end in {', '.join(PICTURES)}")
    print(f"curve   {plot_runs(folders, out, keys or None)}")


def report(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> None:
    """Write an HTML report on one or several runs; it needs no other file and no network.

    Args:
        runs: folders of runs.
        out: the page; by default report.html in the folder of a single run, report.html here for several.
    """
    from ..reports.page import report_page

    folders = labelled(runs)
    out = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if out.suffix not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: the name of a report must end in .html")
    page = report_page(folders)
    with writing_run(out):
        disk.make_folder(out.parent)
        disk.write_file(out, page)
    print(f"report  {out}")


def labelled(runs: Sequence[Path]) -> dict[str, Path]:
    """Folders by label: the folder's name, with as many parent folders as needed to make labels unique."""
    if not runs:
        raise ConfigError("name at least one run's folder: lossbook runs plot runs/sft")
    paths = [path.resolve() for path in runs]
    if len(set(paths)) != len(paths):
        raise ConfigError("a run is named twice")
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    labels = ["/".join(path.parts[-length:]) for path in paths]
    return dict(zip(labels, runs, strict=True))
