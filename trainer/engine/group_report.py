"""What the datums of one group report: their outputs, loss, metrics and gradients, checked once they are on the host.

A loss's function and the backward are queued without looking at any number: to look is to wait for the device. All that is
to be looked at goes to the host in one copy, and whatever is wrong is raised then. Gradients are in buffers of their own
until a whole call has succeeded, so that a backward from wrong numbers changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import NonFiniteLossInput
from ...losses.batch.outputs import ALL_OUTPUTS, Outputs
from ...losses.loss.bound import BoundLoss
from ...losses.reductions import Count
from ...losses.spec.layers import DATUM_OUTPUTS
from ...losses.spec.vocabulary import VOCABULARY_OUTPUTS
from ...losses.stats import Stat
from ..head.whole import HeadDistributions
from ..transfer import Report, to_host
from .gradients import LossGradients, loss_gradients


@dataclass(frozen=True)
class Group:
    """Datums that a loss sees together.

    part     the loss bound to them, its data on the host
    placed   the same, its data where it reads the model's outputs
    order    their indices in the call
    on_host  whether the loss reads outputs on the host
    """

    part: BoundLoss
    placed: BoundLoss
    order: Sequence[int]
    on_host: bool

    def leaves(self, outputs: Outputs) -> Outputs:
        """Copies of the outputs, as leaves of a new graph where gradients are on. Their numbers are checked in the report."""
        copies = Outputs(active=outputs.active, numbers=self.order, is_unchecked=True)
        for name, whole in wholes_of(outputs).items():
            setattr(copies, name, whole.leaf())
        for name, values in tensors_of(outputs).items():
            copy = values.clone()  # a loss must not change the outputs that the user gets
            setattr(copies, name, copy.requires_grad_(torch.is_grad_enabled() and copy.is_floating_point()))
        return copies

    def terms(self, leaves: Outputs, outputs: Outputs) -> tuple[Tensor, dict[str, Stat]]:
        """The loss's total and metrics. Where its function fails, the outputs are checked: NaN explains it best."""
        try:
            return self.placed.terms(leaves)
        except Exception:
            self.check(tensors_of(outputs) if self.on_host else to_host(tensors_of(outputs)), outputs.active)
            raise

    def check(self, outputs: Mapping[str, Tensor], active: Tensor | None) -> Outputs:
        """The outputs on the host, after checking that those which the loss reads are finite."""
        arrived = replace(Outputs(active=active, numbers=self.order), **outputs)
        self.part.check_outputs(arrived)
        return arrived


class GroupReport:
    """The numbers of one group, on their way to the host."""

    def __init__(
        self,
        group: Group,
        outputs: Outputs,
        value: Tensor,
        metrics: Mapping[str, Stat],
        gradients: LossGradients | None = None,
    ) -> None:
        self.group, self._active, self._metrics, self._gradients = group, outputs.active, metrics, gradients
        counts = {f"count {name}": stat.count for name, stat in metrics.items() if not stat.is_known}
        totals = {f"total {name}": stat.total for name, stat in metrics.items()}
        tensors = {f"output {name}": values for name, values in tensors_of(outputs).items()}
        tensors |= {f"output {name}": whole.size() for name, whole in wholes_of(outputs).items()}
        looked_at = {} if gradients is None else gradients.to_check()
        tensors |= {**totals, **counts, **looked_at, "value": value}
        self._report = Report(tensors, is_here=group.on_host)

    def read(self) -> Arrived:
        """Wait for the numbers and raise the first problem: of outputs first, then of losses and gradients."""
        numbers = self._report.read()
        outputs = {name: numbers[f"output {name}"] for name in ALL_OUTPUTS if f"output {name}" in numbers}
        arrived = self.group.check(outputs, self._active)
        if self._gradients is not None:
            self._gradients.check(numbers, arrived)
        metrics = {
            name: Stat(stat.kind, numbers[f"total {name}"], numbers.get(f"count {name}", stat.count), stat.is_known)
            for name, stat in self._metrics.items()
        }
        return Arrived(self.group, arrived, float(numbers["value"]), metrics, numbers)


def differentiated(
    group: Group, outputs: Outputs, count: Count, known: Tensor | None = None
) -> tuple[GroupReport, LossGradients]:
    """A group's loss and its gradients, computed on copies of the outputs; their numbers are looked at in the report.

    count: the whole call's denominator. known: the gradient of the logprobs, where it was computed before the forward.
    """
    leaves = group.leaves(outputs)
    total, metrics = group.terms(leaves, outputs)
    value = total / count
    gradients = loss_gradients(value, leaves, group.part, known)
    return GroupReport(group, outputs, value, metrics, gradients), gradients


@dataclass(frozen=True)
class Valued:
    """A group's loss without gradients, its numbers on the host.

    trouble: why it is NaN and has no metrics, where the model's outputs were not finite.
    """

    value: float
    metrics: dict[str, Stat]
    outputs: Outputs
    trouble: str | None = None


def valued(group: Group, outputs: Outputs, count: Count) -> Valued:
    """A group's loss and metrics. count: the whole call's denominator."""
    try:
        total, metrics = group.terms(group.leaves(outputs), outputs)
        arrived = GroupReport(group, outputs, total / count, metrics).read()
        return Valued(arrived.value, arrived.metrics, arrived.outputs)
    except NonFiniteLossInput as error:
        return Valued(float("nan"), {}, replace(outputs, **to_host(tensors_of(outputs))), str(error))


@dataclass(frozen=True)
class Arrived:
    """A group's numbers on the host."""

    group: Group
    outputs: Outputs
    value: float
    metrics: dict[str, Stat]
    numbers: Mapping[str, Tensor]

    def datums_without_gradient(self) -> int:
        """How many of the group's datums no gradient reaches."""
        lengths = self.group.part.lengths
        moved = np.zeros(len(lengths), dtype=bool)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        owner = owner if self.outputs.active is None else owner[self.outputs.active.numpy()]
        for name in ALL_OUTPUTS:
            if (gradient := self.numbers.get(f"gradient {name}")) is not None:
                rows = gradient.numpy() != 0
                moved[rows if name in DATUM_OUTPUTS else owner[rows]] = True
        return int((~moved).sum())


def tensors_of(outputs: Outputs) -> dict[str, Tensor]:
    """The outputs that there are as tensors, by name."""
    return {name: values for name in ALL_OUTPUTS if isinstance(values := getattr(outputs, name), Tensor)}


def wholes_of(outputs: Outputs) -> dict[str, HeadDistributions]:
    """The whole distributions that there are, by name."""
    named = {name: getattr(outputs, name) for name in VOCABULARY_OUTPUTS}
    return {name: whole for name, whole in named.items() if isinstance(whole, HeadDistributions)}
