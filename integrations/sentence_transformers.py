"""Losses of the embedding family as a loss of sentence-transformers.

from lossbook.integrations.sentence_transformers import EmbeddingLoss
SentenceTransformerTrainer(model, args, train_dataset=rows, loss=EmbeddingLoss(model, "multiple_negatives_ranking"))
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ..datums.errors import LossContractError, MissingInput, ShapeError, UnknownInput
from ..datums.inputs import VECTOR_ENDING
from ..losses.loss.loss import Loss
from .requirements import AnyLoss, adapted, check_reads, wanted


class EmbeddingLoss(Module):
    """`loss` with sentence-transformers' interface: forward(sentence_features, labels) to a scalar.

    The columns of a row are what the loss takes together: a query and its document, then hard negatives; or an anchor, a
    positive and a negative; or two texts of a pair. `labels` [B] is the number that a pair has. Losses that read a number for each
    text, such as "margin_mse", take labels [B, columns - 1]: those of all texts after the first. Losses over classes take one column
    and its labels [B]; losses that read a vector of each text, such as "gist", labels [B, columns, D], or [B, D] for all columns.

    Each micro-batch is a batch by itself, with its own negatives, as for every loss of sentence-transformers; the Trainer
    averages them under gradient accumulation.

    Raises MissingInput and UnknownInput where labels are missing, or are not read.
    """

    def __init__(self, model: Any, loss: AnyLoss, **settings: Any) -> None:
        super().__init__()
        self.model = model
        self.lossbook_loss = adapted(loss, settings, "EmbeddingLoss")
        labels = wanted(self.lossbook_loss)
        check_reads(self.lossbook_loss, "EmbeddingLoss", outputs=("embeddings",), inputs=labels[:1])
        self.reads = labels[0] if labels else None

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of one batch: B rows of as many texts as there are features."""
        columns = [self.model(features)["sentence_embedding"] for features in sentence_features]
        order = self._order(len(columns), len(columns[0]))
        inputs = {} if self.reads is None else {self.reads: self._labels(labels, len(columns))[order]}
        if self.reads is None and labels is not None:
            raise UnknownInput(
                f"{self.lossbook_loss.name} reads no labels, and this data set has some: drop the column"
            )
        return self.lossbook_loss.on_tensors(embeddings=torch.cat(columns)[order], **inputs)[0]

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of it."""
        return {
            "loss": self.lossbook_loss.name,
            **{part.name: dict(part.settings) for _, part in self.lossbook_loss.parts},
        }

    def _order(self, columns: int, rows: int) -> Tensor:
        """[columns * rows]: where each datum of the loss's layout lies in the columns joined one after the other."""
        order: list[int] | None = None
        for _, part in self.lossbook_loss.parts:
            own = _positions(part, columns, rows)
            if order is not None and own != order:
                raise LossContractError(
                    f"the parts of {self.lossbook_loss.name} lay their texts out differently: give each its own trainer"
                )
            order = own
        return torch.tensor(order)

    def _labels(self, labels: Tensor | None, columns: int) -> Tensor:
        """[columns * B] in the order of the joined columns."""
        if labels is None:
            raise MissingInput(
                f"{self.lossbook_loss.name} reads {self.reads!r}, the data set's label column, and there is none"
            )
        if self.reads is not None and self.reads.endswith(VECTOR_ENDING):
            by_column = labels.unsqueeze(1).expand(-1, columns, -1) if labels.ndim == 2 else labels
            if by_column.ndim != 3 or by_column.shape[1] != columns:
                raise ShapeError(
                    f"{self.lossbook_loss.name} reads {self.reads!r}, a vector of each text: labels are [B, {columns}, D] or [B, D], "
                    f"not {list(labels.shape)}"
                )
            return by_column.transpose(0, 1).flatten(0, 1)
        if self.reads in ("label", "class_id"):
            if labels.ndim != 1:
                raise ShapeError(f"{self.lossbook_loss.name} reads one label per row, not {list(labels.shape)}")
            return labels.repeat(columns)
        if labels.ndim != 2 or labels.shape[1] != columns - 1:
            raise ShapeError(
                f"{self.lossbook_loss.name} reads {self.reads!r} of each text after the first: labels are [B, {columns - 1}], not {list(labels.shape)}"
            )
        return torch.cat([labels.new_zeros(len(labels)), *labels.unbind(1)])


def _positions(loss: Loss, columns: int, rows: int) -> list[int]:
    """For each datum, column * rows + row of the text that it is."""
    try:
        groups = loss.spec.members(columns * rows, loss.config)
    except ShapeError as error:
        raise ShapeError(f"{columns} columns of {rows} texts: {error}") from None
    if groups is None and loss.spec.couples == "datum":
        return list(range(columns * rows))
    if groups is None:
        size = 2 if loss.spec.per == "pair" else 1
        groups = [list(range(i, i + size)) for i in range(0, columns * rows, size)]
    if len(groups[0]) != columns:
        raise LossContractError(f"{loss.name} takes rows of {len(groups[0])} texts, not {columns}")
    places = [0] * (columns * rows)
    for row, group in enumerate(groups):
        for column, datum in enumerate(group):
            places[datum] = column * rows + row
    return places
