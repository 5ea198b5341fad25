"""`lossbook runs ...`: pictures and reports of finished or running runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from ...datums.errors import ConfigError, did_you_mean
from ..run.names import CURVE

PICTURES = (".png", ".svg", ".pdf")


def plot(runs: tyro.conf.Positional[tuple[Path, ...]], keys: tuple[str, ...] = (), out: Path | None = None) -> None:
    """Draw the curves of one or several runs into one picture, labelled by their folders.

    Args:
        runs: folders of runs.
        keys: what to draw, a panel each (`--keys loss grad_norm`); otherwise what the recipe is watched by.
        out: the picture, .png, .svg or .pdf; of one run curve.png in its folder, of several runs.png here.
    """
    from ..diagnose.history import read_history
    from ..reports.plots import plot_runs

    folders = labelled(runs)
    known = dict.fromkeys(key for folder in folders.values() for key in read_history(folder).keys)
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"no run recorded {key!r}.{did_you_mean(key, known)} Recorded are: {', '.join(sorted(known))}"
            )
    out = out or (runs[0] / CURVE if len(runs) == 1 else Path("runs.png"))
    if out.suffix not in PICTURES:
        raise ConfigError(f"--out {out}: a picture's name ends in {', '.join(PICTURES)}")
    print(f"curve   {plot_runs(folders, out, keys or None)}")


def report(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> None:
    """Write one HTML page about one or several runs, which needs nothing beside it and no network.

    Args:
        runs: folders of runs.
        out: the page; of one run report.html in its folder, of several report.html here.
    """
    from ..reports.page import report_page

    folders = labelled(runs)
    out = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if out.suffix not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: a report's name ends in .html")
    page = report_page(folders)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    print(f"report  {out}")


def labelled(runs: Sequence[Path]) -> dict[str, Path]:
    """Folders by a label each: their names, with as much of the path before them as it takes to tell them apart."""
    if not runs:
        raise ConfigError("name at least one run's folder: lossbook runs plot runs/sft")
    paths = [path.resolve() for path in runs]
    if len(set(paths)) != len(paths):
        raise ConfigError("one run is named twice")
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    labels = ["/".join(path.parts[-length:]) for path in paths]
    return dict(zip(labels, runs, strict=True))
