"""The engine: one forward and one backward for any loss, and a failed call that changes nothing.

For each micro-batch the forward's graph is kept, the loss is computed on detached copies of the outputs, and
d loss / d outputs is sent back through the graph. A built-in loss and a custom one take the same way, so they cost the
same. Only a loss that couples a batch too large for kept graphs takes a second forward (GradCache, Gao et al. 2021,
arXiv:2101.06983): outputs of the whole batch without graphs, the loss and its gradient on them, then, micro-batch by
micro-batch, a forward with the same random state and a backward.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ...datums.checks.validation import check_datums
from ...datums.errors import NonDifferentiableLossError, NonFiniteLossError, NonFiniteLossInput
from ...datums.types import Datum
from ...losses.batch.checks import locate
from ...losses.batch.outputs import Outputs
from ...losses.loss.bound import BoundLoss
from ...losses.loss.loss import LossLike
from ...losses.spec.spec import OUTPUT_NAMES
from ..model.load import LoadedModel
from ..packing.attention import fits_in_blocks
from ..responses import ForwardBackwardOutput, TopLogprobs
from .activation_memory import LayerOptions
from .forward import HeadOptions, Pooling, check_fits
from .micro_batch_run import Pass, RunOptions
from .results import Collected, count_metrics, loss_stat, output_of, per_datum, stat_of, with_nll
from .settings import EngineSettings
from .top_logprobs import top_logprobs

#: What a transformer layer keeps for the backward: about 34 values a token and hidden unit (Korthikanti et al. 2022,
#: arXiv:2205.05198, eq. 2). An estimate, used only to decide when a batch-coupled loss recomputes.
VALUES_KEPT_PER_UNIT = 34


class Engine:
    """Passes over one model. Not thread-safe: its service runs calls one after the other."""

    def __init__(self, model: LoadedModel, settings: EngineSettings) -> None:
        on_gpu = model.device.type != "cpu"
        self.model = model
        self.tokens = settings.tokens_per_micro_batch or (16384 if on_gpu else 4096)
        self.kept_graph_tokens = settings.kept_graph_tokens
        self.dropout = settings.dropout
        self.options = RunOptions(
            batching=settings.batching or ("packed" if on_gpu or fits_in_blocks(model) else "padded"),
            layers=LayerOptions(
                settings.checkpoint_layers, offload=settings.offload_activations, compile=settings.compile_layers
            ),
            head=HeadOptions(settings.head_strategy, settings.head_memory, settings.head_backend),
        )

    def forward(self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling = "mean") -> ForwardBackwardOutput:
        """The loss and the model's outputs at every position, without gradients; touches no gradient and no random state.

        Where the model gives NaN, the loss is NaN with a warning that names the datum, and all outputs are returned.
        """
        prepared = self._check(datums, loss, everywhere=True)
        run = self._plan(loss, prepared, pooling, everywhere=True)
        order = range(len(datums))
        with torch.no_grad(), self._restoring_random_state(), self._mode(training=False):
            outputs = run.join(run.cuts, [run.run(cut) for cut in run.cuts], order)
            try:
                total, found = prepared.terms(_handed_over(outputs, order, on_host=loss.on_host))
                value = float(total / prepared.count)
            except NonFiniteLossInput as error:
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)
                value, found = float("nan"), {}
        own = {
            "loss:sum": loss_stat(value, prepared.count),
            "forward_passes": stat_of("max", 1.0),
            **count_metrics(datums, prepared.count),
        }
        results = per_datum(datums, prepared.lengths, outputs)
        return output_of(results, value, own, with_nll(found, datums, outputs), loss.name)

    def forward_backward(
        self, datums: Sequence[Datum], loss: LossLike, pooling: Pooling = "mean"
    ) -> ForwardBackwardOutput:
        """Add the loss's gradient to the parameters'. On any error gradients and random state are as they were."""
        prepared = self._check(datums, loss, everywhere=loss.on_host)
        while True:
            try:
                with self._all_or_nothing(), self._mode(training=self.dropout):
                    return self._forward_backward(loss, prepared, pooling)
            except torch.OutOfMemoryError:
                if loss.couples == "batch" or self.tokens <= max(d.model_input.length for d in datums):
                    raise
                self.tokens //= 2  # by the law, a finer cut gives the same numbers
                warnings.warn(
                    f"out of memory: micro-batches now hold {self.tokens} tokens", RuntimeWarning, stacklevel=2
                )

    def top_logprobs(self, datums: Sequence[Datum], k: int) -> list[TopLogprobs]:
        """The k likeliest next tokens at every position whose weight is not 0; see `top_logprobs.top_logprobs`."""
        return top_logprobs(self.model, datums, k, batching=self.options.batching, tokens=self.tokens)

    def _forward_backward(self, loss: LossLike, prepared: BoundLoss, pooling: Pooling) -> ForwardBackwardOutput:
        run = self._plan(loss, prepared, pooling, everywhere=False)
        together = loss.couples == "batch"
        recompute = together and len(run.cuts) > 1 and not self._graphs_fit(int(prepared.lengths.sum()))
        collected = Collected()
        for group in [run.cuts] if together else [[cut] for cut in run.cuts]:
            self._run_group(run, group, recompute, collected)
        if not np.isfinite(collected.loss):
            raise NonFiniteLossError(f"{loss.name}: the loss is {collected.loss}, though its inputs are finite")
        own = {
            "loss:sum": loss_stat(collected.loss, prepared.count),
            "forward_passes": stat_of("max", 2.0 if recompute else 1.0),
            "micro_batches": stat_of("sum", len(run.cuts)),
            "datums_without_grad": stat_of("sum", collected.datums_without_grad),
            **count_metrics(prepared.datums, prepared.count),
        }
        return output_of(collected.in_order(), collected.loss, own, collected.found, loss.name)

    def _run_group(self, run: Pass, group: list[list[int]], recompute: bool, collected: Collected) -> None:
        """Forward the micro-batches of a group, compute the loss on all their outputs, send its gradient back."""
        prepared = run.prepared
        order = range(len(prepared.datums)) if run.loss.couples == "batch" else group[0]
        states: list[list[Tensor]] = []
        live: list[Outputs] = []
        for cut in group:
            states.append(self._random_state())
            with torch.set_grad_enabled(not recompute):
                live.append(run.run(cut))
        outputs = run.join(group, live, order)
        leaves = _handed_over(outputs, order, on_host=run.loss.on_host)
        total, found = prepared.terms(leaves, order)
        value = total / prepared.count
        gradients = _gradients(value, leaves, run.loss, prepared.lengths[order])
        collected.add(order, prepared, outputs, value, found, gradients)
        parts = run.parted(gradients, group, order)
        for k, cut in enumerate(group):
            if recompute:
                with self._restoring_random_state():
                    self._set_random_state(states[k])
                    live[k] = run.run(cut)
            run.send_back(parts[k], live[k])
            live[k] = Outputs()  # frees the graph

    def _check(self, datums: Sequence[Datum], loss: LossLike, *, everywhere: bool) -> BoundLoss:
        prepared = loss.prepare(datums)
        check_datums(datums, vocab_size=self.model.vocab_size, masked_targets=everywhere)
        check_fits(self.model, datums, loss.outputs)
        return prepared

    def _plan(self, loss: LossLike, prepared: BoundLoss, pooling: Pooling, *, everywhere: bool) -> Pass:
        return Pass.plan(
            self.model,
            loss,
            prepared,
            pooling=pooling,
            options=self.options,
            tokens=self.tokens,
            everywhere=everywhere,
        )

    def _graphs_fit(self, tokens: int) -> bool:
        if self.kept_graph_tokens is not None:
            return tokens <= self.kept_graph_tokens
        config = self.model.config.get_text_config()
        per_token = VALUES_KEPT_PER_UNIT * config.num_hidden_layers * config.hidden_size
        size = next(self.model.module.parameters()).element_size()
        if self.model.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.model.device)
        else:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return tokens * per_token * size <= free // 2

    @contextmanager
    def _mode(self, *, training: bool) -> Iterator[None]:
        before = self.model.module.training
        self.model.module.train(training)
        try:
            yield
        finally:
            self.model.module.train(before)

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
        for p, old in zip(parameters, before, strict=True):
            if old is not None:
                p.grad = old if p.grad is None else old.add_(p.grad)

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


def _handed_over(outputs: Outputs, order: Sequence[int], *, on_host: bool) -> Outputs:
    """Copies of the outputs, as leaves of a new graph where gradients are on; on the CPU for functions that expect that."""
    copies = Outputs(active=outputs.active, numbers=order)
    for name in OUTPUT_NAMES:
        if (values := getattr(outputs, name)) is not None:
            copy = (values.cpu() if on_host else values).clone()  # so that a loss cannot change what the user gets back
            setattr(copies, name, copy.requires_grad_(torch.is_grad_enabled()))
    return copies


def _gradients(value: Tensor, leaves: Outputs, loss: LossLike, lengths: np.ndarray) -> dict[str, Tensor]:
    """d value / d outputs by output name. Raises when the loss does not depend on them, or where they are not finite."""
    tensors = {name: getattr(leaves, name) for name in loss.outputs}
    if not value.requires_grad:
        raise NonDifferentiableLossError(
            f"{loss.name}: the loss does not depend on its {' or '.join(tensors)}, so nothing would be learned. Was it "
            "computed under no_grad, or from .detach(), .item() or torch.tensor(...) of them?"
        )
    found = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
    if all(gradient is None for gradient in found):
        raise NonDifferentiableLossError(
            f"{loss.name}: the loss has a graph, but it does not lead to its {' or '.join(tensors)}, so nothing would be "
            "learned. Does it read a copy made with torch.tensor(...) or .detach()?"
        )
    gradients: dict[str, Tensor] = {}
    for (name, leaf), gradient in zip(tensors.items(), found, strict=True):
        gradients[name] = torch.zeros_like(leaf) if gradient is None else gradient
        finite = torch.isfinite(gradients[name])
        finite = finite if finite.ndim == 1 else finite.all(1)
        if not bool(finite.all()):
            raise NonFiniteLossError(_where(loss, name, int((~finite).nonzero()[0]), leaves, lengths))
    return gradients


def _where(loss: LossLike, name: str, row: int, leaves: Outputs, lengths: np.ndarray) -> str:
    value = getattr(leaves, name)[row].tolist()
    if name == "embeddings" or leaves.active is None:
        return f"{loss.name}: the gradient of the loss is not finite at the {name} of datum {leaves.number(row)}"
    datum, position = locate(row, leaves.active.cpu().numpy(), lengths)
    return (
        f"{loss.name}: the gradient of the loss is not finite at position {position} of datum "
        f"{leaves.number(datum)}, where {name} is {value}. Nothing was changed. Does the loss take exp or log of an unbounded number?"
    )
