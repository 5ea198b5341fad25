"""A teacher beside the model in training: its whole distribution at the student's positions, for losses that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ....datums.builders.vocabularies import renumbering
from ....datums.errors import LengthMismatchError, LossContractError, MissingInput, ModelError, TokenRangeError
from ....datums.types import Datum
from ....losses.batch.positions import positions_of
from ....losses.loss.bound import BoundLoss
from ....losses.loss.loss import LossLike
from ....losses.spec.layers import DATUM_OUTPUTS
from ....losses.spec.vocabulary import TEACHER, VOCABULARY_OUTPUTS
from ...head.logprobs import in_autocast_precision
from ...head.renumbered import RenumberedDistributions
from ...head.whole import HeadDistributions
from ...model.linear import set_adapter_dropout
from ...model.model import LoadedModel
from ...packing.hidden import Batching, hidden_states, trim_to_last_read
from .undo import mode


@dataclass(frozen=True)
class Teacher:
    """A frozen model in this process. applied: inside, the model has the teacher's weights."""

    model: LoadedModel
    batching: Batching | None
    applied: Callable[[], AbstractContextManager[None]]

    @torch.no_grad()
    def distributions(self, sequences: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> HeadDistributions:
        """Those where the masks ([length] bool each) are true, sequence after sequence, in the order of the tokens."""
        model = self.model
        with self.applied(), _without_dropout(model), model.precision():
            read, rows = trim_to_last_read(model, sequences, masks)
            hidden = hidden_states(model, read, self.batching, torch.from_numpy(rows))
            with torch.autocast(model.device.type, enabled=False):  # an adapter on the head is added to it unrounded
                head = model.head()
            # `detach`: the parameter gets the student's weights back, where both share a model
            head = replace(head, weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())
            return HeadDistributions(*in_autocast_precision(hidden, head))


@dataclass(frozen=True)
class Lesson:
    """What a teacher reads beside the datums of one call.

    sequences: [M] tokens of each datum. places: [N] of each, which of them belongs to each position of the student; -1: none.
    vocabulary: how many tokens are compared, where the heads are padded to different sizes; None: all. order: the teacher's
    tokens in the student's numbers, as `renumbering` gives them, on the teacher's device; None: in its own.
    """

    teacher: Teacher
    sequences: Sequence[np.ndarray]
    places: Sequence[np.ndarray]
    vocabulary: int | None = None
    order: torch.Tensor | None = None

    def at(self, cut: Sequence[int], masks: Sequence[np.ndarray]) -> HeadDistributions:
        """The teacher's distributions where the masks, of each datum's positions, are true; any where it has none."""
        places = [self.places[i][: len(mask)][mask] for i, mask in zip(cut, masks, strict=True)]
        sequences = [self.sequences[i] for i in cut]
        read = [np.zeros(len(sequence), dtype=bool) for sequence in sequences]
        starts = np.cumsum([0, *(len(sequence) for sequence in sequences)])
        for own, place in zip(read, places, strict=True):
            own[np.maximum(place, 0)] = True
        whole = self.cut(self.teacher.distributions(sequences, read))
        if self.order is not None:
            whole = RenumberedDistributions(whole.hidden, whole.head, self.order)
        joined = np.concatenate([np.maximum(place, 0) + start for place, start in zip(places, starts, strict=False)])
        order = np.searchsorted(np.flatnonzero(np.concatenate(read)), joined)
        return (
            whole
            if np.array_equal(order, np.arange(len(whole)))
            else whole[torch.from_numpy(order).to(whole.hidden.device)]
        )

    def cut(self, whole: HeadDistributions) -> HeadDistributions:
        """Over the tokens that both heads have."""
        return whole if self.vocabulary is None else whole.first(self.vocabulary)


def lesson_of(model: LoadedModel, teacher: Teacher | None, loss: LossLike, bound: BoundLoss) -> Lesson | None:
    """What the teacher reads, checked before any forward; None for a loss that reads no whole distributions.

    Raises LossContractError for a teacher that is not read, or is lacking; ModelError for models that cannot be compared;
    MissingInput, LengthMismatchError and TokenRangeError naming datum and key.
    """
    specs = [part.spec for _, part in loss.parts]
    if not any(name in VOCABULARY_OUTPUTS for name in bound.outputs):
        if teacher is not None:
            raise LossContractError(f"{bound.name} reads no teacher's distributions: leave teacher= out")
        return None
    if loss.couples == "batch" or set(DATUM_OUTPUTS) & set(bound.outputs):
        raise LossContractError(f"{bound.name}: whole distributions do not go together with what couples the batch")
    if model.ranks.size > 1:
        raise ModelError(
            f"{bound.name} reads whole distributions, which is for one process: take a topk_ loss on several ranks"
        )
    model.head()  # which says what an encoder lacks
    if TEACHER not in bound.outputs:
        return None
    if teacher is None:
        raise LossContractError(
            f"{bound.name} compares with a teacher's whole distribution: give teacher=, a client of create_reference_client, or "
            "take a topk_ loss over a teacher's candidates"
        )
    teacher.model.head()
    wanted = {spec.vocabularies for spec in specs if TEACHER in spec.outputs}
    vocabulary = shared_vocabulary(bound.name, model, teacher.model) if "same" in wanted else None
    order = _order_of(bound.name, model, teacher.model) if "renumbered" in wanted else None
    total = len(bound.datums)
    read = [_read_of(datum, f"datum {i} of {total}", teacher.model) for i, datum in enumerate(bound.datums)]
    lesson = Lesson(teacher, [tokens for tokens, _ in read], [places for _, places in read], vocabulary, order)
    readers = [part.active(bound.datums) for _, part in loss.parts if TEACHER in part.spec.outputs]
    _check_places(lesson, bound, torch.stack(readers).any(0))
    return lesson


def shared_vocabulary(name: str, student: LoadedModel, teacher: LoadedModel) -> int | None:
    """How many tokens of both heads to compare; None where they have as many. Raises ModelError for other vocabularies.

    One family's heads are padded to different sizes (Qwen2.5's 7B and 0.5B): behind the tokenizer's tokens there is nothing.
    """
    own, other = len(student.head().weight), len(teacher.head().weight)
    if own == other:
        return None
    sizes = {len(model.tokenizer) for model in (student, teacher) if model.tokenizer is not None}
    if (
        len(sizes) == 1
        and max(sizes) <= min(own, other)
        and student.tokenizer is not None
        and teacher.tokenizer is not None
    ):
        return min(own, other)
    raise ModelError(
        f"{name} compares token by token, but the student's head has {own} tokens and the teacher's {other}: choose a teacher of "
        "the student's family, or a loss across tokenizers"
    )


def _order_of(name: str, student: LoadedModel, teacher: LoadedModel) -> torch.Tensor:
    """The teacher's tokens in the student's numbers. Raises ModelError for a model without a tokenizer."""
    for whose, one in (("student", student), ("teacher", teacher)):
        if one.tokenizer is None:
            raise ModelError(f"{name} compares tokens by their text, but the {whose} {one.name} has no tokenizer")
    sizes = len(student.head().weight), len(teacher.head().weight)
    return _renumbered(student.tokenizer, teacher.tokenizer, *sizes, teacher.device)


@lru_cache(maxsize=4)
def _renumbered(student: Any, teacher: Any, own: int, other: int, device: torch.device) -> torch.Tensor:
    """`renumbering` on a device: it takes a second for 100,000 tokens, and is the same at every step."""
    return torch.from_numpy(renumbering(student, teacher, own, other)).to(device)


def _read_of(datum: Datum, which: str, model: LoadedModel) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's tokens [M], and which of them belongs to each of the datum's positions, [N]."""
    given, inputs = "teacher_tokens", datum.loss_fn_inputs
    positions = positions_of(datum)
    if given in inputs:
        tokens = inputs[given].to_numpy().reshape(-1)
        if "teacher_positions" not in inputs:
            raise MissingInput(
                f"{which} carries teacher_tokens but no teacher_positions, which say where in them each of its {positions} positions is"
            )
    else:
        given, tokens = "model_input", np.asarray(datum.model_input.to_ints(), dtype=np.int64)
    if not len(tokens):
        raise LengthMismatchError(f"{which}: {given} is empty")
    if model.max_length is not None and len(tokens) > model.max_length:
        raise ModelError(f"{which}: {given} has {len(tokens)} tokens, but the teacher reads at most {model.max_length}")
    if (wrong := np.flatnonzero((tokens < 0) | (tokens >= model.vocab_size))).size:
        raise TokenRangeError(
            f"{which}: {given} has token {int(tokens[wrong[0]])} at position {int(wrong[0])}, but the teacher knows tokens 0 to "
            f"{model.vocab_size - 1}"
        )
    if "teacher_positions" not in inputs:
        return tokens, np.arange(positions)
    places = inputs["teacher_positions"].to_numpy().reshape(-1)
    if len(places) != positions:
        raise LengthMismatchError(f"{which}: teacher_positions has {len(places)} entries for {positions} positions")
    if (wrong := np.flatnonzero((places < -1) | (places >= len(tokens)))).size:
        raise TokenRangeError(
            f"{which}: teacher_positions is {int(places[wrong[0]])} at position {int(wrong[0])}, but the teacher reads {len(tokens)} "
            "tokens: 0 is the first, -1 none"
        )
    return tokens, places


def _check_places(lesson: Lesson, bound: BoundLoss, reads: torch.Tensor) -> None:
    """The teacher has a distribution wherever the loss reads one. reads: [positions of all datums] bool."""
    active = np.split(reads.numpy(), np.cumsum(bound.lengths)[:-1])
    for i, (places, mask) in enumerate(zip(lesson.places, active, strict=True)):
        if (lacking := np.flatnonzero(mask & (places < 0))).size:
            raise MissingInput(
                f"datum {i} of {len(bound.datums)}: teacher_positions is -1 at position {int(lacking[0])}, where the weight is not 0"
            )


@contextmanager
def _without_dropout(model: LoadedModel) -> Iterator[None]:
    drops = model.adapters_drop  # of a student that shares the model
    if drops:
        set_adapter_dropout(model.module, on=False)
    try:
        with mode(model, training=False):
            yield
    finally:
        if drops:
            set_adapter_dropout(model.module, on=True)
            model.adapters_drop = True
