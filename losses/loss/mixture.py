"""Weighted sums of losses: one forward serves all parts, and each part keeps its own denominator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ...datums.errors import LengthMismatchError, LossContractError
from ...datums.types import Datum, as_datum
from .. import stats
from ..batch.outputs import Outputs, as_outputs
from ..reductions import Count, coarsest
from ..stats import Stat
from .bound import BoundLoss, BoundMixture, active_in_any, mixed_terms
from .loss import Loss


class Mixture:
    """`0.9 * get_loss("grpo") + 0.1 * get_loss("cross_entropy")`. Used wherever a `Loss` is.

    Metrics of a part are named `part/metric`; `part` itself is that part's own value before its factor.
    """

    def __init__(self, parts: Sequence[tuple[float, Loss]]) -> None:
        self.parts = list(parts)
        names = [loss.name for _, loss in self.parts]
        if len(set(names)) != len(names):
            raise LossContractError(f"a mixture cannot hold one loss twice: {', '.join(names)}")

    @property
    def name(self) -> str:
        """Its parts' ids."""
        return " + ".join(f"{factor:g} * {loss.name}" for factor, loss in self.parts)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model outputs that any part reads."""
        return tuple(dict.fromkeys(name for _, loss in self.parts for name in loss.outputs))

    @property
    def on_host(self) -> bool:
        """Whether any part wants its inputs on the CPU."""
        return any(loss.on_host for _, loss in self.parts)

    @property
    def couples(self) -> str:
        """What must be seen together: the coarsest of the parts."""
        return coarsest(*(loss.couples for _, loss in self.parts))

    @property
    def is_mean(self) -> bool:
        """Whether any part is divided by a count of its data."""
        return any(loss.is_mean for _, loss in self.parts)

    def prepare(self, data: Sequence[Datum], *, strict: bool = False) -> BoundLoss:
        """As `Loss.prepare`, part by part."""
        datums = [as_datum(d) for d in data]
        known = {key for _, loss in self.parts for wanted in loss.spec.inputs for key in wanted.keys}
        parts = [
            (factor, loss.name, loss.prepare(_only(datums, known, loss), strict=strict)) for factor, loss in self.parts
        ]
        return BoundMixture(datums, self.outputs, parts)

    def check(self, data: Sequence[Datum], *, strict: bool = False) -> Count:
        """As `Loss.check`, part by part."""
        return self.prepare(data, strict=strict).count

    def active(self, data: Sequence[Datum]) -> Tensor:
        """[all positions] bool: where any part reads the model's outputs."""
        return active_in_any(loss.active(data) for _, loss in self.parts if loss.spec.reads_tokens)

    def count(self, data: Sequence[Datum]) -> Count:
        """One denominator a part."""
        return Count(tuple(value for _, loss in self.parts for value in loss.count(data).values))

    def terms(self, data: Sequence[Datum], outputs: Any) -> tuple[Tensor, dict[str, Stat]]:
        """One total a part [parts], factors applied, and the parts' metrics."""
        datums = [as_datum(d) for d in data]
        given = outputs if isinstance(outputs, Outputs) else as_outputs(outputs, datums, self.outputs[0])
        return mixed_terms((factor, loss.name, loss.terms(datums, given)) for factor, loss in self.parts)

    def __call__(self, data: Sequence[Datum], logprobs_list: Any) -> tuple[Tensor, dict[str, float]]:
        """The reduced sum with its graph, and its metrics."""
        prepared = self.prepare(data)
        total, found = prepared.terms(logprobs_list)
        return total / prepared.count, stats.values(found)

    def bind(self, data: Sequence[Datum]) -> Callable[..., tuple[Tensor, dict[str, float]]]:
        """As `Loss.bind`."""
        full = [as_datum(d) for d in data]

        def bound(data: Sequence[Any], logprobs_list: Any) -> tuple[Tensor, dict[str, float]]:
            if len(data) != len(full):
                raise LengthMismatchError(f"{self.name} is bound to {len(full)} datums but was handed {len(data)}")
            return self(full, logprobs_list)

        return bound

    def __rmul__(self, factor: float) -> Mixture:
        return Mixture([(factor * own, loss) for own, loss in self.parts])

    __mul__ = __rmul__

    def __add__(self, other: Any) -> Mixture:
        if isinstance(other, Loss):
            other = 1.0 * other
        if not isinstance(other, Mixture):
            return NotImplemented
        return Mixture([*self.parts, *other.parts])

    def __repr__(self) -> str:
        return " + ".join(f"{factor:g} * {loss!r}" for factor, loss in self.parts)


def _only(datums: Sequence[Datum], known: set[str], loss: Loss) -> Sequence[Datum]:
    """Datums without the keys that other parts read, so that no part takes them for misspellings."""
    own = {key for wanted in loss.spec.inputs for key in wanted.keys}
    foreign = known - own - {"target_tokens", "weights"}
    if loss.spec.is_batch_style or not any(foreign.intersection(d.loss_fn_inputs) for d in datums):
        return datums
    return [Datum(d.model_input, {k: v for k, v in d.loss_fn_inputs.items() if k not in foreign}) for d in datums]
