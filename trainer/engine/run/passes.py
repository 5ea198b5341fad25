"""The forwards of several micro-batches and, once the gradients of their outputs are known, their backwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ....losses.batch.outputs import Outputs
from ...packing.shares import Cuts
from ...transfer import to_host
from ..activation_memory import free_memory, held_bytes
from ..group_report import tensors_of
from ..micro_batch_run import MicroBatches
from .undo import RandomState, random_state, restoring_random_state, set_random_state


@dataclass
class Passes:
    """Some micro-batches of a call: all their forwards, and then all their backwards.

    Their graphs are kept until then or, where they do not fit into memory, computed a second time (GradCache).

    cuts       the micro-batches; [] is a dummy, beside another rank's
    recompute  forward twice; None: where the graphs would take more than half of the free memory on any rank, as each
               measures at the first
    parts      each micro-batch's outputs, with their graph unless they are recomputed
    """

    batches: MicroBatches
    cuts: Cuts
    recompute: bool | None = False
    parts: list[Outputs] = field(default_factory=list)
    _states: list[RandomState] = field(default_factory=list)

    def forward(self, known: Tensor | None = None) -> list[Outputs]:
        """Each micro-batch's outputs. known: d loss / d logprobs, of a single micro-batch, where it is known already."""
        device = self.batches.model.device
        for cut in self.cuts:
            self._states += [random_state(device)] if len(self.cuts) > 1 else []
            if self.recompute is None:
                self.parts.append(self._measured(cut))
                continue
            with torch.set_grad_enabled(not self.recompute):
                self.parts.append(self.batches.run(cut, known))
        return self.parts

    def backward(self, gradients: Sequence[Mapping[str, Tensor]], *, on_host: bool) -> None:
        """Backward through each. gradients: of its outputs, by name; {} for none. on_host: they are on the host still."""
        device = self.batches.model.device
        for k, cut in enumerate(self.cuts):
            if self.recompute:
                with restoring_random_state(device):
                    set_random_state(self._states[k], device)
                    self.parts[k] = self.batches.run(cut)
            self.batches.backward(gradients[k], self.parts[k], on_host=on_host)
            self.parts[k] = Outputs()  # frees the graph

    def _measured(self, cut: Sequence[int]) -> Outputs:
        """The outputs of the first micro-batch, without their graph where those of all are too large to be kept together.

        They may take half of what is free.
        """
        model = self.batches.model
        with held_bytes(model.device) as kept:
            outputs = self.batches.run(cut)
        tokens = [sum(len(self.batches.sequences[i]) for i in one) for one in self.cuts]
        expected = kept() * sum(tokens) / max(tokens[0], 1)
        (is_too_large,) = model.ranks.max([expected > (free_memory(model.device) + kept()) / 2])
        self.recompute = is_too_large > 0
        if not self.recompute:
            return outputs
        model.reshard()
        return replace(outputs, **{name: one.detach() for name, one in tensors_of(outputs).items()})


def recomputes(batches: MicroBatches) -> bool | None:
    """Whether a rank recomputes the graphs of micro-batches that a loss sees together; None: depends on memory."""
    if len(batches.cuts) == 1:
        return False
    if (limit := batches.settings.kept_graph_tokens) is None:
        return None
    lengths = np.array([len(mask) for mask in batches.rows.active])
    return any(sum(lengths[cut].sum() for cut in cuts) > limit for cuts in batches.shares)


def read_back(parts: Sequence[Outputs]) -> list[Outputs]:
    """The outputs of several micro-batches on the host."""
    tensors = {(i, name): one for i, part in enumerate(parts) for name, one in tensors_of(part).items()}
    here = to_host({f"{i} {name}": one for (i, name), one in tensors.items()})
    named = [{name: here[f"{i} {name}"] for k, name in tensors if k == i} for i in range(len(parts))]
    return [replace(Outputs(), **outputs) for outputs in named]
