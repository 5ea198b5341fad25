"""One call's passes: running micro-batches, and putting their outputs into the order in which a loss reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datums.types import Datum
from ...losses.batch.outputs import Outputs
from ...losses.batch.pack import counts_of
from ...losses.batch.packed import blocks
from ...losses.loss.bound import BoundLoss
from ...losses.loss.loss import LossLike
from ..head.logprobs import memory_budget_on
from ..model.load import LoadedModel
from ..packing.attention import fits_in_blocks
from ..packing.micro_batches import plan_micro_batches
from ..packing.rows import find_families, pair_families
from .activation_memory import LayerOptions
from .forward import TOKEN_OUTPUTS, Batching, HeadOptions, Pooling, lengths_read, model_outputs, tokens_of


@dataclass(frozen=True)
class RunOptions:
    """How the model runs: its datums side by side or in one row, its layers, and its head."""

    batching: Batching
    layers: LayerOptions = field(default_factory=LayerOptions)
    head: HeadOptions = field(default_factory=HeadOptions)


@dataclass
class Pass:
    """The datums of one call, which of their positions are needed, and how they are cut into micro-batches.

    active: [positions of all datums] bool. cuts: the datum indices of each micro-batch. options: how the model runs.
    """

    model: LoadedModel
    loss: LossLike
    prepared: BoundLoss
    pooling: Pooling
    options: RunOptions
    active: Tensor
    cuts: list[list[int]]

    @classmethod
    def plan(
        cls,
        model: LoadedModel,
        loss: LossLike,
        prepared: BoundLoss,
        *,
        pooling: Pooling,
        options: RunOptions,
        tokens: int,
        everywhere: bool,
    ) -> Pass:
        """Plan a pass; `everywhere` computes every position, even where the loss does not look."""
        if everywhere or not any(name in TOKEN_OUTPUTS for name in loss.outputs):
            active = torch.ones(int(prepared.lengths.sum()), dtype=torch.bool)
        else:
            active = prepared.active
        cuts = plan_micro_batches(
            **_lengths_and_families(model, prepared.datums, loss, active, options.batching),
            tokens=tokens,
            pairs=loss.couples == "pair",
            padded=options.batching == "padded",
        )
        return cls(model, loss, prepared, pooling, options, active, cuts)

    def run(self, cut: Sequence[int]) -> Outputs:
        """The model's outputs for one micro-batch, with a graph unless gradients are off."""
        options = self.options
        with options.layers.applied(self.model), self.model.precision():
            return model_outputs(
                self.model,
                self.prepared.chosen(cut),
                names=self.loss.outputs,
                active=self._active(cut),
                batching=options.batching,
                pooling=self.pooling,
                head=self._head_options(),
                known_gradient=self._known_gradient(cut),
            )

    def _head_options(self) -> HeadOptions:
        """The head's options, its budget divided where the graphs of all micro-batches are held together."""
        head = self.options.head
        if self.loss.couples != "batch" or len(self.cuts) == 1:
            return head
        budget = memory_budget_on(self.model.device) if head.memory_budget is None else head.memory_budget
        return replace(head, memory_budget=budget // len(self.cuts))

    def _known_gradient(self, cut: Sequence[int]) -> Tensor | None:
        """d loss / d logprobs, where that is known before the forward and of use."""
        if not self.prepared.is_linear or not torch.is_grad_enabled():
            return None
        dtype = torch.promote_types(next(self.model.module.parameters()).dtype, torch.float32)
        return self.prepared.logprob_gradient(cut, dtype=dtype, device=self.model.device)

    def join(self, cuts: Sequence[Sequence[int]], outputs: Sequence[Outputs], order: Sequence[int]) -> Outputs:
        """The outputs of several micro-batches as one, detached, datums in `order`."""
        joined = Outputs(active=self._active(order))
        for name in self.loss.outputs:
            together = _one_below_another([getattr(part, name).detach() for part in outputs])
            rows = self._rows(name, cuts, order)
            setattr(joined, name, together if rows is None else together[rows.to(together.device)])
        return joined

    def parted(
        self, gradients: dict[str, Tensor], cuts: Sequence[Sequence[int]], order: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        """What `join` did, undone for the gradients of what it joined: each micro-batch's own rows."""
        parts: list[dict[str, Tensor]] = [{} for _ in cuts]
        for name, gradient in gradients.items():
            rows = self._rows(name, cuts, order)
            unjoined = gradient
            if rows is not None:
                unjoined = torch.empty_like(gradient)
                unjoined[rows.to(gradient.device)] = gradient
            sizes = [int(self._counts(name)[cut].sum()) for cut in cuts]
            for part, piece in zip(parts, torch.split(unjoined, sizes), strict=True):
                part[name] = piece
        return parts

    def send_back(self, gradients: dict[str, Tensor], outputs: Outputs) -> None:
        """Backward through a micro-batch, given the gradients of its outputs."""
        live = [getattr(outputs, name) for name in gradients]
        torch.autograd.backward(live, [_own(gradients[name], x) for name, x in zip(gradients, live, strict=True)])

    def _active(self, order: Sequence[int]) -> Tensor:
        """[positions of the datums in `order`] bool: which of them are computed."""
        return self.active[torch.from_numpy(self.prepared.positions(order))]

    @cached_property
    def _active_counts(self) -> np.ndarray:
        return counts_of(self.active.numpy(), self.prepared.lengths)

    def _counts(self, name: str) -> np.ndarray:
        """[N] rows of output `name` that each datum has."""
        return self._active_counts if name in TOKEN_OUTPUTS else np.ones(len(self.prepared.datums), dtype=np.int64)

    def _rows(self, name: str, cuts: Sequence[Sequence[int]], order: Sequence[int]) -> Tensor | None:
        """Where, in the concatenated outputs of `cuts`, the rows of the datums of `order` lie; None for where they are."""
        source = np.concatenate([np.asarray(cut, dtype=np.int64) for cut in cuts])
        if np.array_equal(source, order):
            return None
        counts = self._counts(name)
        starts = np.empty_like(counts)
        starts[source] = np.cumsum(counts[source]) - counts[source]
        wanted = np.asarray(order, dtype=np.int64)
        return torch.from_numpy(blocks(starts[wanted], counts[wanted]))


def _one_below_another(tensors: Sequence[Tensor]) -> Tensor:
    """[S_i] or [S_i, K_i] as one; narrower ones are filled up with 0."""
    if len(tensors) == 1:
        return tensors[0]
    width = max((tensor.shape[1] for tensor in tensors if tensor.ndim == 2), default=None)
    if width is None:
        return torch.cat(list(tensors))
    columns = [tensor.unsqueeze(1) if tensor.ndim == 1 else tensor for tensor in tensors]
    return torch.cat([torch.nn.functional.pad(tensor, (0, width - tensor.shape[1])) for tensor in columns])


def _own(gradient: Tensor, like: Tensor) -> Tensor:
    """A gradient without the columns that filled its rows up, in the output's own dtype."""
    if gradient.ndim > like.ndim:
        gradient = gradient[:, 0]
    elif gradient.shape != like.shape:
        gradient = gradient[:, : like.shape[1]]
    return gradient.to(like)


def _lengths_and_families(
    model: LoadedModel, datums: Sequence[Datum], loss: LossLike, active: Tensor, batching: Batching
) -> dict[str, Any]:
    """What each datum costs in tokens, and which share a prefix."""
    sequences = [tokens_of(datum) for datum in datums]
    if model.kind == "decoder" and "embeddings" not in loss.outputs:
        read = lengths_read([len(s) for s in sequences], active.numpy())
        sequences = [sequence[:length] for sequence, length in zip(sequences, read, strict=True)]
    lengths = [len(sequence) for sequence in sequences]
    if batching == "padded" or model.module.training or not fits_in_blocks(model):
        return {"lengths": lengths}
    families = pair_families(sequences) if loss.couples == "pair" else find_families(sequences)
    return {"lengths": lengths, "families": families}
