"""Comparisons and lists of runs as tables for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from ..diagnose.history import SHARE
from ..diagnose.intervals import Mean
from ..diagnose.numbers import direction
from ..terminal import Column, Table, table
from .groups import Group, best
from .summary import RunSummary

_DIRECTIONS = {1: "higher is better", -1: "lower is better", 0: ""}
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def comparison_table(groups: Sequence[Group], keys: Sequence[str]) -> Table:
    """A block per metric, with a row per group: the best marked, mean, interval, number of seeds, difference to the first."""
    several = len(groups) > 1
    has_seeds = any(len(group.runs) > 1 for group in groups)
    columns = [Column("", text=True), Column("", style="bold"), Column("mean" if has_seeds else "value", right=True)]
    columns += [Column("± 95 %", right=True), Column("n", right=True)] if has_seeds else []
    columns += [Column("minus the first", right=True)] if several else []
    rows: list[tuple[str, ...]] = []
    for key in keys:
        rows.append((", ".join(filter(None, (key, _DIRECTIONS[direction(key)]))),))
        winners = best(groups, key)
        for group in groups:
            mean = group.mean(key)
            cells = [group.label, "*" if group.label in winners else "", _number(mean)]
            cells += [_half(mean), str(mean.count if mean else 0)] if has_seeds else []
            cells += [_difference(group, groups[0], key)] if several else []
            rows.append(tuple(cells))
    return table(columns, rows)


def legend(groups: Sequence[Group], keys: Sequence[str]) -> str:
    """What the numbers of a comparison are."""
    parts = [f"* best. held_out_...: the last evaluation; others: the mean over the last 1/{SHARE} of the steps."]
    if any(len(group.runs) > 1 for group in groups):
        parts.append("± 95 %: half the interval of the mean over n seeds, by Student's t.")
    if any(group.minus(groups[0], key) for group in groups[1:] for key in keys):
        parts.append("minus the first: the mean of the differences at the seeds that both have.")
    return " ".join(
        parts if any(best(groups, key) for key in keys) else [parts[0].removeprefix("* best. "), *parts[1:]]
    )


def markdown(groups: Sequence[Group], keys: Sequence[str]) -> str:
    """A Markdown table with a row per group and a column per metric; the best are bold."""
    head = ["", "n", *(f"{key}{_ARROWS[direction(key)]}" for key in keys)]
    lines = [_row(head), _row(["---", *["---:"] * (len(keys) + 1)])]
    for group in groups:
        cells = [_marked(group, groups, key) for key in keys]
        lines.append(_row([_escaped(group.label), str(len(group.runs)), *cells]))
    return "\n".join(lines)


def runs_table(runs: Sequence[RunSummary], names: Sequence[str]) -> Table:
    """A row per run that can be read."""
    columns = ["run", "state", Column("steps", right=True), "last number", "loss", "began", "recipe", "model"]
    rows = [
        (
            name,
            run.state,
            f"{run.step}/{'?' if run.steps is None else run.steps}",
            f"{run.headline[0]} {run.headline[1]:.4g}" if run.headline else "",
            run.loss,
            run.date[:16].replace("T", " "),
            run.recipe,
            run.model,
            duration(run.seconds),
        )
        for name, run in zip(names, runs, strict=True)
    ]
    return table([*columns, Column("took", right=True)], rows)


def duration(seconds: float | None) -> str:
    """3 s, 12 min, 5.2 h; "" where it is not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _number(mean: Mean | None) -> str:
    return "–" if mean is None else f"{mean.value:.4g}"


def _half(mean: Mean | None) -> str:
    return "" if mean is None or mean.half_width is None else f"{mean.half_width:.2g}"


def _difference(group: Group, first: Group, key: str) -> str:
    minus = None if group is first else group.minus(first, key)
    if minus is None:
        return ""
    return f"{minus.value:+.2g}" + ("" if minus.half_width is None else f" ± {minus.half_width:.2g}")


def _marked(group: Group, groups: Sequence[Group], key: str) -> str:
    mean = group.mean(key)
    text = _number(mean) + (f" ± {_half(mean)}" if _half(mean) else "")
    return f"**{text}**" if group.label in best(groups, key) else text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
