"""`lossbook runs ...`: plots and reports of finished or running runs."""

from __future__ import annotations

from pathlib import Path

import tyro

from ...datums import disk
from ...datums.errors import ConfigError, did_you_mean
from ..compare.folders import folders_of, labelled
from ..run.names import CURVE
from ..run.runs import writing_run

PICTURES = (".png", ".svg", ".pdf")


def plot(runs: tyro.conf.Positional[tuple[Path, ...]], keys: tuple[str, ...] = (), out: Path | None = None) -> None:
    """Plot the curves of one or several runs in one picture, labelled by their folders.

    Args:
        runs: folders of runs, or of sweeps and other folders with runs below them.
        keys: metrics to plot, one panel each (`--keys loss grad_norm`); by default the main ones.
        out: .png, .svg or .pdf; by default curve.png in the folder of a single run, runs.png here for several.
    """
    from ..diagnose.history import read_history
    from ..reports.plots import plot_runs

    folders = labelled(folders_of(runs, "plot"))
    known = dict.fromkeys(key for folder in folders.values() for key in read_history(folder).keys)
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"no run recorded {key!r}.{did_you_mean(key, known)} Recorded: {', '.join(sorted(known))}"
            )
    out = out or (next(iter(folders.values())) / CURVE if len(folders) == 1 else Path("runs.png"))
    if out.suffix not in PICTURES:
        raise ConfigError(f"--out {out}: the name of a picture must end in {', '.join(PICTURES)}")
    print(f"curve   {plot_runs(folders, out, keys or None)}")


def report(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> None:
    """Write an HTML report on one or several runs; it needs no other file and no network.

    Args:
        runs: folders of runs, or of sweeps and other folders with runs below them.
        out: the page; by default report.html in the folder of a single run, report.html here for several.
    """
    from ..reports.page import report_page

    folders = labelled(folders_of(runs, "report"))
    out = out or (next(iter(folders.values())) / "report.html" if len(folders) == 1 else Path("report.html"))
    if out.suffix not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: the name of a report must end in .html")
    page = report_page(folders)
    with writing_run(out):
        disk.make_folder(out.parent)
        disk.write_file(out, page)
    print(f"report  {out}")
