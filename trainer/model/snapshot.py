"""Weights as they were at one moment, sharing the model they were taken from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from .model import LoadedModel


@dataclass
class Snapshot:
    """A copy of a model's trained parameters. All others are shared: training never changes them."""

    model: LoadedModel
    weights: Mapping[str, Tensor]

    @classmethod
    def take(cls, model: LoadedModel) -> Snapshot:
        """Copy the trained parameters as they are now."""
        return cls(model, {name: p.detach().clone() for name, p in model.trainable().items()})

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has these weights; at the end it gets its current ones back, also after an error."""
        parameters = self.model.trainable()
        current = {name: p.data for name, p in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self.weights[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = current[name]
