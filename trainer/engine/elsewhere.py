"""A loss that is computed where the model is not: on the client's side, from outputs that ranks keep the graphs of.

    call = LossElsewhere(datums, loss)
    parts = each rank's engine.forward_kept(datums, call.reads, pooling)
    gradients = call.differentiate(parts)           # or, where this raises, each rank's engine.drop_kept()
    each rank's engine.backward_kept(gradients)     # every rank takes its own rows
    output = call.finish()                          # once all ranks have succeeded

So a function that no worker could import runs once, over the whole call, and its own parameters get their gradients here. It
costs one forward and one backward. Without gradients: `forward_kept(datums, call.reads.everywhere(), pooling, keep=False)`,
then `call.valued(parts)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...datums.errors import LengthMismatchError
from ...datums.types import Datum
from ...losses.batch.outputs import Outputs
from ...losses.loss.loss import LossLike
from ...losses.spec.settings import WEIGHTS_KEY
from ..responses import ForwardBackwardOutput
from .checks import TOKEN_OUTPUTS
from .gradients import OwnGradients
from .group_report import Group, differentiated, valued
from .results import Collected, forward_output, per_datum, trained_output, with_nll
from .run.rows import OutputRows


@dataclass(frozen=True)
class Reads:
    """What a loss reads of a model, told to ranks that do not know the loss.

    names        the outputs
    active       [positions of all datums] bool, where outputs per token are computed; None for everywhere
    weight_keys  the keys of its weights
    top_k        how many of the likeliest tokens
    layers       of which layers embeddings
    """

    names: Sequence[str]
    active: np.ndarray | None = None
    weight_keys: Sequence[str] = (WEIGHTS_KEY,)
    top_k: int = 0
    layers: tuple[int, ...] = ()

    def everywhere(self) -> Reads:
        """The same at every position."""
        return replace(self, active=None)


@dataclass(frozen=True)
class KeptOutputs:
    """One rank's outputs for a loss that is computed elsewhere: plain arrays, for another process.

    order           [n] int64: the datums that they are of, by index in the call
    rows            by output, [S], [S, K] or [n, d]: one row per computed position, or per datum; datums in `order`
    micro_batches   how many all ranks have
    forward_passes  2 where the graphs do not fit into memory, so that the backward computes them again; else 1
    """

    order: np.ndarray
    rows: dict[str, np.ndarray]
    micro_batches: int
    forward_passes: int


class LossElsewhere:
    """A loss bound to a call's data, without a model.

    reads: what ranks are told of it. Raises as `loss.prepare` does. The methods raise what `Engine.forward_backward` and `Engine.forward` raise of a loss.
    """

    def __init__(self, datums: Sequence[Datum], loss: LossLike) -> None:
        self.bound = loss.prepare(datums)
        names = self.bound.outputs
        reads_all = loss.on_host or not any(name in TOKEN_OUTPUTS for name in names)
        self.reads = Reads(
            names,
            None if reads_all else self.bound.active.numpy(),
            self.bound.weight_keys,
            self.bound.top_k,
            self.bound.layers,
        )
        self._own = OwnGradients()
        self._output: ForwardBackwardOutput | None = None

    def differentiate(self, parts: Sequence[KeptOutputs]) -> dict[str, np.ndarray]:
        """d loss / d outputs by name, rows of all datums in the call's order, from all ranks' outputs. It changes nothing."""
        group, outputs = self._joined(parts, self.reads.active)
        report, gradients = differentiated(group, outputs, self.bound.count)
        collected, own = Collected(), OwnGradients()
        collected.add(report.read())
        own.add(gradients.parameters, gradients.of_parameters)
        passes, micro_batches = parts[0].forward_passes, parts[0].micro_batches
        self._output = trained_output(
            self.bound, collected, group.order, forward_passes=passes, micro_batches=micro_batches
        )
        self._own = own
        return {name: one.numpy() for name, one in gradients.outputs.items()}

    def finish(self) -> ForwardBackwardOutput:
        """The call's output, as of one process; the loss's own parameters get their gradients."""
        assert self._output is not None, "differentiate comes first"
        self._own.apply()
        return self._output

    def valued(self, parts: Sequence[KeptOutputs]) -> ForwardBackwardOutput:
        """The loss and the outputs, without gradients. `parts` hold every position."""
        with torch.no_grad():
            group, outputs = self._joined(parts, None)
            seen = valued(group, outputs, self.bound.count)
        if seen.trouble is not None:
            warnings.warn(seen.trouble, RuntimeWarning, stacklevel=2)
        results = per_datum(self.bound.datums, self.bound.lengths, seen.outputs)
        metrics = with_nll(seen.metrics, self.bound, seen.outputs)
        collected = Collected(seen.value, 0, metrics, dict(enumerate(results)))
        return forward_output(self.bound, collected, group.order)

    def _joined(self, parts: Sequence[KeptOutputs], active: np.ndarray | None) -> tuple[Group, Outputs]:
        """All datums as the loss reads them, and their outputs in the call's order. active: where outputs were computed."""
        lengths, order = self.bound.lengths, range(len(self.bound.datums))
        active = np.ones(lengths.sum(), dtype=bool) if active is None else active
        names = self.reads.names
        rows = OutputRows(names, np.split(active, np.cumsum(lengths)[:-1]))
        filled = [part for part in parts if len(part.order)]
        cuts = [part.order.tolist() for part in filled]
        if sorted(i for cut in cuts for i in cut) != list(order):
            raise LengthMismatchError(f"{self.bound.name}: the ranks' outputs are not those of {len(order)} datums")
        tensors = [
            replace(Outputs(), **{name: torch.from_numpy(writable(part.rows[name])) for name in names})
            for part in filled
        ]
        group = Group(self.bound.part(order), self.bound.part(order), order, on_host=True)
        return group, rows.join(tensors, order, rows.places(cuts, order))


def writable(array: np.ndarray) -> np.ndarray:
    """The array, or a copy where it came through memory that nobody may write to; torch knows no such tensors."""
    return array if array.flags.writeable else array.copy()
