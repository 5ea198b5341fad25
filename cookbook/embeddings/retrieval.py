"""Retrieval: how well an encoder finds the documents of a query among held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...datums.errors import ShapeError
from ...datums.types import Datum
from ...losses.loss.loss import Loss
from ...losses.registry import spec_of_function
from ...losses.spec.layers import LAYER_EMBEDDINGS, Layers
from ...losses.spec.spec import make_spec
from .data import Encoded, Texts

if TYPE_CHECKING:
    from ...trainer import ReferenceClient, TrainingClient
    from ...trainer.engine.forward import Pooling

#: Queries compared with all documents at a time.
QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class Retrieval:
    """Queries, a corpus, and which of its documents belong to each query (at least one).

    measure gives  held_out_recall_at_1, held_out_recall_at_10   fraction of queries with a right document among the 1 or
                                                                 10 of largest cosine; a tie is a miss
                   held_out_mrr                                  mean of 1 / rank of the first right document
                   dim_64/held_out_...                           the same from the first 64 coordinates only
                   layer_6/held_out_...                          the same from vectors of layer 6, also layer_6/dim_64/
    """

    queries: Sequence[Datum]
    documents: Sequence[Datum]
    right: Sequence[Sequence[int]]
    pooling: Pooling = "mean"
    dimensions: Sequence[int] = ()
    layers: Sequence[int] = ()

    @classmethod
    def of(
        cls,
        texts: Sequence[Texts],
        encoded: Encoded,
        pooling: Pooling,
        dimensions: Sequence[int] = (),
        layers: Sequence[int] = (),
    ) -> Retrieval:
        """Each query with the positives of all rows that have it; all documents are the corpus."""
        right: dict[str, set[str]] = {}
        for one in texts:
            right.setdefault(one.query, set()).add(one.positive)
        corpus = list(dict.fromkeys(text for one in texts for text in (one.positive, *one.negatives)))
        place = {text: i for i, text in enumerate(corpus)}
        return cls(
            [encoded.datum("query", query) for query in right],
            [encoded.datum("document", text) for text in corpus],
            [sorted(place[text] for text in own) for own in right.values()],
            pooling,
            dimensions,
            layers,
        )

    def measure(self, training: TrainingClient) -> dict[str, float]:
        """Evaluate the current weights; {} without held-out data. Raises ShapeError for too many dimensions."""
        if not self.queries:
            return {}
        whole = vectors_by_layer(training, [*self.queries, *self.documents], self.pooling, self.layers)
        metrics = self._measured(whole[:, 0])
        for i, layer in enumerate(self.layers):
            metrics |= {f"layer_{layer}/{name}": value for name, value in self._measured(whole[:, i + 1]).items()}
        return metrics

    def _measured(self, vectors: Tensor) -> dict[str, float]:
        """Of vectors [queries and documents, D], at each length."""
        queries, documents = vectors.tensor_split([len(self.queries)])
        by_cosine = self.pooling != "splade"  # whose vectors are searched by dot products
        metrics = _scores(ranks(queries, documents, self.right, by_cosine=by_cosine))
        for width in self.dimensions:
            if width > vectors.shape[1]:
                raise ShapeError(
                    f"matryoshka_dimensions has {width}, but the embeddings have {vectors.shape[1]} coordinates"
                )
            short = _scores(ranks(queries[:, :width], documents[:, :width], self.right, by_cosine=by_cosine))
            metrics |= {f"dim_{width}/{name}": value for name, value in short.items()}
        return metrics


def embeddings(training: TrainingClient | ReferenceClient, datums: Sequence[Datum], pooling: Pooling) -> Tensor:
    """[N, D] float32: each datum's pooled vector under the current weights."""
    reads = Loss(spec_of_function(_nothing, output="embeddings"), {})
    outputs = training.forward(datums, reads, pooling=pooling).result().loss_fn_outputs
    return torch.stack([output["embedding"].to_torch() for output in outputs])


def vectors_by_layer(
    training: TrainingClient | ReferenceClient, datums: Sequence[Datum], pooling: Pooling, layers: Sequence[int]
) -> Tensor:
    """[N, 1 + L, D] float32: each datum's pooled vector of the last layer, then of each of `layers`."""
    if not layers:
        return embeddings(training, datums, pooling).unsqueeze(1)
    reads = Loss(make_spec(_nothing_of_layers, "held_out", per="datum"), {"layers": tuple(layers)})
    outputs = training.forward(datums, reads, pooling=pooling).result().loss_fn_outputs
    last, earlier = ([output[key].to_torch() for output in outputs] for key in ("embedding", LAYER_EMBEDDINGS))
    return torch.cat([torch.stack(last).unsqueeze(1), torch.stack(earlier)], 1)


def ranks(queries: Tensor, documents: Tensor, right: Sequence[Sequence[int]], *, by_cosine: bool = True) -> Tensor:
    """[Q] int64: the rank, from 1, of each query's best right document among the wrong ones, by cosine or by dot product.

    queries [Q, D], documents [C, D]; right[i]: the rows of documents that belong to query i. A wrong document ranks first
    in a tie, and when its cosine is NaN.
    """
    if by_cosine:
        queries, documents = normalize(queries, dim=1), normalize(documents, dim=1)
    blocks = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        cosines = queries[start : start + QUERIES_AT_ONCE] @ documents.T
        is_right = torch.zeros_like(cosines, dtype=torch.bool)
        for row, own in enumerate(right[start : start + len(cosines)]):
            is_right[row, list(own)] = True
        best = cosines.masked_fill(~is_right, -torch.inf).amax(1, keepdim=True)
        blocks.append(1 + (~(cosines < best) & ~is_right).sum(1))
    return torch.cat(blocks)


def _scores(ranks: Tensor) -> dict[str, float]:
    return {
        "held_out_recall_at_1": float((ranks <= 1).double().mean()),
        "held_out_recall_at_10": float((ranks <= 10).double().mean()),
        "held_out_mrr": float((1 / ranks.double()).mean()),
    }


def _nothing(data: Sequence[Datum], vectors: Sequence[Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """A loss whose value is not used: it makes the model return embeddings."""
    return vectors[0].sum() * 0, {}


def _nothing_of_layers(embeddings: Tensor, layer_embeddings: Tensor, *, layers: Layers) -> Tensor:
    """The same for embeddings of layers."""
    return 0 * embeddings.sum(1) + 0 * layer_embeddings.sum((1, 2))
