"""Rows of a query and its candidates, read and held out.

{"query": ..., "positive": ..., "negatives": [...]}      the relevant document and others; or "negative"
{"query": ..., "positive": ..., "negatives": [...], "scores": [9.1, 3.2, ...]}   a teacher's scores, the positive's first
{"query": ..., "documents": [...], "labels": [2, 0, 1]}  how relevant each is; and "scores", a teacher's
{"query": ..., "positive": ..., "label": 0.8}            one document and how relevant it is
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...datums.checks.numbers import is_finite
from ...datums.errors import DataFileError, EmptyLossError, located
from ...datums.files.formats import key_names
from ..embeddings.data import texts_from_row

KEYS = ("query", "documents", "labels", "scores")


@dataclass(frozen=True)
class Candidates:
    """A query and its documents: how relevant each is (above 0: a positive), and the number that a loss reads as its label."""

    query: str
    documents: tuple[str, ...]
    relevance: tuple[float, ...]
    labels: tuple[float, ...]

    @property
    def has_scores(self) -> bool:
        """Whether its labels are a teacher's scores, which no other document has."""
        return self.labels != self.relevance

    def limited(self, negatives: int | None) -> Candidates:
        """The same with its positives and the first `negatives` others; None: all."""
        seen, kept = 0, []
        for i, relevance in enumerate(self.relevance):
            seen += relevance <= 0
            if relevance > 0 or negatives is None or seen <= negatives:
                kept.append(i)
        columns = (tuple(column[i] for i in kept) for column in (self.documents, self.relevance, self.labels))
        return Candidates(self.query, *columns)  # type: ignore[arg-type]

    def joined(self, documents: Sequence[str]) -> Candidates:
        """The same with more documents, none of which is relevant."""
        nothing = (0.0,) * len(documents)
        return Candidates(
            self.query, (*self.documents, *documents), (*self.relevance, *nothing), (*self.labels, *nothing)
        )


def candidates_from_row(row: Mapping[str, Any]) -> Candidates:
    """The row's candidates. Raises DataFileError for a missing, unknown or unusable key."""
    row = {key: value for key, value in row.items() if value is not None}  # a table has every column in every row
    if "documents" not in row:
        texts = texts_from_row(row)
        relevance = (1.0 if texts.label is None else texts.label, *[0.0] * len(texts.negatives))
        return Candidates(texts.query, (texts.positive, *texts.negatives), relevance, texts.scores or relevance)
    if unknown := [key for key in row if key not in KEYS]:
        raise DataFileError(
            f"a row with 'documents' has the keys 'query', 'labels' and, if there is one, 'scores'; this one has "
            f"{key_names(row)}, of which {unknown[0]!r} is none"
        )
    documents, query = row["documents"], row.get("query")
    if not isinstance(documents, list) or not documents or not all(isinstance(d, str) and d.strip() for d in documents):
        raise DataFileError("'documents' must be a list of texts, none of them empty")
    if not isinstance(query, str) or not query.strip():
        raise DataFileError(f"'query' must be a text, not {query!r:.40}")
    if len(set(documents)) < len(documents):
        raise DataFileError("'documents' holds a text twice: a list ranks different ones")
    relevance = _numbers(row, "labels", len(documents))
    scores = _numbers(row, "scores", len(documents)) if "scores" in row else relevance
    return Candidates(query, tuple(documents), relevance, scores)


def read_candidates(rows: Iterable[Mapping[str, Any]]) -> list[Candidates]:
    """All rows. Raises DataFileError naming the row, EmptyLossError when there are none."""
    lists = []
    for index, row in enumerate(rows):
        try:
            lists.append(candidates_from_row(row))
        except DataFileError as error:
            raise located(error, str(getattr(row, "place", f"row {index}"))) from None
    if not lists:
        raise EmptyLossError("there are no rows")
    return lists


def held_out_of(lists: Sequence[Candidates], count: int, seed: int) -> tuple[list[Candidates], list[Candidates]]:
    """(rows to train on, held-out rows): all rows of a query go one way. Raises EmptyLossError where none would be left."""
    queries = list(dict.fromkeys(one.query for one in lists))
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed)).tolist()
    sizes = {query: sum(one.query == query for one in lists) for query in queries} if len(queries) < len(lists) else {}
    out: set[str] = set()
    rows = 0
    for i in order:
        if rows >= count:
            break
        out.add(queries[i])
        rows += sizes.get(queries[i], 1)
    if rows == len(lists):
        raise EmptyLossError(f"holding out {count} of {len(lists)} rows leaves none to train on")
    return [one for one in lists if one.query not in out], [one for one in lists if one.query in out]


def only_ranked(lists: Sequence[Candidates]) -> list[Candidates]:
    """Lists as rankings are measured on them: their relevance is their label."""
    return [replace(one, labels=one.relevance) for one in lists]


def _numbers(row: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    numbers = row.get(key)
    if not isinstance(numbers, list) or len(numbers) != count or not all(map(is_finite, numbers)):
        raise DataFileError(f"{key!r} must be a list of {count} numbers, one for each of 'documents'")
    return tuple(map(float, numbers))
