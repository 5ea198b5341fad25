"""The engine: one forward and one backward for any loss; a failed call changes nothing.

For each micro-batch the forward's graph is kept, the loss is computed on detached copies of the outputs, and
d loss / d outputs goes backward through the graph. Built-in and custom losses take the same way, so they cost the same.
Only a loss that couples a batch too large for kept graphs takes a second forward (GradCache, Gao et al. 2021,
arXiv:2101.06983): outputs of the whole batch without graphs, the loss and its gradient on them, then, micro-batch by
micro-batch, a forward with the same random state and a backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch

from ...datums.checks.validation import check_datums
from ...datums.errors import ModelError
from ...datums.types import Datum
from ...losses.batch.groups import units_of
from ...losses.loss.bound import BoundLoss
from ...losses.loss.loss import LossLike
from ..device import path_of
from ..model.defaults import usual_defaults
from ..model.model import LoadedModel
from ..model.weights.narrow import casts_once
from ..packing.hidden import choose_batching
from ..responses import ForwardBackwardOutput, TopLogprobs
from ..sharding.gradients import sum_gradients
from .checks import TOKEN_OUTPUTS, TOP_OUTPUTS, Pooling, check_own_top_k, check_ranks, check_top_k, checked_tokens
from .elsewhere import KeptOutputs, Reads
from .gradients import OwnGradients, check_own
from .group_report import GroupReport, Valued, differentiated, valued
from .micro_batch_run import MicroBatches
from .ranks.held import HeldBack, out_of_memory_named
from .ranks.kept import Kept
from .ranks.merged import as_first, merged, own_random_numbers
from .results import Collected, forward_output, per_datum, trained_output, with_nll
from .run.passes import Passes, read_back, recomputes
from .run.teacher import Lesson, Teacher, lesson_of
from .run.undo import all_or_nothing, mode, restoring_random_state
from .settings import EngineSettings
from .top_logprobs import top_logprobs


class Engine:
    """Forward and backward passes over one model. Not thread-safe: its service runs calls one after the other.

    Where several ranks train the model, each has an engine, and all are given the same calls: each runs its share of the
    micro-batches, and returns the whole call's metrics with the outputs of its own datums ({} for the others'). A mistake in
    numbers or in a loss's function is raised by all of them.
    """

    @usual_defaults()  # probes run here
    def __init__(self, model: LoadedModel, settings: EngineSettings) -> None:
        on_gpu = path_of(model.device) != "cpu"
        check_ranks(model, settings)
        self.model = model
        self._kept: Kept | None = None
        casts_once(model)  # tried now, so that no call runs a probe in its midst
        self.settings = replace(
            settings,
            tokens_per_micro_batch=settings.tokens_per_micro_batch or (16384 if on_gpu else 4096),
            batching=choose_batching(model, settings.batching),
        )

    def forward(
        self,
        datums: Sequence[Datum],
        loss: LossLike,
        pooling: Pooling = "mean",
        top_k: int | None = None,
        teacher: Teacher | None = None,
    ) -> ForwardBackwardOutput:
        """The loss and the model's outputs at every position, without gradients; changes no gradient and no random state.

        top_k: also return the likeliest tokens and their logprobs at every position. Where the model gives NaN, the loss is NaN with a warning that names the datum, and all outputs are returned.
        """
        self.drop_kept()
        with self.model.ranks.agree():
            bound, sequences = self._check(datums, loss, everywhere=True)
            lesson = lesson_of(self.model, teacher, loss, bound)
            if top_k is not None:
                check_top_k(self.model, top_k, bound.outputs)
        batches = self._plan(loss, bound, sequences, pooling, everywhere=True, top_k=top_k or 0, lesson=lesson)
        together = loss.couples == "batch"
        held, seen, collected = HeldBack(self.model.ranks), None, Collected()
        with (
            self._naming_rank(),
            torch.no_grad(),
            restoring_random_state(self.model.device),
            mode(self.model, training=False),
        ):
            cuts, order = batches.seen(batches.cuts, batches.own, together=together)
            group, places = batches.group(bound, cuts, order, on_host=loss.on_host) if order else (None, {})
            parts = [batches.run(cut) for cut in batches.cuts]
            parts = batches.of_all_ranks(parts) if together else parts
            with held.back():
                if group is not None:
                    outputs = batches.rows.join(read_back(parts) if loss.on_host else parts, order, places)
                    seen = valued(group, outputs, bound.count)
                    results = per_datum(group.part.datums, group.part.lengths, seen.outputs, top_k)
                    collected = Collected(seen.value, 0, seen.metrics, dict(zip(order, results, strict=True)))
        held.release()
        if self._troubles(seen):  # then there is no metric on any rank
            collected.metrics = {}
        if group is not None and seen is not None:
            collected.metrics = with_nll(collected.metrics, group.part, seen.outputs)
        collected = merged(self.model.ranks, collected, is_whole=together)
        return forward_output(bound, collected, batches.own)

    def forward_backward(
        self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling = "mean", teacher: Teacher | None = None
    ) -> ForwardBackwardOutput:
        """Add the loss's gradient to the parameters'. On any error gradients and random state are as they were."""
        self.drop_kept()
        with self.model.ranks.agree():
            bound, sequences = self._check(datums, loss, everywhere=loss.on_host)
            lesson = lesson_of(self.model, teacher, loss, bound)
        while True:
            try:
                with (
                    self._naming_rank(),
                    all_or_nothing(self.model),
                    mode(self.model, training=self.settings.dropout, adapters=True),
                ):
                    return self._forward_backward(loss, bound, sequences, pooling, lesson)
            except torch.OutOfMemoryError:
                tokens, longest = self.settings.tokens_per_micro_batch or 0, max(len(tokens) for tokens in sequences)
                if self.model.ranks.size > 1 or loss.couples == "batch" or tokens <= longest:
                    raise
                # A finer cut gives the same numbers.
                self.settings = replace(self.settings, tokens_per_micro_batch=tokens // 2)
                warnings.warn(
                    f"out of memory: micro-batches now hold {tokens // 2} tokens", RuntimeWarning, stacklevel=2
                )

    def forward_kept(
        self,
        datums: Sequence[Datum],
        reads: Reads,
        pooling: Pooling = "mean",
        *,
        keep: bool = True,
    ) -> KeptOutputs:
        """What a loss reads of this rank's datums, their graphs kept for `backward_kept`; see `elsewhere.LossElsewhere`.

        Graphs that were kept before are dropped. keep=False: without graphs. On any error gradients and random state are as they were.
        """
        self.drop_kept()
        kept = Kept(self.model, self.settings, datums, reads, pooling)
        with self._naming_rank():
            outputs = kept.forward() if keep else kept.forward_only()
        self._kept = kept if keep else None
        return outputs

    def backward_kept(self, gradients: Mapping[str, np.ndarray]) -> None:
        """Add the gradient of the kept forward to the parameters', and forget its graphs.

        gradients: d loss / d outputs by name, the rows of all datums in the call's order; each rank takes its own. On any error
        gradients are as they were, and the random state is that before the forward. Raises ModelError where none is kept.
        """
        kept, self._kept = self._kept, None
        if kept is None:
            raise ModelError("backward_kept needs the graphs of a forward_kept before it, and there are none")
        with self._naming_rank():
            kept.backward(gradients)

    def drop_kept(self) -> None:
        """Drop the graphs kept by `forward_kept`, if any, and restore the state before it."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.drop()

    def top_logprobs(self, datums: Sequence[Datum], k: int) -> list[TopLogprobs]:
        """The k likeliest next tokens at every position whose weight is not 0; see `top_logprobs.top_logprobs`."""
        with self._naming_rank():
            return top_logprobs(self.model, datums, k, self.settings)

    def _naming_rank(self) -> AbstractContextManager[None]:
        return out_of_memory_named(self.model.ranks, self.settings.tokens_per_micro_batch)

    def _forward_backward(
        self,
        loss: LossLike,
        bound: BoundLoss,
        sequences: Sequence[np.ndarray],
        pooling: Pooling,
        lesson: Lesson | None,
    ) -> ForwardBackwardOutput:
        batches = self._plan(loss, bound, sequences, pooling, everywhere=False, lesson=lesson)
        together = loss.couples == "batch"
        held, collected, own = HeldBack(self.model.ranks), Collected(), OwnGradients()
        recompute = recomputes(batches) if together else False
        behind: list[GroupReport] = []
        with own_random_numbers(self.model, drops=self.model.drops):
            for cuts in [batches.cuts] if together else [[cut] for cut in batches.cuts]:
                passes = Passes(batches, cuts, recompute)
                behind += self._run_group(passes, loss, bound, own, held)
                recompute = passes.recompute
                with held.back():
                    if len(behind) > 1:  # a report is read while the device runs the next group
                        collected.add(behind.pop(0).read())
            with held.back():
                if behind:
                    collected.add(behind.pop().read())
            held.release()
        output = trained_output(
            bound,
            merged(self.model.ranks, collected, is_whole=together),
            batches.own,
            forward_passes=2 if recompute else 1,
            micro_batches=batches.count,
        )
        sum_gradients(self.model)
        own.apply()
        return output

    def _run_group(
        self, passes: Passes, loss: LossLike, bound: BoundLoss, own: OwnGradients, held: HeldBack
    ) -> list[GroupReport]:
        """Forward the micro-batches of a group, compute the loss on all their outputs, and go backward through each.

        own: gets the gradients of the loss's own parameters. Nothing but outputs for a loss on the host is read from the
        device: what is to be looked at is in the report that is returned; there is none where this rank has no datum of the
        group, or the loss failed. It then goes backward from zeros, so that it is where the other ranks are.
        """
        batches, together, group, known, reports = passes.batches, loss.couples == "batch", None, None, []
        cuts, order = batches.seen(passes.cuts, passes.cuts[0], together=together)
        places, split = {}, [{} for _ in cuts]
        with held.back():
            if order:
                group, places = batches.group(bound, cuts, order, on_host=loss.on_host)
            if len(cuts) == 1:
                known = batches.known_gradient(bound, group)
        parts = passes.forward(known)
        if together:
            parts = batches.of_all_ranks(parts)
            if self.model.drops:  # a loss that draws random numbers draws the same on every rank
                as_first(self.model)
        with held.back():
            if group is not None and held.error is None:
                outputs = batches.rows.join(read_back(parts) if loss.on_host else parts, order, places)
                report, gradients = differentiated(group, outputs, bound.count, known)
                own.add(gradients.parameters, gradients.of_parameters)
                check_own(bound, gradients.parameters, self.model.ranks.size)
                split = batches.rows.split_gradients(gradients.outputs, cuts, places)
                reports.append(report)
        passes.backward(batches.this_ranks(split) if together else split, on_host=loss.on_host)
        return reports

    def _check(
        self, datums: Sequence[Datum], loss: LossLike, *, everywhere: bool
    ) -> tuple[BoundLoss, list[np.ndarray]]:
        """The loss bound to the datums, and their input tokens, both checked before any forward."""
        bound = loss.prepare(datums)
        check_datums(datums, vocab_size=self.model.vocab_size, masked_targets=everywhere, weight_keys=bound.weight_keys)
        check_own_top_k(self.model, bound)
        return bound, checked_tokens(self.model, datums, bound.outputs)

    def _plan(
        self,
        loss: LossLike,
        bound: BoundLoss,
        sequences: Sequence[np.ndarray],
        pooling: Pooling,
        *,
        everywhere: bool,
        top_k: int = 0,
        lesson: Lesson | None = None,
    ) -> MicroBatches:
        top_k = max(top_k, bound.top_k)
        names = tuple(dict.fromkeys((*bound.outputs, *(TOP_OUTPUTS if top_k else ()))))
        reads_all = everywhere or not any(name in TOKEN_OUTPUTS for name in names)
        return MicroBatches.plan(
            self.model,
            bound.datums,
            sequences,
            names,
            None if reads_all else bound.active.numpy(),
            couples=loss.cut_by,
            units=None if loss.couples == "batch" else units_of(bound.datums, [part.spec for _, part in loss.parts]),
            pooling=pooling,
            settings=self.settings,
            top_k=top_k,
            lesson=lesson,
            layers=bound.layers,
        )

    def _troubles(self, seen: Valued | None) -> bool:
        """Whether the model's outputs were not finite on any rank, of which every rank warns."""
        troubles = self.model.ranks.gather(None if seen is None else seen.trouble)
        for trouble in [one for one in troubles if one is not None][:1]:
            warnings.warn(trouble, RuntimeWarning, stacklevel=3)
        return any(trouble is not None for trouble in troubles)
