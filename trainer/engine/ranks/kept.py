"""`Kept`: forwards whose graphs wait for the gradients of a loss that is computed elsewhere; see `elsewhere.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ....datums.checks.validation import check_datums
from ....datums.errors import LengthMismatchError
from ....datums.types import Datum
from ....losses.batch.outputs import Outputs
from ...model.model import LoadedModel
from ...sharding.gradients import abandon, sum_gradients
from ..checks import Pooling, checked_tokens
from ..elsewhere import KeptOutputs, Reads, writable
from ..micro_batch_run import MicroBatches
from ..run.passes import Passes, read_back, recomputes
from ..run.rows import cat_padded
from ..run.undo import all_or_nothing, mode, random_state, restoring_random_state, set_random_state
from ..settings import EngineSettings
from .merged import own_random_numbers


class Kept:
    """A call's datums, checked; its outputs; and the graphs of its forwards until `backward` or `drop`.

    All ranks make one together, and call its methods together.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: EngineSettings,
        datums: Sequence[Datum],
        reads: Reads,
        pooling: Pooling,
    ) -> None:
        self._model, self._settings, self._before = model, settings, random_state(model.device)
        with model.ranks.agree():
            check_datums(
                datums,
                vocab_size=model.vocab_size,
                masked_targets=reads.active is None,
                weight_keys=reads.weight_keys,
            )
            sequences = checked_tokens(model, datums, reads.names)
        self._plan = lambda: MicroBatches.plan(
            model,
            datums,
            sequences,
            reads.names,
            reads.active,
            couples="batch",
            pooling=pooling,
            settings=settings,
            top_k=reads.top_k,
            layers=reads.layers,
        )

    def forward(self) -> KeptOutputs:
        """The outputs, their graphs kept. On an error all is as it was."""
        model = self._model
        with all_or_nothing(model, self._before), mode(model, training=self._settings.dropout, adapters=True):
            batches = self._plan()
            self._passes = Passes(batches, batches.cuts, recomputes(batches))
            with own_random_numbers(model, drops=model.drops):
                parts = self._passes.forward()
        return outputs_of(batches, parts, forward_passes=2 if self._passes.recompute else 1)

    def forward_only(self) -> KeptOutputs:
        """The outputs without graphs; nothing is kept, and no random state changes."""
        with torch.no_grad(), restoring_random_state(self._model.device), mode(self._model, training=False):
            batches = self._plan()
            return outputs_of(batches, [batches.run(cut) for cut in batches.cuts], forward_passes=1)

    def backward(self, gradients: Mapping[str, np.ndarray]) -> None:
        """Add the gradient to the parameters'. gradients: of the outputs of all datums, in the call's order.

        On an error gradients are as before, and the random state is that before the forward.
        """
        model, batches = self._model, self._passes.batches
        with all_or_nothing(model, self._before), mode(model, training=self._settings.dropout, adapters=True):
            cuts, order = batches.seen(batches.cuts, [], together=True)
            with model.ranks.agree():
                tensors = {name: self._checked(name, one) for name, one in gradients.items()}
                split = batches.rows.split_gradients(tensors, cuts, batches.rows.places(cuts, order))
            self._passes.backward(batches.this_ranks(split), on_host=True)
            sum_gradients(model)

    def drop(self) -> None:
        """Forget the graphs; the random state is that before the forward."""
        set_random_state(self._before, self._model.device)
        self._passes.parts.clear()
        abandon(self._model)

    def _checked(self, name: str, gradient: np.ndarray) -> Tensor:
        batches = self._passes.batches
        if name not in batches.rows.names:
            raise LengthMismatchError(f"there is a gradient of {name}, but the outputs were {batches.rows.names}")
        rows = batches.rows.count(name, range(len(batches.datums)))
        if len(gradient) != rows:
            raise LengthMismatchError(f"the gradient of {name} has {len(gradient)} rows, but there are {rows} outputs")
        return torch.from_numpy(writable(np.asarray(gradient)))


def outputs_of(batches: MicroBatches, parts: Sequence[Outputs], *, forward_passes: int) -> KeptOutputs:
    """This rank's outputs as arrays on the host; none if another rank has the same outputs and sends them."""
    here = read_back(parts)
    rows = {name: cat_padded([getattr(part, name) for part in here]).numpy() for name in batches.rows.names}
    order = np.array([i for cut in batches.cuts for i in cut], dtype=np.int64)
    if not batches.model.ranks.is_counted:
        order, rows = order[:0], {name: array[:0] for name, array in rows.items()}
    return KeptOutputs(order, rows, batches.count, forward_passes)
