"""What became of the rows of a data set: kept, truncated, dropped, and how many label tokens that cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .errors import DatumDropped, EmptyLossError, LossbookError, TruncationError, located
from .truncation import Cut, watch_cuts
from .types import Datum, as_datum
from .validation import check_datum, count_labels

#: How many rows are named for each kind of problem.
EXAMPLES = 3
#: Which lengths are shown: the shortest, the longest, and those that 50, 90 and 99 % of datums do not exceed.
QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass
class Problem:
    """How often one kind of problem occurred, and the first rows it occurred in."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, row: str) -> None:
        """One more row."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(row)


@dataclass
class DataReport:
    """Counts over the rows of a data set; reports of its parts merge into the report of the whole.

    rows = kept + dropped; truncated rows are among the kept. Label tokens are those of nonzero weight: the kept ones
    are in the datums, the lost ones were cut off or were in rows dropped for their length. Rows dropped for other
    reasons were never built, so their label tokens are unknown and not counted.

    lengths: how many datums have each number of tokens (before the shift). problems: by the error's name.
    """

    rows: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: int = 0
    datums: int = 0
    labels_kept: int = 0
    labels_lost: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    problems: dict[str, Problem] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of all datums, before the shift."""
        return sum(length * count for length, count in self.lengths.items())

    @property
    def label_tokens_lost_frac(self) -> float:
        """Lost label tokens as a part of all known ones; 0 when there are none."""
        return self.labels_lost / max(self.labels_kept + self.labels_lost, 1)

    def length_quantiles(self) -> dict[str, int]:
        """The lengths at `QUANTILES`, each one that occurs (nearest rank); empty without datums."""
        lengths = sorted(self.lengths)
        if not lengths:
            return {}
        reached = np.cumsum([self.lengths[length] for length in lengths])
        ranks = [max(1, int(np.ceil(q * reached[-1]))) for q in QUANTILES]
        return {
            f"{q:g}": lengths[int(np.searchsorted(reached, rank))] for q, rank in zip(QUANTILES, ranks, strict=True)
        }

    def merge(self, other: DataReport) -> DataReport:
        """The report of both parts together; examples of this one come first."""
        merged = DataReport(lengths=self.lengths + other.lengths)
        for name in ("rows", "kept", "truncated", "dropped", "datums", "labels_kept", "labels_lost"):
            setattr(merged, name, getattr(self, name) + getattr(other, name))
        for part in (self, other):
            for kind, problem in part.problems.items():
                total = merged.problems.setdefault(kind, Problem())
                total.count += problem.count
                total.examples = (total.examples + problem.examples)[:EXAMPLES]
        return merged

    def render(self) -> str:
        """Plain text, a line for each subject."""
        lines = [f"rows    {self.rows}: {self.kept} kept ({self.truncated} truncated), {self.dropped} dropped"]
        quantiles = self.length_quantiles()
        shown = ", ".join(
            f"{name} {length}"
            for name, length in zip(("min", "median", "90%", "99%", "max"), quantiles.values(), strict=False)
        )
        lines.append(f"tokens  {self.tokens} in {self.datums} datums" + (f"; length {shown}" if shown else ""))
        lost = f"{self.labels_lost} lost ({self.label_tokens_lost_frac:.1%})"
        lines.append(f"labels  {self.labels_kept} kept, {lost}")
        for kind, problem in self.problems.items():
            more = f" and {problem.count - len(problem.examples)} more" if problem.count > len(problem.examples) else ""
            lines.append(f"{kind}  {problem.count}: {'; '.join(problem.examples)}{more}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """A JSON object with every count, the length quantiles and the problems."""
        names = ("rows", "kept", "truncated", "dropped", "datums", "tokens", "labels_kept", "labels_lost")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        values["label_tokens_lost_frac"] = self.label_tokens_lost_frac
        values["length_quantiles"] = self.length_quantiles()
        values["problems"] = {kind: {"count": p.count, "examples": p.examples} for kind, p in self.problems.items()}
        return json.dumps(values, indent=2)

    def _note(self, kind: str, row: str) -> None:
        self.problems.setdefault(kind, Problem()).note(row)

    def _keep(self, datums: Sequence[Datum], cuts: Sequence[Cut], row: str) -> None:
        self.kept += 1
        self.datums += len(datums)
        self.lengths.update(datum.model_input.length + 1 for datum in datums)
        self.labels_kept += sum(map(count_labels, datums))
        self.labels_lost += sum(cut.labels_lost for cut in cuts)
        if cuts:
            self.truncated += 1
            self._note("truncated", row)

    def _drop(self, error: LossbookError, cuts: Sequence[Cut], row: str) -> None:
        self.dropped += 1
        self.labels_lost += sum(cut.labels_lost for cut in cuts)
        if isinstance(error, TruncationError):
            self.labels_lost += error.labels
        self._note(type(error).__name__, f"{row}: {error}")


def build_datums(
    rows: Iterable[Any],
    make: Callable[[Any], Datum | Sequence[Datum]],
    *,
    on_error: Literal["error", "drop"] = "error",
) -> tuple[list[Datum], DataReport]:
    """Apply a builder to each row and count what became of it.

    rows      anything; rows read by `read_jsonl` are named by file and line, others `row 0`, `row 1`, ...
    make      one row to one datum or several (a pair), for instance
              `lambda row: datum_from_messages(row["messages"], tokenizer, max_length=512, truncation="drop")`
    on_error  "error": the first row that cannot be built raises, and the error names the row. "drop": such rows are
              left out and counted. Only errors of lossbook are about rows; others are mistakes in `make`, and raise.
              Rows too long under `truncation="drop"` are left out and counted either way.

    Raises EmptyLossError when no row was kept.
    """
    if on_error not in ("error", "drop"):
        raise ValueError(f"on_error must be 'error' or 'drop', not {on_error!r}")
    report, datums = DataReport(), []
    for index, row in enumerate(rows):
        name = str(getattr(row, "place", f"row {index}"))
        report.rows += 1
        with watch_cuts() as cuts:
            try:
                made = _as_list(make(row))
            except LossbookError as error:
                if on_error == "error" and not isinstance(error, DatumDropped):
                    raise located(error, name) from error
                report._drop(error, cuts, name)
                continue
        report._keep(made, cuts, name)
        datums.extend(made)
    if not datums:
        raise EmptyLossError("there are no rows" if not report.rows else f"no row was kept:\n{report.render()}")
    return datums, report


def _as_list(made: Any) -> list[Datum]:
    datums = [as_datum(item) for item in made] if isinstance(made, list | tuple) else [as_datum(made)]
    if not datums:
        raise EmptyLossError("the row gave no datum")
    for datum in datums:
        check_datum(datum)
    return datums
