"""Weights as they were at one moment, sharing the model they were taken from."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Parameter

from ...datums.errors import ModelError
from ..shards import is_shard, local
from .model import LoadedModel


class SharedWeights(Mapping[str, Tensor]):
    """A model's trained parameters as they are now: the parameters themselves until they are written, then copies.

    Who writes parameters calls `model.before_writing()` first. All snapshots of one moment have the same object, so their
    weights lie in memory at most once more, and not at all while the model has not moved on.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._parameters = {name: local(p) for name, p in model.trainable().items()}
        self._versions = {name: p._version for name, p in self._parameters.items()}
        self._weights = dict(self._parameters)
        self.are_copies = False

    def copy(self) -> None:
        """Copy the parameters, which are about to be written."""
        if not self.are_copies:
            self._check(self._parameters)
            self._weights = {name: weight.clone() for name, weight in self._weights.items()}
            self._parameters, self.are_copies = {}, True

    def __getitem__(self, name: str) -> Tensor:
        self._check([name])
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def _check(self, names: Iterable[str]) -> None:
        """Raise ModelError where one of these parameters is shared and was written, so that its earlier values are lost.

        It sees no writing of shards, of which torch does not count versions.
        """
        for name in names:
            if name in self._parameters and self._parameters[name]._version != self._versions[name]:
                raise ModelError(
                    f"{name} was written while a snapshot shared it, without a call of before_writing(): the snapshot's "
                    "weights are lost"
                )


@dataclass
class Snapshot:
    """A model's trained parameters at one moment (this process's shards of them). Frozen parameters are shared."""

    model: LoadedModel
    weights: Mapping[str, Tensor]

    @classmethod
    def take(cls, model: LoadedModel) -> Snapshot:
        """Copy the trained parameters as they are now."""
        return cls(model, {name: local(p).clone() for name, p in model.trainable().items()})

    @classmethod
    def sharing(cls, model: LoadedModel) -> Snapshot:
        """The same, copied only when something is about to write the parameters, and once for all that share them."""
        weights = None if model.moment is None else model.moment()
        if not isinstance(weights, SharedWeights):
            weights = SharedWeights(model)
            model.moment = weakref.ref(weights)
        return cls(model, weights)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has these weights; at the end it gets its current ones back, also after an error."""
        parameters = self.model.trainable()
        current = {name: _current(p, self.weights[name]) for name, p in parameters.items()}
        try:
            for name, parameter in parameters.items():
                _put(parameter, self.weights[name])
            yield
        finally:
            for name, parameter in parameters.items():
                _put(parameter, current[name])


def _current(parameter: Parameter, other: Tensor) -> Tensor:
    """A parameter's weight, to be given back after another; of a shard a copy, unless the other is the same memory."""
    weight = local(parameter).data
    return weight.clone() if is_shard(parameter) and weight.data_ptr() != other.data_ptr() else weight


def _put(parameter: Parameter, weight: Tensor) -> None:
    """Give a parameter a weight: another memory where it is whole, numbers in its own where FSDP gathers it from there."""
    if not is_shard(parameter):
        parameter.data = weight
    elif (shard := local(parameter).data).data_ptr() != weight.data_ptr():
        shard.copy_(weight)
