"""`lossbook runs list` and `lossbook runs compare`: which runs there are, and how they differ."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ...datums.errors import ConfigError, RunError, did_you_mean

if TYPE_CHECKING:
    from ..compare.summary import RunSummary

#: What `runs list` sorts by beside metrics.
SORTS = ("date", "name", "state", "recipe", "model", "loss", "steps", "took")


def list_runs(
    folder: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="FOLDER")] = None,
    sort: str = "date",
    reverse: bool = False,
    json: bool = False,
) -> None:
    """List the runs in a folder and up to four levels below it: state, steps, last numbers, settings, date. Damaged ones too.

    Args:
        folder: where to look; by default runs/, or the working folder where there is no runs/.
        sort: date (newest first), name, state, recipe, model, loss, steps, took, or a metric (best first).
        reverse: in the opposite order.
        json: print JSON instead: a list with all settings and final numbers.
    """
    from ..compare.folders import runs_below, usual_folder
    from ..compare.summary import summarize
    from ..compare.tables import runs_table
    from ..terminal import console, plain_text

    where = usual_folder() if folder is None else folder
    if not where.is_dir():
        raise RunError(f"there is no folder {where}")
    runs = _sorted([summarize(path) for path in runs_below(where)], sort)
    runs = runs[::-1] if reverse else runs
    if json:
        print(json_format.dumps([run.as_dict() for run in runs], indent=2))
        return
    if not runs:
        print(f"no runs in {where.resolve()} and four levels below; `lossbook train sft --out FOLDER` makes one")
        return
    whole = [run for run in runs if run.state != "damaged"]
    if whole:
        console().print(runs_table(whole, [_name(run.folder, where) for run in whole]))
    for run in runs:
        if run.state == "damaged":
            print(plain_text(f"damaged: {_name(run.folder, where)}: {run.problem}"))


def compare_runs(
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")],
    keys: tuple[str, ...] = (),
    json: bool = False,
    markdown: bool = False,
) -> int:
    """Compare the final numbers of runs. Runs that differ in their seeds alone are one row: mean, interval, n.

    Args:
        runs: folders of runs, or of sweeps and other folders with runs below them. The first is what others are compared to.
        keys: metrics to compare (`--keys held_out_nll grad_norm`); by default those of the held-out data.
        json: print JSON instead.
        markdown: print a Markdown table instead.
    """
    from ..compare.folders import folders_of
    from ..compare.show import print_comparison
    from ..compare.summary import summarize

    if json and markdown:
        raise ConfigError("choose one of --json and --markdown")
    summaries = [summarize(folder) for folder in dict.fromkeys(folders_of(runs, "compare"))]
    readable = [run for run in summaries if run.state != "damaged" and run.numbers]
    for run in summaries:
        if run not in readable:
            print(f"left out: {run.folder}: {run.problem or 'it has no numbers yet'}", file=sys.stderr)
    if not readable:
        raise RunError("none of these runs has numbers to compare")
    print_comparison(readable, keys, json=json, markdown=markdown)
    return 0 if len(readable) == len(summaries) else 1


def _sorted(runs: list[RunSummary], sort: str) -> list[RunSummary]:
    """The runs in an order; those without the metric last. Raises ConfigError for what is neither a column nor a metric."""
    from ..diagnose.numbers import direction

    attributes: dict[str, Any] = {
        "name": lambda run: str(run.folder),
        "steps": lambda run: -run.step,
        "took": lambda run: -(run.seconds or 0),
        **{name: lambda run, name=name: getattr(run, name) for name in ("state", "recipe", "model", "loss")},
    }
    if sort == "date":
        return sorted(runs, key=lambda run: run.date, reverse=True)
    if sort in attributes:
        return sorted(runs, key=attributes[sort])
    known = dict.fromkeys([*SORTS, *(key for run in runs for key in run.numbers)])
    if sort not in known:
        raise ConfigError(f"--sort {sort}: no column and no recorded metric.{did_you_mean(sort, known)}")
    sign = direction(sort) or 1
    return sorted(runs, key=lambda run: -sign * run.numbers.get(sort, -sign * float("inf")))


def _name(folder: Path, where: Path) -> str:
    """A folder's name below where it was looked for."""
    relative = folder.relative_to(where)
    return str(relative) if relative.parts else str(folder)
