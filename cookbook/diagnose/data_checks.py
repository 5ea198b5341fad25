"""Diagnostics of the data, from the report that recipes write before they train."""

from __future__ import annotations

from typing import Any

from .advice import advice, now
from .diagnosis import Diagnosis
from .history import History

#: Shares of the rows from which repeats and truncation are warnings; below they are notes.
MANY_REPEATED, MANY_TRUNCATED = 0.05, 0.05


def held_out_in_training(history: History) -> Diagnosis | None:
    """Held-out rows that are trained on as well."""
    texts, seen = _count(history.data.get("held_out_rows")), _count(history.data.get("held_out_seen"))
    count, examples = _problem(history.data.get("in_held_out"))
    count = count or seen
    if not count:
        return None
    of = f" of {texts:,}" if texts else ""
    return Diagnosis(
        "warning",
        "Held-out rows are trained on",
        f"{count:,}{of} held-out rows also occur in the training data{examples}",
        advice("remove them from the held-out data; until then held-out numbers measure memory too"),
        "A row that was trained on says nothing about new rows, so there is no threshold.",
    )


def repeated_rows(history: History) -> Diagnosis | None:
    """Rows whose datums equal those of an earlier row."""
    (count, examples), rows = _problem(history.data.get("repeated")), _count(history.data.get("rows"))
    if not count:
        return None
    return Diagnosis(
        "warning" if count > MANY_REPEATED * rows else "note",
        "Training rows are repeated",
        f"{count:,} of {rows:,} rows equal an earlier one{examples}",
        advice("keep one of each, unless they shall count more"),
        "Repeated rows are learned by heart: Lee et al. 2022, arXiv:2107.06499. The share of 5 % for a warning is our choice.",
    )


def truncated_rows(history: History) -> Diagnosis | None:
    """Rows that were cut to the greatest length, or dropped for it."""
    (count, examples), rows = _problem(_of(history.data, "problems", "truncated")), _count(history.data.get("rows"))
    count = count or _count(history.data.get("truncated")) or _count(history.data.get("texts_cut"))
    if not count:
        return None
    lost = history.data.get("label_tokens_lost_frac")
    share = f", and {lost:.1%} of the tokens to learn are lost" if isinstance(lost, float) and 0 < lost <= 1 else ""
    return Diagnosis(
        "warning" if count > MANY_TRUNCATED * rows else "note",
        "Rows are truncated",
        f"{count:,} of {rows:,} rows are longer than max_length{share}{examples}",
        advice(f"raise max_length{now(history, 'max_length')}", "shorten or split those rows"),
        "Of a truncated row the end is not learned, often the answer's. The share of 5 % for a warning is our choice.",
    )


def dropped_rows(history: History) -> Diagnosis | None:
    """Rows that could not be read or built."""
    count, rows = _count(history.data.get("dropped")), _count(history.data.get("rows"))
    if not count:
        return None
    problems = history.data.get("problems")
    kinds = [
        f"{kind}{_problem(one)[1]}"
        for kind, one in (problems.items() if isinstance(problems, dict) else ())
        if kind != "truncated"
    ]
    return Diagnosis(
        "warning" if count > MANY_TRUNCATED * rows else "note",
        "Rows are left out",
        f"{count:,} of {rows:,} rows are not trained on: {'; '.join(kinds) or 'the report does not say why'}",
        advice("mend those rows, or leave them out of the file"),
        "What is left out cannot be learned. The share of 5 % for a warning is our choice.",
    )


def unread_keys(history: History) -> Diagnosis | None:
    """Keys of the rows that have no effect."""
    unread = history.data.get("unread")
    kinds = [f"{key}{_problem(one)[1]}" for key, one in unread.items()] if isinstance(unread, dict) else []
    if not kinds:
        return None
    return Diagnosis(
        "note",
        "Parts of the rows have no effect",
        "; ".join(kinds),
        advice("rename them if they should have one; `lossbook data show` prints what is learned"),
        "A misspelt key is the usual reason; there is no threshold.",
    )


def _of(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _count(value: Any) -> int:
    """A number of rows; 0 for anything else, as a report may be of an older or a user's own form."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _problem(value: Any) -> tuple[int, str]:
    """The count of a problem, and " (the first rows, ...)"."""
    count, examples = _count(_of(value, "count")), _of(value, "examples")
    named = [str(one) for one in examples] if isinstance(examples, list) else []
    more = f" and {count - len(named)} more" if count > len(named) else ""
    return count, f" ({'; '.join(named)}{more})" if named else ""
