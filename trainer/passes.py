"""One call's passes: running micro-batches, and putting their outputs into the order in which a loss reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datums.types import Datum
from ..losses.outputs import Outputs
from ..losses.packing import positions_of
from ..losses.protocol import LossLike
from .block_attention import fits_in_blocks
from .forward import TOKEN_OUTPUTS, Batching, Pooling, lengths_read, model_outputs, tokens_of
from .micro_batches import plan_micro_batches
from .models import LoadedModel
from .packed_rows import find_families, pair_families


@dataclass
class Pass:
    """The datums of one call, which of their positions are needed, and how they are cut into micro-batches.

    covered: [positions] bool for each datum. cuts: the datum indices of each micro-batch.
    """

    model: LoadedModel
    datums: Sequence[Datum]
    loss: LossLike
    pooling: Pooling
    batching: Batching
    covered: list[Tensor]
    cuts: list[list[int]]

    @classmethod
    def plan(
        cls,
        model: LoadedModel,
        datums: Sequence[Datum],
        loss: LossLike,
        *,
        pooling: Pooling,
        batching: Batching,
        tokens: int,
        everywhere: bool,
    ) -> Pass:
        """Plan a pass; `everywhere` computes every position, even where the loss does not look."""
        positions = [positions_of(datum) for datum in datums]
        if everywhere or not any(name in TOKEN_OUTPUTS for name in loss.outputs):
            covered = [torch.ones(n, dtype=torch.bool) for n in positions]
        else:
            covered = list(torch.split(loss.covers(datums), positions))
        cuts = plan_micro_batches(
            **_lengths_and_families(model, datums, loss, covered, batching),
            tokens=tokens,
            pairs=loss.couples == "pair",
            padded=batching == "padded",
        )
        return cls(model, datums, loss, pooling, batching, covered, cuts)

    def run(self, cut: Sequence[int]) -> Outputs:
        """The model's outputs for one micro-batch, with a graph unless gradients are off."""
        return model_outputs(
            self.model,
            [self.datums[i] for i in cut],
            names=self.loss.outputs,
            covered=torch.cat([self.covered[i] for i in cut]),
            batching=self.batching,
            pooling=self.pooling,
        )

    def join(self, cuts: Sequence[Sequence[int]], outputs: Sequence[Outputs], order: Sequence[int]) -> Outputs:
        """The outputs of several micro-batches as one, detached, datums in `order`."""
        joined = Outputs(covered=torch.cat([self.covered[i] for i in order]))
        for name in self.loss.outputs:
            together = torch.cat([getattr(part, name).detach() for part in outputs])
            setattr(joined, name, together[self._rows(name, cuts, order).to(together.device)])
        return joined

    def send_back(
        self,
        gradients: dict[str, Tensor],
        cuts: Sequence[Sequence[int]],
        order: Sequence[int],
        k: int,
        outputs: Outputs,
    ) -> None:
        """Backward through micro-batch `k`, given the gradients of the joined outputs of `cuts`."""
        tensors: list[Tensor] = []
        parts: list[Tensor] = []
        for name, gradient in gradients.items():
            live = getattr(outputs, name)
            unjoined = torch.empty_like(gradient)
            unjoined[self._rows(name, cuts, order).to(gradient.device)] = gradient
            start = sum(self._counts(name, cut).sum() for cut in cuts[:k])
            tensors.append(live)
            parts.append(unjoined[start : start + len(live)].to(live))
        torch.autograd.backward(tensors, parts)

    def _counts(self, name: str, order: Sequence[int]) -> np.ndarray:
        """Rows of output `name` that each datum of `order` has."""
        if name not in TOKEN_OUTPUTS:
            return np.ones(len(order), dtype=np.int64)
        return np.array([int(self.covered[i].sum()) for i in order], dtype=np.int64)

    def _rows(self, name: str, cuts: Sequence[Sequence[int]], order: Sequence[int]) -> Tensor:
        """Where, in the concatenated outputs of `cuts`, the rows of the datums of `order` lie."""
        source = [i for cut in cuts for i in cut]
        counts = self._counts(name, source)
        starts = dict(zip(source, np.cumsum(counts) - counts, strict=True))
        counts = dict(zip(source, counts, strict=True))
        wanted = np.array([counts[i] for i in order], dtype=np.int64)
        begin = np.repeat(np.array([starts[i] for i in order], dtype=np.int64), wanted)
        within = np.arange(wanted.sum()) - np.repeat(np.cumsum(wanted) - wanted, wanted)
        return torch.from_numpy(begin + within)


def _lengths_and_families(
    model: LoadedModel, datums: Sequence[Datum], loss: LossLike, covered: Sequence[Tensor], batching: Batching
) -> dict[str, Any]:
    """What each datum costs in tokens, and which share a prefix."""
    sequences = [tokens_of(datum) for datum in datums]
    if model.kind == "decoder" and "embeddings" not in loss.outputs:
        read = lengths_read([len(s) for s in sequences], torch.cat(list(covered)).numpy())
        sequences = [sequence[:length] for sequence, length in zip(sequences, read, strict=True)]
    lengths = [len(sequence) for sequence in sequences]
    if batching == "padded" or model.module.training or not fits_in_blocks(model):
        return {"lengths": lengths}
    families = pair_families(sequences) if loss.couples == "pair" else find_families(sequences)
    return {"lengths": lengths, "families": families}
