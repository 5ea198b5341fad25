"""Packing, reducing and merging for a single datum, as torch operations on tensors that are being traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...datums.errors import TraceError
from ..batch.positions import active_positions, active_targets, harmless, standard_metrics, weighted
from ..batch.seqs import Seqs
from ..spec.settings import WEIGHTS_KEY
from ..spec.spec import LossSpec
from ..stats import Stat
from .recorder import SELECTS, is_selected, shape_of

#: Sizes of the example that shapes are read from: unlike each other, and unlike the 1 of one number per datum.
TOKENS, TARGETS = 5, 3


def example_of(rank: int, *, is_weight: bool) -> Tensor:
    """Harmless numbers of that rank; only their shapes are read."""
    shape = (TOKENS, TARGETS)[:rank]
    return torch.ones(shape) if is_weight else torch.full(shape, -0.5)


class SingleDatum:
    """The arguments of a loss's function for one datum, and the reduction of its results.

    Cutting positions out would give shapes that depend on data. Instead, positions of weight 0 hold 0 before the loss's
    formula sees them, and are left out of every sum afterwards.
    """

    def __init__(self, spec: LossSpec, given: Mapping[str, Any], weights: str = WEIGHTS_KEY) -> None:
        """given: the tensors by name, the weights under the key `weights`."""
        self.spec = spec
        self.given = given
        self.weights: Any = given[weights]
        self.active: Any = active_targets(self.weights, spec)
        self.rows: Any = active_positions(self.active)
        self.logprobs = self._neutral(given["logprobs"])
        if spec.candidates is not None and not spec.wants_weights:
            self.logprobs = torch.where(given[spec.candidates] == -torch.inf, 0, self.logprobs)

    def arguments(self) -> list[Any]:
        """The positional arguments of the loss's function; None for an optional input that is not read."""
        seqs = SingleDatumSeqs(self.rows, None if self.spec.per == "token" else self.weights, self.logprobs)
        special = {"seqs": seqs, "weights": self.weights, "logprobs": self.logprobs}
        return [special[name] if name in special else self._input(name) for name in self.spec.parameters]

    def _input(self, name: str) -> Any:
        value = self.given.get(name)
        if value is None:
            return None
        if next(one.per for one in self.spec.inputs if one.name == name) == "datum":
            return value.reshape(1)
        if value.ndim == 0:  # a scalar holds for the whole datum
            value = value.expand_as(self.rows)
        if value.ndim < self.active.ndim:  # one number per position, repeated per target
            value = value.unsqueeze(1).expand_as(self.active)
        return self._neutral(value)

    def _neutral(self, value: Any) -> Any:
        if self.spec.wants_weights:
            return harmless(value, self.weights)
        return torch.where(self.active.unsqueeze(1) if value.ndim > self.active.ndim else self.active, value, 0)

    def finished(self, returned: Any) -> tuple[Any, dict[str, Any], dict[str, str]]:
        """(0-d loss, the service's metrics, the metrics it cannot have) from what the loss's function returned."""
        pair: Any = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, {})
        values, reported = pair
        reported = {**standard_metrics(self.spec, self.logprobs), **reported}
        logprobs = self.given["logprobs"]
        expected = {"token": tuple(shape_of(logprobs if self.spec.candidates is None else self.rows)), "datum": (1,)}
        if shape_of(values) != expected[self.spec.per]:
            raise TraceError(
                f"with logprobs of shape {list(shape_of(logprobs))} it returns losses of shape {list(shape_of(values))}, "
                f"not {list(expected[self.spec.per])}"
            )
        if self.spec.per == "datum":
            values = torch.where(self.rows.any(), raised(values, logprobs), 0)
        elif self.spec.wants_weights:
            values = raised(values, logprobs)
        else:
            values = weighted(values, self.weights, self.active)
        metrics: dict[str, Any] = {}
        dropped: dict[str, str] = {}
        for name, stat in reported.items():
            key, value = self._metric(name, stat)
            if value is None:
                dropped[name] = key
            else:
                metrics[key] = value
        return values.sum(), metrics, dropped

    def _metric(self, name: str, stat: Stat) -> tuple[str, Any]:
        """("custom/name:sum" or ":mean", 0-d), or (why the service cannot have it, None)."""
        values: Any = stat.total
        shape = shape_of(values)
        if stat.kind not in ("mean", "sum"):
            return f"the service merges sums and means only, not the {stat.kind} of datums", None
        if is_selected(values):
            return f"it {SELECTS}", None
        if 0 in shape:
            return "it is of an optional input that is not read", None
        values = values.detach()
        if shape[:1] == (TOKENS,):
            active = self.active if shape == shape_of(self.active) else _beside(self.rows, values)
        elif shape in ((), (1,)):
            active, values = self.rows.any().reshape(1), values.reshape(1)
        else:
            return f"it is of neither the tokens nor the datum: its shape is {list(shape)}", None
        total = torch.where(active, values, 0).sum()
        if stat.kind == "sum":
            return f"custom/{name}:sum", total
        if shape_of(active) != shape_of(values):
            active = active.expand_as(values)
        return f"custom/{name}:mean", total / active.sum().clamp(min=1)


class SingleDatumSeqs(Seqs):
    """`Seqs` of one datum whose positions of weight 0 are still there; rows [T] says which are active.

    like: sums are computed in its dtype at least.
    """

    def __init__(self, rows: Any, weights: Any, like: Any) -> None:
        self._rows = rows
        self._weights = weights
        self._like = like
        self.lengths = rows.sum().reshape(1)

    def __getattr__(self, name: str) -> Any:
        raise TraceError(f"seqs.{name} has no form for one datum whose masked positions are still there")

    @property
    def count(self) -> int:
        """One datum."""
        return 1

    def plain_sum(self, values: Any) -> Any:
        """[T] to [1]: the sum over positions of any weight."""
        return torch.where(_beside(self._rows, values), self._summable(values), 0).sum(0, keepdim=True)

    def last(self, values: Any) -> Any:
        """[T] to [1]: the value at the last position of any weight."""
        return values.index_select(0, self._rows.long().cumsum(0).argmax(0).reshape(1))

    def broadcast(self, values: Any) -> Any:
        """[1] to [T]: the value at each position."""
        return torch.where(_beside(self._rows, values), values, 0)

    def split(self, values: Any) -> Any:
        """Not possible: a part of the positions cannot be cut out."""
        return self.__getattr__("split")

    def pairs(self, values: Any) -> Any:
        """Not possible: one datum is no pair."""
        return self.__getattr__("pairs")

    def to(self, like: Any) -> Any:
        """Itself: a traced tensor is on no device yet."""
        return self

    def _summable(self, values: Any) -> Any:
        return raised(values, self._like)


def raised(values: Any, like: Any) -> Any:
    """`values` in the dtype of `like` at least: a graph's inputs may be integers where its example was a float."""
    return values * like.new_ones(1)


def _beside(rows: Any, values: Any) -> Any:
    """rows [T] as [T] or [T, 1], to go with `values`."""
    return rows.unsqueeze(1) if values.ndim == 2 else rows
