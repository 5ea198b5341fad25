"""`MicroBatches`: one call's datums cut into micro-batches and dealt to ranks, and their forwards and backwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ...datums.types import Datum, ModelInput
from ...losses.batch.outputs import Outputs
from ...losses.batch.positions import width_of
from ...losses.loss.bound import BoundLoss
from ...losses.spec.layers import DATUM_OUTPUTS
from ..head.autograd import expect_rows
from ..head.backward import KnownRows
from ..head.logprobs import default_head_memory
from ..head.whole import HeadDistributions
from ..model.model import LoadedModel
from ..packing.hidden import forwards_of, lengths_computed, shares_prefixes
from ..packing.micro_batches import lengths_read, prefix_groups_of
from ..packing.shares import Cuts, plan_shares
from ..transfer import to_device
from .activation_memory import layers_as_set
from .checks import HEAD_OUTPUTS, TOKEN_OUTPUTS, Pooling, check_pooled, checked_routes
from .forward import model_outputs
from .gradients import outputs_with_gradients
from .group_report import Group
from .run.rows import OutputRows, Places, cat_padded, padded_to, unpad
from .run.teacher import Lesson
from .settings import EngineSettings

T = TypeVar("T")

#: What a rank reads where it has nothing to do: one token, of which no output is wanted.
DUMMY = Datum(ModelInput.from_ints([0]), {"target_tokens": [0]})


@dataclass
class MicroBatches:
    """The datums of one call, which of their positions are computed, and how they are cut and dealt.

    sequences  the tokens of each datum that the model reads, [length] int64
    rows       which outputs are computed, and where
    shares     for each rank (each place, of mates), the datum indices of its micro-batches: as many for each, [] where one has
               nothing to do
    forwards   how many forwards each micro-batch takes at least, so that it takes as many on every rank
    top_k      how many of the likeliest tokens are among the outputs
    layers     of which layers there are embeddings
    routes     for each datum, to which experts its tokens are sent: [length, layers, k]; None: the model chooses
    """

    model: LoadedModel
    datums: Sequence[Datum]
    pooling: Pooling
    settings: EngineSettings
    sequences: Sequence[np.ndarray]
    rows: OutputRows
    shares: list[Cuts]
    forwards: int = 1
    routes: Sequence[np.ndarray] | None = None
    top_k: int = 0
    lesson: Lesson | None = None
    layers: Sequence[int] = ()

    @classmethod
    def plan(
        cls,
        model: LoadedModel,
        datums: Sequence[Datum],
        sequences: Sequence[np.ndarray],
        names: Sequence[str],
        active: np.ndarray | None,
        *,
        couples: str,
        pooling: Pooling,
        settings: EngineSettings,
        top_k: int = 0,
        units: Sequence[Sequence[int]] | None = None,
        lesson: Lesson | None = None,
        layers: Sequence[int] = (),
    ) -> MicroBatches:
        """Cut a call's datums, alike on every rank. sequences: all tokens of each. names: the outputs to compute.

        active: [positions of all datums] bool, where outputs per token are read; None for everywhere. couples: what the loss
        must see together; units: the datums of each of its groups, where it couples these. Raises ModelError, ShapeError and
        DtypeError for routing matrices that the model cannot follow.
        """
        check_pooled(model, pooling, names, layers)
        routes = checked_routes(model, datums, settings)
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        reads_tokens = any(name in TOKEN_OUTPUTS for name in names)
        computed = np.ones(lengths.sum(), dtype=bool) if active is None or not reads_tokens else active
        if model.kind == "decoder" and not set(DATUM_OUTPUTS) & set(names):
            read = lengths_computed(model, lengths, lengths_read(lengths, computed))
            sequences = [sequence[:length] for sequence, length in zip(sequences, read, strict=True)]
        shares_some = routes is None and shares_prefixes(model, settings.batching)
        sizes = [len(sequence) for sequence in sequences]
        shares = plan_shares(
            sizes,
            ranks=model.ranks.places,
            tokens=budget_on(model, settings),
            pairs=couples == "pair",
            padded=settings.batching == "padded",
            prefix_groups=prefix_groups_of(sequences, couples, units) if shares_some else (),
            units=units,
        )
        settings = with_less_head_memory(model, settings, graphs=len(shares[0]) if couples == "batch" else 1)
        forwards = most_forwards(model, settings, sizes, shares)
        routes = routes and [each[: len(sequence)] for each, sequence in zip(routes, sequences, strict=True)]
        rows = OutputRows(names, np.split(computed, np.cumsum(lengths)[:-1]))
        return cls(model, datums, pooling, settings, sequences, rows, shares, forwards, routes, top_k, lesson, layers)

    @cached_property
    def cuts(self) -> Cuts:
        """This rank's micro-batches."""
        return self.shares[self.model.ranks.place]

    @cached_property
    def own(self) -> list[int]:
        """The datums of this rank, in the call's order."""
        return sorted(i for cut in self.cuts for i in cut)

    @property
    def count(self) -> int:
        """How many micro-batches all ranks have, dummies left out."""
        return sum(bool(cut) for cuts in self.shares for cut in cuts)

    def seen(self, cuts: Cuts, order: Sequence[int], *, together: bool) -> tuple[Cuts, Sequence[int]]:
        """Which micro-batches a loss sees together, and in which order it reads their datums.

        cuts, order: this rank's. together: the loss couples the batch, so it sees all ranks' in the call's order.
        """
        if not together:
            return cuts, order
        return [cut for own in self.shares for cut in own], range(len(self.datums))

    def this_ranks(self, of_all: Sequence[T]) -> Sequence[T]:
        """This rank's of something for each micro-batch of all ranks."""
        count = len(self.cuts)
        return of_all[count * self.model.ranks.place :][:count]

    def run(self, cut: Sequence[int], known_gradient: Tensor | None = None) -> Outputs:
        """The model's outputs for one micro-batch, with a graph unless gradients are off; none of its rows for [].

        known_gradient: d loss / d logprobs of these datums, where it is known.
        """
        sequences = [self.sequences[i] for i in cut] or [np.zeros(1, dtype=np.int64)]
        masks = [self.rows.active[i][: len(self.sequences[i])] for i in cut] or [np.zeros(1, dtype=bool)]
        active = np.concatenate(masks)
        taught = None if self.lesson is None else self.lesson.at(cut, masks)  # before there is a graph of the student

        def forward() -> Outputs:
            outputs = model_outputs(
                self.model,
                [self.datums[i] for i in cut] or [DUMMY],
                sequences,
                names=self.rows.names,
                rows=None if active.all() else torch.from_numpy(np.flatnonzero(active)),
                pooling=self.pooling,
                settings=self.settings,
                known_gradient=known_gradient,
                forwards=self.forwards,
                routes=[self.routes[i] for i in cut] if self.routes and cut else None,
                top_k=self.top_k,
                layers=self.layers,
            )
            for name in DATUM_OUTPUTS if not cut else ():
                if (rows := getattr(outputs, name)) is not None:
                    setattr(outputs, name, rows[:0])
            return outputs

        # autocast keeps the weights that it casts, so its context may span one forward only
        with layers_as_set(self.model, self.settings), self.model.precision():
            outputs = self.model.inside(forward)
        if self.lesson is not None and isinstance(outputs.vocab_logprobs, HeadDistributions):
            outputs.vocab_logprobs = self.lesson.cut(outputs.vocab_logprobs)
        outputs.teacher_vocab_logprobs = taught
        return outputs

    def group(
        self, bound: BoundLoss, cuts: Sequence[Sequence[int]], order: Sequence[int], *, on_host: bool
    ) -> tuple[Group, Places]:
        """The datums of some micro-batches as the loss reads them, its data already on the way to the device.

        on_host: the loss reads outputs on the host. Also returns where the rows of its outputs lie in the micro-batches'.
        """
        part, places = bound.part(order), self.rows.places(cuts, order)
        if on_host:
            return Group(part, part, order, on_host=True), places
        tensors = part.tensors(self.rows.active_in(order))
        there = to_device({**tensors, **{f"places {of}": one for of, one in places.items()}}, self.model.device)
        placed = part.placed({name: there[name] for name in tensors})
        return Group(part, placed, order, on_host=False), {of: there[f"places {of}"] for of in places}

    def of_all_ranks(self, parts: Sequence[Outputs]) -> list[Outputs]:
        """The outputs of all ranks' micro-batches, one rank's after the other's, without graphs. parts: this rank's.

        They are added up over the ranks, where each has zeros for the others' rows: no gradient passes through a collective.
        """
        if self.model.ranks.size == 1:
            return list(parts)
        whole: dict[str, Tensor] = {}
        for name in self.rows.names:
            sizes = [sum(self.rows.count(name, cut) for cut in cuts) for cuts in self.shares]
            start, size = sum(sizes[: self.model.ranks.place]), sizes[self.model.ranks.place]
            rows = cat_padded([getattr(part, name).detach() for part in parts])
            rows = padded_to(width_of(self.datums) if name == "logprobs" else None, rows)
            whole[name] = rows.new_zeros(sum(sizes), *rows.shape[1:])
            if self.model.ranks.is_counted:
                whole[name][start : start + size] = rows
        self.model.ranks.add_up(list(whole.values()))
        return [replace(Outputs(), **whole)]

    def backward(self, gradients: Mapping[str, Tensor], outputs: Outputs, *, on_host: bool) -> None:
        """Backward through a micro-batch, from the gradients of its outputs; on_host: these are still on the host.

        Without any gradient it is a backward from zeros, in which a sharded model takes part beside others'.
        """
        if not gradients:
            own = outputs_with_gradients(outputs, self.rows.names)
            gradients, on_host = {name: torch.zeros_like(one) for name, one in own.items()}, False
        gradients = self._sent(gradients, outputs) if on_host else gradients
        own = outputs_with_gradients(outputs, self.rows.names)
        tensors = [own[name] for name in gradients]
        torch.autograd.backward(
            tensors, [unpad(gradients[name], x) for name, x in zip(gradients, tensors, strict=True)]
        )

    def _sent(self, gradients: Mapping[str, Tensor], outputs: Outputs) -> dict[str, Tensor]:
        """The gradients on the device; the head is told which of its rows have one, which is to be seen here."""
        of_head = [name for name in gradients if name in HEAD_OUTPUTS]
        if not of_head:
            return to_device(gradients, self.model.device)
        nonzero = [gradients[name].numpy() != 0 for name in of_head]
        rows = np.flatnonzero(np.any([one if one.ndim == 1 else one.any(1) for one in nonzero], axis=0))
        there = to_device({**gradients, "rows": torch.from_numpy(rows)}, self.model.device)
        expect_rows(getattr(outputs, of_head[0]), KnownRows(rows, there.pop("rows")))
        return there

    def known_gradient(self, bound: BoundLoss, group: Group | None) -> Tensor | None:
        """d loss / d logprobs of a group's datums, where it is known before the forward and of use."""
        if not bound.is_linear or not torch.is_grad_enabled():
            return None
        if group is None:
            return torch.zeros(0, dtype=torch.float32, device=self.model.device)
        dtype = torch.promote_types(next(self.model.module.parameters()).dtype, torch.float32)
        return group.placed.logprob_gradient(count=bound.count, dtype=dtype, device=self.model.device)


def budget_on(model: LoadedModel, settings: EngineSettings) -> int | None:
    """The most tokens of a micro-batch; on several ranks a model that reads one sequence at a time has one in each."""
    return 1 if model.ranks.size > 1 and settings.batching == "single" else settings.tokens_per_micro_batch


def with_less_head_memory(model: LoadedModel, settings: EngineSettings, graphs: int) -> EngineSettings:
    """Settings by which the head keeps as much for so many graphs, which are held together, as it may for one."""
    if graphs < 2:
        return settings
    memory = default_head_memory(model.device) if settings.head_memory is None else settings.head_memory
    return replace(settings, head_memory=memory // graphs)


def most_forwards(model: LoadedModel, settings: EngineSettings, lengths: Sequence[int], shares: Sequence[Cuts]) -> int:
    """How many forwards any rank's micro-batch takes; 1 for a single process, which waits for nobody."""
    if model.ranks.size == 1:
        return 1
    cuts = [cut for cuts in shares for cut in cuts if cut]
    return max(forwards_of(model, settings.batching, [lengths[i] for i in cut]) for cut in cuts)
