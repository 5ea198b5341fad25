"""Pairs of a query and a document as datums, and batches of lists for a ranking loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ...datums.errors import ConfigError, DataFileError, LossContractError, panics_as
from ...datums.types import Datum, ModelInput
from ...losses.loss.loss import Loss, Mixture
from ..run.batches import seed_of
from .data import Candidates

if TYPE_CHECKING:
    from ...trainer import TrainingClient

#: Inputs that rows can provide.
GIVEN = ("label", "is_positive", "group")
#: What a language model reads; an encoder reads the two texts as its tokenizer joins them.
TEMPLATE = "Query: {query}\nDocument: {document}"


def check_loss(loss: Loss | Mixture) -> None:
    """Raise LossContractError for a loss that does not read one score per document."""
    for _, part in loss.parts:
        if part.outputs != ("values",) or part.spec.per in ("token", "pair"):
            raise LossContractError(
                f"{part.name} reads {', '.join(part.outputs)}, one {part.spec.per} at a time, but this recipe trains a score per "
                "document: choose a ranking loss (see `lossbook losses list`)"
            )
        if lacking := [one.name for one in part.spec.inputs if one.required and one.name not in GIVEN]:
            raise LossContractError(f"{part.name} reads {lacking[0]!r}, which rows of candidates do not have")


@dataclass(frozen=True)
class PairEncoder:
    """A query and a document as one sequence, with the score at its first token (encoders) or its last (language models).

    An encoder reads the two texts as its tokenizer joins them, all as one segment, and the longer of the two is cut. A
    language model reads `template` and then its end token; the document is cut.
    """

    tokenizer: Any
    is_encoder: bool
    max_length: int
    template: str = TEMPLATE

    @classmethod
    def of(cls, training: TrainingClient, max_length: int, template: str) -> PairEncoder:
        """For the model of a client."""
        return cls(training.get_tokenizer(), training.get_info().kind == "encoder", max_length, template)

    def tokens(self, query: str, document: str) -> list[int]:
        """The tokens of a pair. Raises DataFileError where the query leaves no room for a document."""
        with panics_as(DataFileError, f"the tokenizer, on the query {query[:40]!r},"):
            if self.is_encoder:
                return self.tokenizer(query, document, truncation="longest_first", max_length=self.max_length)[
                    "input_ids"
                ]
            head = self.template.removesuffix("{document}").format(query=query)
            ids = self.tokenizer(head + document, truncation=True, max_length=self.max_length)["input_ids"]
            end = self.tokenizer.eos_token_id
            if len(self.tokenizer(head)["input_ids"]) >= self.max_length - 1:
                raise DataFileError(f"the query {query[:40]!r} leaves no room for a document: raise --max-length")
            return ids if end is None or ids[-1:] == [end] else [*ids[: self.max_length - 1], end]

    def datum(self, query: str, document: str, numbers: Mapping[str, Any] | None = None) -> Datum:
        """The pair's datum; its only weight is where the score is read."""
        ids = self.tokens(query, document)
        weights = [0.0] * len(ids)
        weights[0 if self.is_encoder else -1] = 1.0
        return Datum(ModelInput.from_ints(ids), {"weights": weights, **(numbers or {})})


@dataclass
class ListLayout:
    """Makes batches of lists for one loss.

    lists             the rows
    encode            of their pairs
    random_negatives  so many documents of other queries join each list, drawn anew at each step
    """

    loss: Loss | Mixture
    lists: Sequence[Candidates]
    encode: PairEncoder
    random_negatives: int
    seed: int
    _known: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pool = list(dict.fromkeys(document for one in self.lists for document in one.documents))
        for one in self.lists:
            self._known.setdefault(one.query, set()).update(one.documents)
        if not self.random_negatives:
            return
        if scored := [i for i, one in enumerate(self.lists) if one.has_scores]:
            raise ConfigError(
                f"row {scored[0]} (counted from 0) has a teacher's scores, which random negatives have not"
            )
        most = max(map(len, self._known.values()))
        if len(self._pool) - most < self.random_negatives:
            raise ConfigError(
                f"{self.random_negatives} random negatives are more than the {len(self._pool) - most} documents of other queries"
            )

    def batch(self, rows: Sequence[int], step: int) -> list[Datum]:
        """The datums of some rows; each row is a group."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, step))
        return [
            datum
            for group, row in enumerate(rows)
            for datum in self._datums(group, self._with_random(self.lists[row], generator))
        ]

    def _with_random(self, one: Candidates, generator: torch.Generator) -> Candidates:
        """The list with documents that no row has for its query."""
        drawn: dict[str, None] = {}
        while len(drawn) < self.random_negatives:
            document = self._pool[int(torch.randint(len(self._pool), (), generator=generator))]
            if document not in self._known[one.query]:
                drawn[document] = None
        return one.joined(list(drawn))

    def _datums(self, group: int, one: Candidates) -> list[Datum]:
        names = {wanted.name for _, part in self.loss.parts for wanted in part.spec.inputs}
        datums = []
        for document, relevance, label in zip(one.documents, one.relevance, one.labels, strict=True):
            numbers = {"label": label, "is_positive": int(relevance > 0), "group": group}
            kept = {key: value for key, value in numbers.items() if key in names}
            datums.append(self.encode.datum(one.query, document, kept))
        return datums
