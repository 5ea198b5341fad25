"""Which rows are in which batch, batches in the layout that an embedding loss reads, and the loss for their size.

Losses over labels read pairs: datums 2i and 2i + 1. All others read blocks: B queries, B positives, H blocks of B negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...datums.errors import ConfigError, DataFileError, EmptyLossError, LossContractError, ShapeError
from ...datums.types import Datum
from ...losses.embedding.adaptive_layer import OWN, adaptive_layer, sampled_layers
from ...losses.embedding.matryoshka import matryoshka
from ...losses.loss.loss import Loss, LossLike, Mixture
from ...losses.registry import get_loss
from ..run.batches import seed_of
from .data import Encoded, Side, Texts
from .guide import VECTORS, Vectors

#: Settings for the number of negatives in a batch, which the recipe sets from (rows, negatives per row).
COUNTED = {"num_extra_negatives": lambda rows, each: rows * each, "num_hard_negatives": lambda rows, each: each}
#: Losses that read blocks and take no other row as a negative: they compare within rows, or a teacher says what is like what.
WITHOUT_NEGATIVES = ("triplet", "margin_mse", "score_kl", "in_batch_kl", "embedding_distill", "flops")
#: Inputs that rows can provide, or a guide.
GIVEN = ("document_id", "class_id", "label", "teacher_score", *VECTORS)


def embedding_loss(
    name: str,
    settings: Mapping[str, Any],
    dimensions: Sequence[int] = (),
    also: Mapping[str, float] | None = None,
    layers: Sequence[int] = (),
) -> LossLike:
    """The configured loss; with `dimensions`, over several lengths of the embeddings, with `layers`, over these layers too.

    settings: of the loss, and with layers those of `adaptive_layer`. also: losses to add, by id and weight.
    """
    own = {key: value for key, value in settings.items() if layers and key in OWN}
    loss: LossLike = _embedding_loss(name, {key: settings[key] for key in settings if key not in own}, dimensions)
    if layers:
        loss = adaptive_layer(loss, layers=tuple(layers), **own)
    for other, weight in (also or {}).items():
        loss = loss + weight * _embedding_loss(other, {}, ())
    if (also or {}) and len({reads_labels(part) for _, part in loss.parts}) > 1:
        raise ConfigError(
            f"the parts of {loss.name} lay their texts out differently: labelled pairs do not go with blocks"
        )
    return loss


def _embedding_loss(name: str, settings: Mapping[str, Any], dimensions: Sequence[int]) -> Loss:
    """One loss.

    An unregistered function fn(data, embeddings) is a loss over embeddings. Raises UnknownLossError, LossConfigError,
    ConfigError for a setting that the recipe sets itself, LossContractError for a loss that does not read embeddings.
    """
    if counted := [key for key in settings if key in COUNTED]:
        raise ConfigError(f"{counted[0]} follows from the data: leave it out, and set --hard-negatives instead")
    loss = get_loss(name, **settings)
    if not isinstance(loss, Loss):
        raise LossContractError(f"{name} is a mixture; this recipe takes one loss")
    if loss.spec.is_batch_style:
        loss = Loss(replace(loss.spec, outputs=("embeddings",)), settings)
    if "embeddings" not in loss.outputs:
        raise LossContractError(
            f"{loss.name} reads {', '.join(loss.outputs)}, but this recipe trains embeddings: choose an embedding loss (see "
            "`lossbook losses list`)"
        )
    if loss.spec.per == "token":
        raise LossContractError(
            f"{loss.name} is not registered, so it counts as a loss per token, but there is one embedding per datum. Put "
            '@register_loss("...", per="datum") before it, or write it as fn(data, embeddings)'
        )
    if lacking := [one.name for one in loss.spec.inputs if one.required and one.name not in GIVEN]:
        raise LossContractError(f"{loss.name} reads {lacking[0]!r}, which rows of texts do not have")
    return matryoshka(loss, dims=tuple(dimensions)) if dimensions else loss


def with_layers_of_step(loss: LossLike, count: int | None, seed: int, step: int) -> LossLike:
    """The loss over `count` of its layers, drawn by seed and step alone; over all of them for None."""
    layers = next((part.layers for _, part in loss.parts if part.layers), ())
    if count is None or not layers:
        return loss
    chosen = tuple(layers[i] for i in sampled_layers(len(layers), count, seed=seed, step=step))
    parts = [(factor, get_loss(part, layers=chosen) if part.layers else part) for factor, part in loss.parts]
    return Mixture(parts) if isinstance(loss, Mixture) else parts[0][1]


def inputs_of(loss: LossLike) -> set[str]:
    """The inputs that any part reads."""
    return {one.name for _, part in loss.parts for one in part.spec.inputs}


def reads_labels(loss: LossLike) -> bool:
    """Whether the loss reads labelled pairs; otherwise it reads blocks."""
    return "label" in inputs_of(loss)


def takes_duplicates_for_negatives(loss: LossLike) -> bool:
    """Whether any part takes all other rows of a batch as negatives, because it does not read document_id (or class_id)."""
    return any(
        part.spec.couples == "batch"
        and part.name not in WITHOUT_NEGATIVES
        and not {"label", "document_id", "class_id"} & inputs_of(part)
        for _, part in loss.parts
    )


class PairBatches:
    """Which rows are in which batch. As with `Batches`, it depends on the seed and the step alone.

    groups: of the rows. keep_apart: no batch has two rows of one group; rows without a place are left out of the epoch.
    Rows left over when an epoch's batches are full are left out too, since a smaller batch has fewer negatives.
    """

    def __init__(self, groups: Sequence[int], batch_size: int, seed: int, *, keep_apart: bool) -> None:
        if len(groups) < batch_size:
            raise EmptyLossError(
                f"{len(groups)} rows are fewer than a batch of {batch_size}: choose a smaller --batch-size"
            )
        distinct = len(set(groups))
        if keep_apart and distinct < batch_size:
            raise EmptyLossError(
                f"only {distinct} of the {len(groups)} rows have different queries and positives, fewer than a batch of "
                f"{batch_size}, and this loss would take duplicates for negatives: choose a smaller --batch-size, or a loss that "
                "reads document_id, such as info_nce"
            )
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.keep_apart = keep_apart
        self.per_epoch = len(groups) // batch_size
        self._made: tuple[int, list[list[int]]] = (-1, [])

    def at(self, step: int) -> list[int]:
        """The indices of the rows in the batch of a step; steps count from 1."""
        epoch, number = divmod(step - 1, self.per_epoch)
        if self._made[0] != epoch:
            self._made = (epoch, self._epoch(epoch))
        return self._made[1][number]

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Each row goes to the first batch with room and, with keep_apart, without a row of its group."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        batches: list[list[int]] = [[] for _ in range(self.per_epoch)]
        held: list[set[int]] = [set() for _ in batches]
        first_with_room = 0
        for row in torch.randperm(len(self.groups), generator=generator).tolist():
            while first_with_room < len(batches) and len(batches[first_with_room]) == self.batch_size:
                first_with_room += 1
            for number in range(first_with_room, len(batches)):
                is_taken = self.keep_apart and self.groups[row] in held[number]
                if len(batches[number]) < self.batch_size and not is_taken:
                    batches[number].append(row)
                    held[number].add(self.groups[row])
                    break
        return batches


@dataclass
class PairLayout:
    """Makes batches of rows for one loss.

    texts       the rows, `grouped`
    negatives   how many of each row's negatives are used
    encoded     the tokens of all texts
    vectors     of all texts under a guide, where the loss reads them
    """

    loss: LossLike
    texts: Sequence[Texts]
    negatives: int
    encoded: Encoded
    vectors: Vectors | None = None
    _ids: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if reads_labels(self.loss):
            self._check_numbers("label", [one.label is not None for one in self.texts])
        if "teacher_score" in inputs_of(self.loss):
            self._check_numbers("scores", [len(one.scores) > self.negatives for one in self.texts])
        for one in self.texts:
            self._ids[one.positive] = one.group
        for text in (text for one in self.texts for text in one.negatives):
            self._ids.setdefault(text, len(self.texts) + len(self._ids))
        self.sized(2 + self.negatives)

    def batch(self, rows: Sequence[int]) -> tuple[list[Datum], LossLike]:
        """The datums of some rows, and the loss configured for their number of negatives."""
        return self._pairs(rows) if reads_labels(self.loss) else self._blocks(rows), self.sized(len(rows))

    def sized(self, rows: int) -> LossLike:
        """The loss configured for a batch of `rows` rows. Raises ConfigError when it cannot read such a layout."""
        if isinstance(self.loss, Loss):
            return self._sized(self.loss, rows)
        return Mixture([(factor, self._sized(part, rows)) for factor, part in self.loss.parts])

    def _sized(self, part: Loss, rows: int) -> Loss:
        counts = {key: count(rows, self.negatives) for key, count in COUNTED.items() if key in part.settings}
        loss = get_loss(part, **counts)
        if loss.spec.groups is None or reads_labels(loss):
            return loss
        try:
            together = loss.spec.members((2 + self.negatives) * rows, loss.config)
            if together is None:  # it asks for no places, as losses over classes
                return loss
            fits = len(together) == rows and list(together[0][:2]) == [0, rows]
        except ShapeError:
            fits = False
        if not fits:
            raise ConfigError(
                f"{loss.name} cannot read rows of a query, its positive and {self.negatives} negatives. Losses like triplet need "
                "--hard-negatives 1, losses like siglip --hard-negatives 0; info_nce takes any number"
            )
        return loss

    def _blocks(self, rows: Sequence[int]) -> list[Datum]:
        chosen = [self.texts[i] for i in rows]
        datums = [
            self._datum("query", one.query, document_id=one.group, class_id=one.group, teacher_score=0.0)
            for one in chosen
        ]
        for place in range(1 + self.negatives):
            column = [(one.positive, *one.negatives)[place] for one in chosen]
            scores = [one.scores[place] if one.scores else 0.0 for one in chosen]
            datums += [
                self._datum(
                    "document", text, document_id=self._ids[text], class_id=self._ids[text], teacher_score=score
                )
                for text, score in zip(column, scores, strict=True)
            ]
        return datums

    def _pairs(self, rows: Sequence[int]) -> list[Datum]:
        sides: tuple[Side, Side] = ("query", "document")
        return [
            self._datum(side, text, label=one.label)
            for one in (self.texts[i] for i in rows)
            for side, text in zip(sides, (one.query, one.positive), strict=True)
        ]

    def _datum(self, side: Side, text: str, **numbers: Any) -> Datum:
        names, takes_any = inputs_of(self.loss), any(part.spec.is_batch_style for _, part in self.loss.parts)
        kept = {key: value for key, value in numbers.items() if key in names or takes_any}
        if self.vectors is not None:
            kept |= {key: self.vectors[side][text] for key in VECTORS if key in names}
        return self.encoded.datum(side, text, kept)

    def _check_numbers(self, key: str, given: Sequence[bool]) -> None:
        if not all(given):
            row = given.index(False)
            raise DataFileError(f"{self.loss.name} reads {key!r}, which row {row} (counted from 0) does not have")
        if key == "label" and self.negatives:
            raise ConfigError(
                f"{self.loss.name} reads labelled pairs, but the rows have negatives: give each negative a row with a label, or "
                "leave them out with --hard-negatives 0"
            )
