"""Printing a comparison of runs."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence

from ...datums.errors import ConfigError, did_you_mean
from ..terminal import console
from . import tables
from .folders import labelled
from .groups import compared, grouped, settings_text
from .numbers import main_keys
from .summary import RunSummary


def print_comparison(
    runs: Sequence[RunSummary], keys: Sequence[str] = (), *, json: bool = False, markdown: bool = False
) -> None:
    """Print the comparison of readable runs. Raises ConfigError for a metric that none recorded."""
    groups = grouped(runs, {folder: label for label, folder in labelled([run.folder for run in runs]).items()})
    keys = _known(keys, runs) or main_keys([run.numbers for run in runs], [run.settings for run in runs])
    if json:
        print(json_format.dumps(compared(groups, keys), indent=2))
        return
    if markdown:
        print(tables.markdown(groups, keys))
        return
    console().print(tables.comparison_table(groups, keys))
    for group in groups:
        if group.settings and group.label != settings_text(group.settings):
            console().print(f"{group.label} has {settings_text(group.settings)}")
    console().print(f"\n{tables.legend(groups, keys)}", style="dim")
    for run in runs:
        if run.state != "finished":
            of = "" if run.steps is None else f" of {run.steps}"
            console().print(f"{run.folder} is {run.state}: its numbers are those of step {run.step}{of}")


def _known(keys: Sequence[str], runs: Sequence[RunSummary]) -> list[str]:
    known = dict.fromkeys(key for run in runs for key in run.numbers)
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"no run recorded {key!r}.{did_you_mean(key, known)} Recorded: {', '.join(sorted(known))}"
            )
    return list(keys)
