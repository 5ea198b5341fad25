"""The engine: one forward and one backward for any loss; a failed call changes nothing.

For each micro-batch the forward's graph is kept, the loss is computed on detached copies of the outputs, and
d loss / d outputs goes backward through the graph. Built-in and custom losses take the same way, so they cost the same.
Only a loss that couples a batch too large for kept graphs takes a second forward (GradCache, Gao et al. 2021,
arXiv:2101.06983): outputs of the whole batch without graphs, the loss and its gradient on them, then, micro-batch by
micro-batch, a forward with the same random state and a backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...datums.checks.validation import check_datums
from ...datums.errors import NonFiniteLossError, NonFiniteLossInput
from ...datums.types import Datum
from ...losses.batch.outputs import Outputs
from ...losses.loss.bound import BoundLoss
from ...losses.loss.loss import LossLike
from ..device import path_of
from ..model.defaults import usual_defaults
from ..model.linear import set_adapter_dropout
from ..model.model import LoadedModel
from ..model.weights.narrow import casts_once, narrow_weights
from ..packing.hidden import choose_batching
from ..responses import ForwardBackwardOutput, TopLogprobs
from ..transfer import to_host
from .activation_memory import free_memory, held_bytes
from .checks import Pooling, checked_tokens
from .gradients import OwnGradients, loss_gradients
from .group_report import GroupReport, tensors_of
from .micro_batch_run import MicroBatches
from .results import Collected, count_metrics, loss_stat, output_of, per_datum, stat_of, with_nll
from .settings import EngineSettings
from .top_logprobs import top_logprobs


class Engine:
    """Forward and backward passes over one model. Not thread-safe: its service runs calls one after the other."""

    @usual_defaults()  # probes run here
    def __init__(self, model: LoadedModel, settings: EngineSettings) -> None:
        on_gpu = path_of(model.device) != "cpu"
        self.model = model
        casts_once(model)  # tried now, so that no call runs a probe in its midst
        self.settings = replace(
            settings,
            tokens_per_micro_batch=settings.tokens_per_micro_batch or (16384 if on_gpu else 4096),
            batching=choose_batching(model, settings.batching),
        )

    def forward(self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling = "mean") -> ForwardBackwardOutput:
        """The loss and the model's outputs at every position, without gradients; changes no gradient and no random state.

        Where the model gives NaN, the loss is NaN with a warning that names the datum, and all outputs are returned.
        """
        bound, sequences = self._check(datums, loss, everywhere=True)
        batches = self._plan(loss, bound, sequences, pooling, everywhere=True)
        order = range(len(datums))
        with torch.no_grad(), self._restoring_random_state(), self._mode(training=False):
            group, places = batches.group(batches.cuts, order, on_host=loss.on_host)
            parts = [batches.run(cut) for cut in batches.cuts]
            outputs = batches.join(read_back(parts) if loss.on_host else parts, order, places)
            try:
                total, metrics = group.terms(group.leaves(outputs), outputs)
                arrived = GroupReport(group, outputs, total / bound.count, metrics).read()
                value, metrics, outputs = arrived.value, arrived.metrics, arrived.outputs
            except NonFiniteLossInput as error:
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)
                value, metrics = float("nan"), {}
                outputs = replace(outputs, **to_host(tensors_of(outputs)))
        own = {
            "loss:sum": loss_stat(value, bound.count),
            "forward_passes": stat_of("max", 1.0),
            **count_metrics(datums, bound.count),
        }
        results = per_datum(datums, bound.lengths, outputs)
        return output_of(results, value, own, with_nll(metrics, datums, outputs), bound.name)

    def forward_backward(
        self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling = "mean"
    ) -> ForwardBackwardOutput:
        """Add the loss's gradient to the parameters'. On any error gradients and random state are as they were."""
        bound, sequences = self._check(datums, loss, everywhere=loss.on_host)
        while True:
            try:
                with self._all_or_nothing(), self._mode(training=self.settings.dropout, adapters=True):
                    return self._forward_backward(loss, bound, sequences, pooling)
            except torch.OutOfMemoryError:
                tokens = self.settings.tokens_per_micro_batch or 0
                if loss.couples == "batch" or tokens <= max(len(sequence) for sequence in sequences):
                    raise
                # A finer cut gives the same numbers.
                self.settings = replace(self.settings, tokens_per_micro_batch=tokens // 2)
                warnings.warn(
                    f"out of memory: micro-batches now hold {tokens // 2} tokens", RuntimeWarning, stacklevel=2
                )

    def top_logprobs(self, datums: Sequence[Datum], k: int) -> list[TopLogprobs]:
        """The k likeliest next tokens at every position whose weight is not 0; see `top_logprobs.top_logprobs`."""
        return top_logprobs(self.model, datums, k, self.settings)

    def _forward_backward(
        self, loss: LossLike, bound: BoundLoss, sequences: Sequence[np.ndarray], pooling: Pooling
    ) -> ForwardBackwardOutput:
        batches = self._plan(loss, bound, sequences, pooling, everywhere=False)
        together = loss.couples == "batch"
        several, limit = together and len(batches.cuts) > 1, self.settings.kept_graph_tokens
        recompute = (None if limit is None else int(bound.lengths.sum()) > limit) if several else False
        collected, own = Collected(), OwnGradients()
        behind: list[GroupReport] = []
        for cuts in [batches.cuts] if together else [[cut] for cut in batches.cuts]:
            order = range(len(bound.datums)) if together else cuts[0]
            report, recompute = self._run_group(batches, cuts, order, own, recompute=recompute, on_host=loss.on_host)
            behind.append(report)
            if len(behind) > 1:  # a report is read while the device runs the next group
                collected.add(behind.pop(0).read())
        collected.add(behind.pop().read())
        if not np.isfinite(collected.loss):
            raise NonFiniteLossError(f"{bound.name}: the loss is {collected.loss}, though its inputs are finite")
        metrics = {
            "loss:sum": loss_stat(collected.loss, bound.count),
            "forward_passes": stat_of("max", 2.0 if recompute else 1.0),
            "micro_batches": stat_of("sum", len(batches.cuts)),
            "datums_without_grad": stat_of("sum", collected.datums_without_grad),
            **count_metrics(bound.datums, bound.count),
        }
        output = output_of(collected.in_order(), collected.loss, metrics, collected.metrics, bound.name)
        own.apply()
        return output

    def _run_group(
        self,
        batches: MicroBatches,
        cuts: list[list[int]],
        order: Sequence[int],
        own: OwnGradients,
        *,
        recompute: bool | None,
        on_host: bool,
    ) -> tuple[GroupReport, bool]:
        """Forward the micro-batches of a group, compute the loss on all their outputs, and go backward through each.

        order: the datums of the group, as the loss reads them. recompute: forward twice, to keep no graph for the loss; None:
        where the graphs would not fit. on_host: the loss reads outputs on the CPU. own: gets the gradients of the loss's own
        parameters. Nothing but such outputs is read from the device: what is to be looked at is in the report that is
        returned, with whether it was forwarded twice.
        """
        group, places = batches.group(cuts, order, on_host=on_host)
        known = batches.known_gradient(group) if len(cuts) == 1 else None
        states: list[list[Tensor]] = []
        parts: list[Outputs] = []
        for cut in cuts:
            states += [self._random_state()] if len(cuts) > 1 else []
            if recompute is None:
                part, recompute = self._measured(batches, cut)
                parts.append(part)
                continue
            with torch.set_grad_enabled(not recompute):
                parts.append(batches.run(cut, known))
        outputs = batches.join(read_back(parts) if on_host else parts, order, places)
        leaves = group.leaves(outputs)
        total, metrics = group.terms(leaves, outputs)
        value = total / batches.bound.count
        gradients = loss_gradients(value, leaves, group.part, known)
        own.add(gradients.parameters, gradients.of_parameters)
        report = GroupReport(group, outputs, value, metrics, gradients)
        split = batches.split_gradients(gradients.outputs, cuts, places)
        for k, cut in enumerate(cuts):
            if recompute:
                with self._restoring_random_state():
                    self._set_random_state(states[k])
                    parts[k] = batches.run(cut)
            batches.backward(split[k], parts[k], on_host=on_host)
            parts[k] = Outputs()  # frees the graph
        return report, bool(recompute)

    def _check(
        self, datums: Sequence[Datum], loss: LossLike, *, everywhere: bool
    ) -> tuple[BoundLoss, list[np.ndarray]]:
        """The loss bound to the datums, and their input tokens, both checked before any forward."""
        bound = loss.prepare(datums)
        check_datums(datums, vocab_size=self.model.vocab_size, masked_targets=everywhere)
        return bound, checked_tokens(self.model, datums, bound.outputs)

    def _plan(
        self, loss: LossLike, bound: BoundLoss, sequences: Sequence[np.ndarray], pooling: Pooling, *, everywhere: bool
    ) -> MicroBatches:
        return MicroBatches.plan(
            self.model,
            bound,
            sequences,
            loss.couples,
            pooling=pooling,
            settings=self.settings,
            everywhere=everywhere,
        )

    def _measured(self, batches: MicroBatches, cut: Sequence[int]) -> tuple[Outputs, bool]:
        """The outputs of the first of several micro-batches, and whether all their graphs are too large to be kept together.

        They may take half of what is free. If they would take more, the outputs have no graph.
        """
        with held_bytes(self.model.device) as kept:
            outputs = batches.run(cut)
        sizes = np.array([len(sequence) for sequence in batches.sequences])
        expected = kept() * sizes.sum() / sizes[list(cut)].sum()
        if expected <= (free_memory(self.model.device) + kept()) / 2:
            return outputs, False
        return replace(outputs, **{name: one.detach() for name, one in tensors_of(outputs).items()}), True

    @contextmanager
    def _mode(self, *, training: bool, adapters: bool = False) -> Iterator[None]:
        """Inside, the model drops what its own dropout says, and the adapters what theirs says."""
        module, lora = self.model.module, self.model.lora
        before, drops = module.training, adapters and lora is not None and lora.dropout > 0
        if before != training:  # either walks all modules, which takes as long as launching a layer
            module.train(training)
        if drops:
            set_adapter_dropout(module, on=True)
        self.model.adapters_drop = drops
        try:
            with narrow_weights(self.model):
                yield
        finally:
            if before != training:
                module.train(before)
            if drops:
                set_adapter_dropout(module, on=False)
            self.model.adapters_drop = False

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Accumulate into fresh gradients and add them to the old ones at the end; on an error put the old ones back."""
        parameters = list(self.model.trainable().values())
        before = [p.grad for p in parameters]
        state = self._random_state()
        for p in parameters:
            p.grad = None
        try:
            yield
        except BaseException:
            for p, old in zip(parameters, before, strict=True):
                p.grad = old
            self._set_random_state(state)
            raise
        both = [
            (old, p.grad) for p, old in zip(parameters, before, strict=True) if old is not None and p.grad is not None
        ]
        if both:
            olds, news = zip(*both, strict=True)
            torch._foreach_add_(olds, news)  # type: ignore[attr-defined]
        for p, old in zip(parameters, before, strict=True):
            if old is not None:
                p.grad = old

    def _random_state(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.model.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.model.device))
        return states

    def _set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.model.device)

    @contextmanager
    def _restoring_random_state(self) -> Iterator[None]:
        state = self._random_state()
        try:
            yield
        finally:
            self._set_random_state(state)


def read_back(parts: Sequence[Outputs]) -> list[Outputs]:
    """The outputs of several micro-batches on the host."""
    tensors = {(i, name): one for i, part in enumerate(parts) for name, one in tensors_of(part).items()}
    here = to_host({f"{i} {name}": one for (i, name), one in tensors.items()})
    named = [{name: here[f"{i} {name}"] for k, name in tensors if k == i} for i in range(len(parts))]
    return [replace(Outputs(), **outputs) for outputs in named]
