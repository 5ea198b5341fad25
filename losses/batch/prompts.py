"""`Prompts`: the weights of each prompt's group of answers, for the reduction `prompt-mean`, as the whole call has them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .groups import DatumGroups


@dataclass(frozen=True)
class Prompts:
    """For each of N active datums: Σ w over all datums of its group, and whether it is the first of them that has a weight.

    A part of a call keeps those of the whole call, so that a micro-batch may end inside a group: each token is divided by
    its group's whole weight, and a group is counted where its first datum is.
    """

    weights: Tensor
    is_first: np.ndarray

    @classmethod
    def of(cls, ids: Tensor, weight_per_datum: Tensor) -> Prompts:
        """ids [N]: the key `group` of each datum. weight_per_datum [N] float64: the sum of its weights."""
        groups, seen = DatumGroups(ids), set()
        weights = groups.broadcast(groups.sum(weight_per_datum))
        weighed = (weight_per_datum != 0).tolist()
        index = groups.index.tolist()
        is_first = [has_weight and not (g in seen or seen.add(g)) for g, has_weight in zip(index, weighed, strict=True)]
        return cls(weights, np.array(is_first, dtype=bool))

    @property
    def count(self) -> int:
        """How many groups begin here."""
        return int(self.is_first.sum())

    def select(self, datums: Tensor) -> Prompts:
        """Those of some datums."""
        return Prompts(self.weights[datums], self.is_first[datums.numpy()])

    def placed(self, weights: Tensor) -> Prompts:
        """The same with its weights on another device."""
        return replace(self, weights=weights)


def joined_mean(sums: Tensor, weights: Tensor) -> Tensor:
    """Σ of [N] sums, each divided by its weight; by 1 where that is 0."""
    weights = weights.to(sums)
    return (sums / torch.where(weights == 0, torch.ones_like(weights), weights)).sum()
