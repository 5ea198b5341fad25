"""How well a model ranks held-out lists, and a trained reranker: `Reranker`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...datums.errors import ConfigError, ModelError
from ...datums.types import Datum
from ...trainer import ServiceClient
from ...trainer.checkpoint.contents import contents_of
from ...trainer.checkpoint.folder import read_checkpoint
from ..preferences.reward_models import scores
from ..run.names import CONFIG
from ..run.runs import find_checkpoint
from .data import Candidates
from .lists import TEMPLATE, ListLayout, PairEncoder

if TYPE_CHECKING:
    from ...trainer import TrainingClient

#: The places that count in nDCG and recall.
PLACES = 10


@dataclass(frozen=True)
class HeldOutLists:
    """Held-out lists and their datums, list after list.

    measure gives  held_out_ndcg_at_10      mean over lists of the discounted gain of the first 10, as a share of the best order's
                   held_out_mrr             mean of 1 / rank of the first relevant document
                   held_out_recall_at_1, held_out_recall_at_10    mean share of a list's relevant documents among the first
    Of equal scores the less relevant document comes first. A gain is 2 to the label, less 1.
    """

    datums: Sequence[Datum]
    relevance: Sequence[Sequence[float]]

    @classmethod
    def of(cls, layout: ListLayout) -> HeldOutLists | None:
        """The lists of a layout, with its random negatives; None without any list. Raises ConfigError where none can be ranked."""
        if not layout.lists:
            return None
        datums = layout.batch(range(len(layout.lists)), 0)
        relevance = [(*one.relevance, *[0.0] * layout.random_negatives) for one in layout.lists]
        if all(len(set(one)) == 1 for one in relevance):
            raise ConfigError(
                "no held-out list has both a relevant document and another: give rows negatives, or set --random-negatives"
            )
        return cls(datums, relevance)

    def measure(self, training: TrainingClient) -> dict[str, float]:
        """Rank by the current weights; one forward."""
        sizes = np.cumsum([len(one) for one in self.relevance])[:-1]
        return ranked(np.split(scores(training, self.datums), sizes), self.relevance)


def ranked(scores_of_lists: Sequence[np.ndarray], relevance: Sequence[Sequence[float]]) -> dict[str, float]:
    """The metrics of `HeldOutLists` for lists of scores; lists without a relevant document are left out."""
    rows: list[tuple[float, float, float, float]] = []
    for given, labels in zip(scores_of_lists, relevance, strict=True):
        if max(labels) <= 0:
            continue
        order = sorted(range(len(labels)), key=lambda i: (-given[i], labels[i]))
        gains = [2 ** max(labels[i], 0) - 1 for i in order]
        best = _discounted(sorted(gains, reverse=True))
        hits = [labels[i] > 0 for i in order]
        first = 1 + hits.index(True)
        rows.append((_discounted(gains) / best, 1 / first, hits[0] / sum(hits), sum(hits[:PLACES]) / sum(hits)))
    names = ("held_out_ndcg_at_10", "held_out_mrr", "held_out_recall_at_1", "held_out_recall_at_10")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(2 + i) for i, gain in enumerate(gains[:PLACES]))


class Reranker:
    """A trained reranker.

    path: the folder of a run of `lossbook train rerank`, or one of its checkpoints. Raises RunError, CheckpointError, and
    ModelError for a checkpoint without a scalar head.
    """

    def __init__(self, path: str | Path, *, device: str | None = None) -> None:
        checkpoint = find_checkpoint(path)
        contents = contents_of(read_checkpoint(checkpoint, names=[]))
        if not contents.value_head:
            raise ModelError(f"{checkpoint} has no scalar head: `lossbook train rerank` makes a reranker")
        service = ServiceClient(device=device, base_weights=contents.base_weights or "full")
        self._training = service.create_training_client_from_state(str(checkpoint))
        settings = json.loads((checkpoint.parent.parent / CONFIG).read_text(encoding="utf-8"))
        self._encode = PairEncoder.of(self._training, settings["max_length"], settings.get("template", TEMPLATE))

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """A score for each document; higher is more relevant. Only differences within a query mean something."""
        datums = [self._encode.datum(query, document) for document in documents]
        return scores(self._training, datums).tolist() if datums else []

    def rank(self, query: str, documents: Sequence[str]) -> list[int]:
        """The documents' places in `documents`, the most relevant first."""
        given = self.scores(query, documents)
        return sorted(range(len(given)), key=lambda i: -given[i])


def described(lists: Sequence[Candidates], held_out: Sequence[Candidates], layout: ListLayout) -> dict[str, int]:
    """Counts of the data; `held_out_seen` counts held-out queries that are also trained on, ideally 0."""
    sizes = [len(one.documents) + layout.random_negatives for one in lists]
    return {
        "queries": len(lists),
        "candidates": sum(sizes),
        "longest_list": max(sizes),
        "without_positive": sum(max(one.relevance) <= 0 for one in lists),
        "held_out_queries": len(held_out),
        "held_out_seen": len({one.query for one in held_out} & {one.query for one in lists}),
    }
