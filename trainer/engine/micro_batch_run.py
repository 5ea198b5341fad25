"""`MicroBatches`: one call's datums cut into micro-batches, their forwards and backwards, and their outputs in a loss's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...losses.batch.outputs import Outputs
from ...losses.batch.packed import blocks
from ...losses.loss.bound import BoundLoss
from ..head.logprobs import default_head_memory
from ..model.model import LoadedModel
from ..packing.hidden import lengths_computed, shares_prefixes
from ..packing.micro_batches import find_prefix_groups, lengths_read, pair_prefix_groups, plan_micro_batches
from .activation_memory import layers_as_set
from .checks import TOKEN_OUTPUTS, Pooling
from .forward import model_outputs
from .settings import EngineSettings


@dataclass
class MicroBatches:
    """The datums of one call, which of their positions are computed, and how they are cut.

    sequences  the tokens of each datum that the model reads, [length] int64
    active     for each datum, [positions] bool: where outputs per token are computed
    cuts       the datum indices of each micro-batch
    """

    model: LoadedModel
    bound: BoundLoss
    pooling: Pooling
    settings: EngineSettings
    sequences: Sequence[np.ndarray]
    active: Sequence[np.ndarray]
    cuts: list[list[int]]

    @classmethod
    def plan(
        cls,
        model: LoadedModel,
        bound: BoundLoss,
        sequences: Sequence[np.ndarray],
        couples: str,
        *,
        pooling: Pooling,
        settings: EngineSettings,
        everywhere: bool,
    ) -> MicroBatches:
        """Cut a call's datums. sequences: all tokens of each. couples: what the loss must see together.

        everywhere: compute every position, also where the loss reads none.
        """
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        reads_all = everywhere or not any(name in TOKEN_OUTPUTS for name in bound.outputs)
        active = np.ones(lengths.sum(), dtype=bool) if reads_all else bound.active.numpy()
        if model.kind == "decoder" and "embeddings" not in bound.outputs:
            read = lengths_computed(model, lengths, lengths_read(lengths, active))
            sequences = [sequence[:length] for sequence, length in zip(sequences, read, strict=True)]
        groups = find_prefix_groups if couples != "pair" else pair_prefix_groups
        shares = shares_prefixes(model, settings.batching)
        cuts = plan_micro_batches(
            [len(sequence) for sequence in sequences],
            tokens=settings.tokens_per_micro_batch,
            pairs=couples == "pair",
            padded=settings.batching == "padded",
            prefix_groups=groups(sequences) if shares else (),
        )
        if couples == "batch" and len(cuts) > 1:  # the graphs of all micro-batches are held together
            memory = default_head_memory(model.device) if settings.head_memory is None else settings.head_memory
            settings = replace(settings, head_memory=memory // len(cuts))
        ends = np.cumsum(lengths)
        masks = [active[start:end] for start, end in zip(ends - lengths, ends, strict=True)]
        return cls(model, bound, pooling, settings, sequences, masks, cuts)

    def run(self, cut: Sequence[int]) -> Outputs:
        """The model's outputs for one micro-batch, with a graph unless gradients are off."""
        sequences = [self.sequences[i] for i in cut]
        active = np.concatenate([self.active[i][: len(self.sequences[i])] for i in cut])
        with layers_as_set(self.model, self.settings), self.model.precision():
            return model_outputs(
                self.model,
                [self.bound.datums[i] for i in cut],
                sequences,
                names=self.bound.outputs,
                rows=None if active.all() else torch.from_numpy(np.flatnonzero(active)),
                pooling=self.pooling,
                settings=self.settings,
                known_gradient=self._known_gradient(cut),
            )

    def join(self, cuts: Sequence[Sequence[int]], outputs: Sequence[Outputs], order: Sequence[int]) -> Outputs:
        """The outputs of several micro-batches as one, detached, datums in `order`."""
        joined = Outputs(active=torch.from_numpy(np.concatenate([self.active[i] for i in order])))
        for name in self.bound.outputs:
            together = cat_padded([getattr(part, name).detach() for part in outputs])
            rows = self._rows(name, cuts, order)
            setattr(joined, name, together if rows is None else together[rows.to(together.device)])
        return joined

    def split_gradients(
        self, gradients: dict[str, Tensor], cuts: Sequence[Sequence[int]], order: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        """Gradients of joined outputs, split into each micro-batch's own rows: the inverse of `join`."""
        if len(cuts) == 1 and np.array_equal(cuts[0], order):
            return [gradients]
        parts: list[dict[str, Tensor]] = [{} for _ in cuts]
        for name, gradient in gradients.items():
            rows = self._rows(name, cuts, order)
            unjoined = gradient
            if rows is not None:
                unjoined = torch.empty_like(gradient)
                unjoined[rows.to(gradient.device)] = gradient
            sizes = [int(self._counts(name)[cut].sum()) for cut in cuts]
            for part, own in zip(parts, torch.split(unjoined, sizes), strict=True):
                part[name] = own
        return parts

    def backward(self, gradients: dict[str, Tensor], outputs: Outputs) -> None:
        """Backward through a micro-batch, from the gradients of its outputs."""
        tensors = [getattr(outputs, name) for name in gradients]
        torch.autograd.backward(
            tensors, [unpad(gradients[name], x) for name, x in zip(gradients, tensors, strict=True)]
        )

    def _known_gradient(self, cut: Sequence[int]) -> Tensor | None:
        """d loss / d logprobs, where it is known before the forward and of use."""
        if not self.bound.is_linear or not torch.is_grad_enabled():
            return None
        dtype = torch.promote_types(next(self.model.module.parameters()).dtype, torch.float32)
        return self.bound.logprob_gradient(cut, dtype=dtype, device=self.model.device)

    @cached_property
    def _active_counts(self) -> np.ndarray:
        return np.array([mask.sum() for mask in self.active], dtype=np.int64)

    def _counts(self, name: str) -> np.ndarray:
        """[N]: rows of output `name` that each datum has."""
        return self._active_counts if name in TOKEN_OUTPUTS else np.ones(len(self.bound.datums), dtype=np.int64)

    def _rows(self, name: str, cuts: Sequence[Sequence[int]], order: Sequence[int]) -> Tensor | None:
        """Where the rows of the datums in `order` lie in the concatenated outputs of `cuts`; None if in this order."""
        source = np.concatenate([np.asarray(cut, dtype=np.int64) for cut in cuts])
        if np.array_equal(source, order):
            return None
        counts = self._counts(name)
        starts = np.empty_like(counts)
        starts[source] = np.cumsum(counts[source]) - counts[source]
        wanted = np.asarray(order, dtype=np.int64)
        return torch.from_numpy(blocks(starts[wanted], counts[wanted]))


def cat_padded(tensors: Sequence[Tensor]) -> Tensor:
    """[S_i] or [S_i, K_i] concatenated; narrower ones are padded with 0."""
    if len(tensors) == 1:
        return tensors[0]
    width = max((tensor.shape[1] for tensor in tensors if tensor.ndim == 2), default=None)
    if width is None:
        return torch.cat(list(tensors))
    columns = [tensor.unsqueeze(1) if tensor.ndim == 1 else tensor for tensor in tensors]
    return torch.cat([torch.nn.functional.pad(tensor, (0, width - tensor.shape[1])) for tensor in columns])


def unpad(gradient: Tensor, like: Tensor) -> Tensor:
    """Drop padding columns from a gradient and cast it to the output's dtype."""
    if gradient.ndim > like.ndim:
        gradient = gradient[:, 0]
    elif gradient.shape != like.shape:
        gradient = gradient[:, : like.shape[1]]
    return gradient.to(like)
