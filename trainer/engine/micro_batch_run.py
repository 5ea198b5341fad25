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
from ..head.autograd import expect_rows
from ..head.backward import KnownRows
from ..head.logprobs import default_head_memory
from ..model.model import LoadedModel
from ..packing.hidden import lengths_computed, shares_prefixes
from ..packing.micro_batches import find_prefix_groups, lengths_read, pair_prefix_groups, plan_micro_batches
from ..transfer import to_device
from .activation_memory import layers_as_set
from .checks import HEAD_OUTPUTS, TOKEN_OUTPUTS, Pooling
from .forward import model_outputs
from .group_report import Group
from .settings import EngineSettings

#: Indices of rows by what they are rows of: "tokens" or "datums".
Places = dict[str, Tensor]


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

    def run(self, cut: Sequence[int], known_gradient: Tensor | None = None) -> Outputs:
        """The model's outputs for one micro-batch, with a graph unless gradients are off.

        known_gradient: d loss / d logprobs of these datums, where it is known.
        """
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
                known_gradient=known_gradient,
            )

    def group(self, cuts: Sequence[Sequence[int]], order: Sequence[int], *, on_host: bool) -> tuple[Group, Places]:
        """The datums of some micro-batches as the loss reads them, its data already on the way to the device.

        on_host: the loss reads outputs on the host. Also returns where the rows of its outputs lie in the micro-batches'.
        """
        part, places = self.bound.part(order), self.places(cuts, order)
        if on_host:
            return Group(part, part, order, on_host=True), places
        tensors = part.tensors(self._active(order))
        there = to_device({**tensors, **{f"places {of}": one for of, one in places.items()}}, self.model.device)
        placed = part.placed({name: there[name] for name in tensors})
        return Group(part, placed, order, on_host=False), {of: there[f"places {of}"] for of in places}

    def places(self, cuts: Sequence[Sequence[int]], order: Sequence[int]) -> Places:
        """Where the rows of the datums in `order` lie in the outputs of `cuts` one after the other; empty if in this order."""
        source = np.concatenate([np.asarray(cut, dtype=np.int64) for cut in cuts])
        if np.array_equal(source, order):
            return {}
        return {of: self._rows(counts, source, order) for of, counts in self._row_counts.items()}

    def join(self, outputs: Sequence[Outputs], order: Sequence[int], places: Places) -> Outputs:
        """The outputs of several micro-batches as one, detached, datums in `order`."""
        joined = Outputs(active=self._active(order))
        for name in self.bound.outputs:
            together = cat_padded([getattr(part, name).detach() for part in outputs])
            setattr(joined, name, together[places[_rows_of(name)]] if places else together)
        return joined

    def split_gradients(
        self, gradients: dict[str, Tensor], cuts: Sequence[Sequence[int]], places: Places
    ) -> list[dict[str, Tensor]]:
        """Gradients of joined outputs, split into each micro-batch's own rows: the inverse of `join`."""
        if len(cuts) == 1 and not places:
            return [gradients]
        parts: list[dict[str, Tensor]] = [{} for _ in cuts]
        for name, gradient in gradients.items():
            unjoined = gradient
            if places:
                unjoined = torch.empty_like(gradient)
                unjoined[places[_rows_of(name)]] = gradient
            sizes = [int(self._row_counts[_rows_of(name)][cut].sum()) for cut in cuts]
            for part, own in zip(parts, torch.split(unjoined, sizes), strict=True):
                part[name] = own
        return parts

    def backward(self, gradients: dict[str, Tensor], outputs: Outputs, *, on_host: bool) -> None:
        """Backward through a micro-batch, from the gradients of its outputs; on_host: these are still on the host."""
        gradients = self._sent(gradients, outputs) if on_host else gradients
        tensors = [getattr(outputs, name) for name in gradients]
        torch.autograd.backward(
            tensors, [unpad(gradients[name], x) for name, x in zip(gradients, tensors, strict=True)]
        )

    def _sent(self, gradients: dict[str, Tensor], outputs: Outputs) -> dict[str, Tensor]:
        """The gradients on the device; the head is told which of its rows have one, which is to be seen here."""
        of_head = [name for name in gradients if name in HEAD_OUTPUTS]
        if not of_head:
            return to_device(gradients, self.model.device)
        nonzero = [gradients[name].numpy() != 0 for name in of_head]
        rows = np.flatnonzero(np.any([one if one.ndim == 1 else one.any(1) for one in nonzero], axis=0))
        there = to_device({**gradients, "rows": torch.from_numpy(rows)}, self.model.device)
        expect_rows(getattr(outputs, of_head[0]), KnownRows(rows, there.pop("rows")))
        return there

    def known_gradient(self, group: Group) -> Tensor | None:
        """d loss / d logprobs of a group's datums, where it is known before the forward and of use."""
        if not self.bound.is_linear or not torch.is_grad_enabled():
            return None
        dtype = torch.promote_types(next(self.model.module.parameters()).dtype, torch.float32)
        return group.placed.logprob_gradient(count=self.bound.count, dtype=dtype, device=self.model.device)

    def _active(self, order: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.concatenate([self.active[i] for i in order]))

    @cached_property
    def _row_counts(self) -> dict[str, np.ndarray]:
        """[N] each: how many rows every datum has, of outputs per token and of those per datum."""
        active = np.array([mask.sum() for mask in self.active], dtype=np.int64)
        return {"tokens": active, "datums": np.ones(len(self.bound.datums), dtype=np.int64)}

    @staticmethod
    def _rows(counts: np.ndarray, source: np.ndarray, order: Sequence[int]) -> Tensor:
        starts = np.empty_like(counts)
        starts[source] = np.cumsum(counts[source]) - counts[source]
        wanted = np.asarray(order, dtype=np.int64)
        return torch.from_numpy(blocks(starts[wanted], counts[wanted]))


def _rows_of(name: str) -> str:
    return "tokens" if name in TOKEN_OUTPUTS else "datums"


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
