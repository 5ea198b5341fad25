"""Report on the rows of a data set: kept, truncated and dropped rows, and the label tokens lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from ..builders.notes import Notes, watch_notes
from ..builders.truncation import Cut, watch_cuts
from ..checks.validation import check_datum, count_labels
from ..errors import DatumDropped, EmptyLossError, LossbookError, RowLeftOut, TruncationError, located
from ..types import Datum, as_datum
from .formats import known_format

#: Rows named for each kind of problem.
EXAMPLES = 3
#: Quantiles of the lengths that are shown: the shortest, median, 90 %, 99 % and the longest.
QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass
class Problem:
    """How often one kind of problem occurred, and the first rows it occurred in."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, row: str) -> None:
        """Count one more row."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(row)

    def add(self, later: Problem) -> None:
        """Count the rows of another part of the data set too."""
        self.count += later.count
        self.examples = (self.examples + later.examples)[:EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        """Count and examples as JSON values."""
        return {"count": self.count, "examples": self.examples}

    def __str__(self) -> str:
        more = f" and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        return f"{self.count}: {'; '.join(self.examples)}{more}" if self.count else "0"


@dataclass
class DataReport:
    """Counts over the rows of a data set. Reports of its parts merge into the report of the whole.

    rows = kept + dropped; truncated rows are among the kept. Label tokens are tokens of nonzero weight: kept ones are in
    the datums, lost ones were cut off or were in rows dropped for their length. Rows dropped for other reasons were
    never built, so their label tokens are unknown and not counted.

    lengths    number of datums by their tokens (before the shift)
    problems   by the error's name
    heeded     rows by what they say about learning, such as a weight or a mask, which was done
    unread     rows by the keys and parts in them that have no effect
    formats    number of rows by format (a key of `FORMATS`); rows of no known format are not counted
    longest    the longest kept rows: tokens of the row's longest datum, and the row's name
    seen       names of the kept rows by a fingerprint of their datums, so that rows with equal datums are together
    in_held_out   held-out rows that are in this training data too, once `repeated_from` has compared the two
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
    heeded: dict[str, Problem] = field(default_factory=dict)
    unread: dict[str, Problem] = field(default_factory=dict)
    formats: Counter[str] = field(default_factory=Counter)
    longest: list[tuple[int, str]] = field(default_factory=list)
    seen: dict[bytes, list[str]] = field(default_factory=dict, repr=False)
    in_held_out: Problem = field(default_factory=Problem)

    @property
    def tokens(self) -> int:
        """Tokens of all datums, before the shift."""
        return sum(length * count for length, count in self.lengths.items())

    @property
    def label_tokens_lost_frac(self) -> float:
        """Share of the known label tokens that was lost; 0 when there are none."""
        return self.labels_lost / max(self.labels_kept + self.labels_lost, 1)

    @property
    def label_tokens_frac(self) -> float:
        """Share of the kept tokens that are label tokens; 0 when there are none."""
        return self.labels_kept / max(self.tokens, 1)

    def repeated(self) -> Problem:
        """Kept rows whose datums equal those of an earlier row."""
        problem = Problem()
        for names in self.seen.values():
            for name in names[1:]:
                problem.note(f"{name} repeats {names[0]}")
        return problem

    def repeated_from(self, other: DataReport) -> Problem:
        """Kept rows whose datums also occur in another data set, such as held-out rows in the training data."""
        problem = Problem()
        for fingerprint, names in self.seen.items():
            for name in names if fingerprint in other.seen else ():
                problem.note(f"{name} is {other.seen[fingerprint][0]}")
        return problem

    def length_quantiles(self) -> dict[str, int]:
        """The lengths at `QUANTILES`, by nearest rank; empty without datums."""
        lengths = sorted(self.lengths)
        if not lengths:
            return {}
        reached = np.cumsum([self.lengths[length] for length in lengths])
        ranks = [max(1, int(np.ceil(q * reached[-1]))) for q in QUANTILES]
        return {
            f"{q:g}": lengths[int(np.searchsorted(reached, rank))] for q, rank in zip(QUANTILES, ranks, strict=True)
        }

    def merge(self, other: DataReport) -> DataReport:
        """The report of both parts together. This part's examples come first."""
        merged = DataReport(lengths=self.lengths + other.lengths, formats=self.formats + other.formats)
        merged.longest = _longest([*self.longest, *other.longest])
        for part in (self, other):
            merged.in_held_out.add(part.in_held_out)
        for name in ("rows", "kept", "truncated", "dropped", "datums", "labels_kept", "labels_lost"):
            setattr(merged, name, getattr(self, name) + getattr(other, name))
        for part in (self, other):
            for name in ("problems", "heeded", "unread"):
                for kind, problem in getattr(part, name).items():
                    getattr(merged, name).setdefault(kind, Problem()).add(problem)
            for fingerprint, names in part.seen.items():
                merged.seen.setdefault(fingerprint, []).extend(names)
        return merged

    def render(self) -> str:
        """Plain text, one line per subject."""
        return "\n".join(
            f"{subject:<8}{text}" if len(subject) < 8 else f"{subject}  {text}" for subject, text in self.lines()
        )

    def lines(self) -> list[tuple[str, str]]:
        """(subject, text) of each line: rows, tokens, labels, and, if there are any, formats, repetitions and problems."""
        lines = [("rows", f"{self.rows}: {self.kept} kept ({self.truncated} truncated), {self.dropped} dropped")]
        quantiles = self.length_quantiles()
        names = ("min", "median", "90%", "99%", "max")
        shown = ", ".join(f"{name} {length}" for name, length in zip(names, quantiles.values(), strict=False))
        lines.append(("tokens", f"{self.tokens} in {self.datums} datums" + (f"; length {shown}" if shown else "")))
        lost = f"{self.labels_lost} lost ({self.label_tokens_lost_frac:.1%})"
        lines.append(("labels", f"{self.labels_kept} kept ({self.label_tokens_frac:.1%} of the tokens), {lost}"))
        if self.formats:
            lines.append(("formats", ", ".join(f"{name} {count}" for name, count in self.formats.items())))
        if self.longest:
            lines.append(("longest", "; ".join(f"{name}: {tokens}" for tokens, name in self.longest)))
        repeated = self.repeated()
        if repeated.count:
            lines.append(("repeated", str(repeated)))
        lines += [("heeded", f"{what}  {rows}") for what, rows in self.heeded.items()]
        lines += [("not read", f"{what}  {rows}") for what, rows in self.unread.items()]
        return lines + [(kind, str(problem)) for kind, problem in self.problems.items()]

    def as_dict(self) -> dict[str, Any]:
        """Every count, the length quantiles, the longest rows, and the problems, as JSON values."""
        names = ("rows", "kept", "truncated", "dropped", "datums", "tokens", "labels_kept", "labels_lost")
        return {
            **{name: getattr(self, name) for name in names},
            "label_tokens_frac": self.label_tokens_frac,
            "label_tokens_lost_frac": self.label_tokens_lost_frac,
            "length_quantiles": self.length_quantiles(),
            "formats": dict(self.formats),
            "longest": [{"row": name, "tokens": tokens} for tokens, name in self.longest],
            "repeated": self.repeated().as_dict(),
            "in_held_out": self.in_held_out.as_dict(),
            **{
                name: {kind: problem.as_dict() for kind, problem in getattr(self, name).items()}
                for name in ("heeded", "unread", "problems")
            },
        }

    def to_json(self) -> str:
        """`as_dict` as a JSON object."""
        return json.dumps(self.as_dict(), indent=2)

    def _note(self, kind: str, row: str) -> None:
        self.problems.setdefault(kind, Problem()).note(row)

    def _take(self, notes: Notes, row: str) -> None:
        for what in notes.heeded:
            self.heeded.setdefault(what, Problem()).note(row)
        for what in notes.left_unread():
            self.unread.setdefault(what, Problem()).note(row)

    def _keep(self, datums: Sequence[Datum], cuts: Sequence[Cut], row: str) -> None:
        self.kept += 1
        self.datums += len(datums)
        self.lengths.update(datum.model_input.length + 1 for datum in datums)
        self.labels_kept += sum(map(count_labels, datums))
        self.labels_lost += sum(cut.labels_lost for cut in cuts)
        self.seen.setdefault(_fingerprint(datums), []).append(row)
        self.longest = _longest([*self.longest, (max(datum.model_input.length + 1 for datum in datums), row)])
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
    """Apply a builder to each row and report on every row.

    rows      any objects; rows with a `place` are named by it (`train.jsonl, line 7`), others `row 0`, `row 1`, ...
    make      builds one datum from a row, or several (a pair), for instance
              `lambda row: datum_from_messages(row["messages"], tokenizer, max_length=512, truncation="drop")`
    on_error  "error": the first row that cannot be built raises, and the error names it. "drop": such rows are left out
              and counted. Errors other than LossbookError are mistakes in `make` and always raise. Rows too long under
              `truncation="drop"`, and rows of weight 0, are left out and counted either way.

    Raises EmptyLossError when no row was kept.
    """
    report, datums = DataReport(), []
    for row_datums in survey(rows, make, report, on_error=on_error):
        datums.extend(row_datums)
    return datums, report


def survey(
    rows: Iterable[Any],
    make: Callable[[Any], Datum | Sequence[Datum]],
    report: DataReport,
    *,
    on_error: Literal["error", "drop"] = "error",
) -> Iterator[list[Datum]]:
    """As `build_datums`, but yields the datums of one kept row at a time and fills `report` meanwhile."""
    if on_error not in ("error", "drop"):
        raise ValueError(f"on_error must be 'error' or 'drop', not {on_error!r}")
    for index, row in enumerate(rows):
        name = str(getattr(row, "place", f"row {index}"))
        report.rows += 1
        if isinstance(row, Mapping) and (kind := known_format(row)) is not None:
            report.formats[kind] += 1
        with watch_cuts() as cuts, watch_notes() as notes:
            try:
                datums = _checked(make(row))
            except LossbookError as error:
                if on_error == "error" and not isinstance(error, DatumDropped | RowLeftOut):
                    raise located(error, name) from error
                report._drop(error, cuts, name)
                report._take(notes, name)
                continue
        report._take(notes, name)
        report._keep(datums, cuts, name)
        yield datums
    if not report.kept:
        raise EmptyLossError("there are no rows" if not report.rows else f"no row was kept:\n{report.render()}")


def _longest(rows: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    return sorted(rows, key=lambda row: -row[0])[:EXAMPLES]  # stable: of equal lengths the first rows stay


def _fingerprint(datums: Sequence[Datum]) -> bytes:
    """16 bytes that differ where tokens, keys, dtypes, shapes or numbers differ."""
    digest = blake2b(digest_size=16)
    for datum in datums:
        arrays = {"": np.array(datum.model_input.to_ints()), **datum.loss_fn_inputs}
        for key in sorted(arrays):
            array = arrays[key] if not key else arrays[key].to_numpy()
            digest.update(f"{key} {array.dtype} {array.shape}\0".encode())
            digest.update(array.tobytes())
    return digest.digest()


def _checked(built: Any) -> list[Datum]:
    datums = [as_datum(item) for item in built] if isinstance(built, list | tuple) else [as_datum(built)]
    if not datums:
        raise EmptyLossError("the row gave no datum")
    for datum in datums:
        check_datum(datum)
    return datums
