"""Where each datum's outputs lie: those of several micro-batches joined in a loss's order, and its gradients split again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ....losses.batch.outputs import Outputs
from ....losses.batch.packed import blocks
from ...head.whole import HeadDistributions
from ..checks import TOKEN_OUTPUTS

#: Indices of rows by what they are rows of: "tokens" or "datums".
Places = dict[str, Tensor]


@dataclass
class OutputRows:
    """The outputs of one call's datums as rows: one per computed position, or one per datum.

    names   the outputs that are computed
    active  for each datum, [positions] bool: where outputs per token are computed
    """

    names: Sequence[str]
    active: Sequence[np.ndarray]

    def count(self, name: str, datums: Sequence[int]) -> int:
        """How many rows output `name` has for some datums."""
        return int(self._counts[_rows_of(name)][np.asarray(datums, dtype=np.int64)].sum())

    def places(self, cuts: Sequence[Sequence[int]], order: Sequence[int]) -> Places:
        """Where the rows of the datums in `order` lie in the outputs of `cuts` one after the other; empty if in this order."""
        source = np.concatenate([np.asarray(cut, dtype=np.int64) for cut in cuts])
        if np.array_equal(source, order):
            return {}
        return {of: self._rows(counts, source, order) for of, counts in self._counts.items()}

    def join(self, outputs: Sequence[Outputs], order: Sequence[int], places: Places) -> Outputs:
        """The outputs of several micro-batches as one, detached, datums in `order`."""
        joined = Outputs(active=self.active_in(order))
        for name in self.names:
            parts = [getattr(part, name) for part in outputs]
            if isinstance(parts[0], HeadDistributions):
                together = parts[0] if len(parts) == 1 else HeadDistributions.joined(parts)
            else:
                together = cat_padded([part.detach() for part in parts])
            setattr(joined, name, together[places[_rows_of(name)]] if places else together)
        return joined

    def split_gradients(
        self, gradients: Mapping[str, Tensor], cuts: Sequence[Sequence[int]], places: Places
    ) -> list[dict[str, Tensor]]:
        """Gradients of joined outputs, split into each micro-batch's own rows: the inverse of `join`."""
        if len(cuts) == 1 and not places:
            return [dict(gradients)]
        parts: list[dict[str, Tensor]] = [{} for _ in cuts]
        for name, gradient in gradients.items():
            unjoined = gradient
            if places:
                unjoined = torch.empty_like(gradient)
                unjoined[places[_rows_of(name)]] = gradient
            sizes = [self.count(name, cut) for cut in cuts]
            for part, own in zip(parts, torch.split(unjoined, sizes), strict=True):
                part[name] = own
        return parts

    def active_in(self, order: Sequence[int]) -> Tensor:
        """[positions of the datums in `order`] bool: where outputs per token are computed."""
        return torch.from_numpy(np.concatenate([self.active[i] for i in order]))

    @cached_property
    def _counts(self) -> dict[str, np.ndarray]:
        """[N] each: how many rows every datum has, of outputs per token and of those per datum."""
        active = np.array([mask.sum() for mask in self.active], dtype=np.int64)
        return {"tokens": active, "datums": np.ones(len(self.active), dtype=np.int64)}

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
    return torch.cat([padded_to(width, tensor) for tensor in tensors])


def padded_to(width: int | None, tensor: Tensor) -> Tensor:
    """[S] or [S, K] as [S, width], with 0 in the new columns; as it is without a width."""
    if width is None:
        return tensor
    columns = tensor.unsqueeze(1) if tensor.ndim == 1 else tensor
    return torch.nn.functional.pad(columns, (0, width - columns.shape[1]))


def unpad(gradient: Tensor, like: Tensor) -> Tensor:
    """Drop padding columns from a gradient and cast it to the output's dtype."""
    if gradient.ndim > like.ndim:
        gradient = gradient[:, 0]
    elif gradient.shape != like.shape:
        gradient = gradient[:, : like.shape[1]]
    return gradient.to(like)
