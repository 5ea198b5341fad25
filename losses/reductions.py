"""Reductions: what is added up, and what it is divided by.

A loss returns values; `batch/packed.py` turns them into a total and a denominator by this table. With w the weights, l the
values, i a datum, t a token:

| reduction                 | total                                | denominator                    |
|---------------------------|--------------------------------------|--------------------------------|
| `sum`                     | Σ w l                                | 1                              |
| `token-mean`              | Σ w l                                | Σ w                            |
| `seq-mean-token-mean`     | Σ_i (Σ_t w l / Σ_t w)                | datums with a non-zero weight  |
| `seq-mean-token-sum`      | Σ w l                                | datums with a non-zero weight  |
| `seq-mean-token-sum-norm` | Σ w l                                | those datums x `norm_length`   |
| `prompt-mean`             | Σ_g (Σ_{t in g} w l / Σ_{t in g} w)  | groups g with a non-zero weight |
| `pair-mean`               | Σ over pairs                         | pairs                          |
| `group-mean`              | Σ over groups                        | groups                         |
| `mean`                    | Σ over datums (or pairs)             | datums (or pairs)              |

A group g is the datums with the same integer `group`, such as the answers to one prompt. Denominators come from data alone and are counted over the whole call before the first forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

REDUCTIONS: dict[str, tuple[str, ...]] = {
    "token": (
        "sum",
        "token-mean",
        "seq-mean-token-mean",
        "seq-mean-token-sum",
        "seq-mean-token-sum-norm",
        "prompt-mean",
    ),
    "datum": ("sum", "mean"),
    "pair": ("sum", "pair-mean", "mean"),
    "group": ("sum", "group-mean"),
    "batch": ("sum",),
}

#: What must be seen together, from fine to coarse.
COUPLINGS = ("token", "datum", "pair", "group", "batch")


@dataclass(frozen=True)
class Count:
    """A denominator, or a part's share of it. Shares add up: `sum(loss.count(part) for part in parts)`.

    values: one number per term of the loss; None where the term is a sum, which is not divided, however many shares are
    added. `total / count` divides term by term and adds the terms up.
    """

    values: tuple[float | None, ...]

    def __add__(self, other: Count | int) -> Count:
        if other == 0:  # the start value of the builtin sum()
            return self
        if not isinstance(other, Count) or len(other.values) != len(self.values):
            return NotImplemented
        return Count(
            tuple(None if a is None or b is None else a + b for a, b in zip(self.values, other.values, strict=True))
        )

    __radd__ = __add__

    def __rtruediv__(self, totals: Any) -> Any:
        if len(self.values) == 1:
            return totals if None in self.values else totals / float(self)
        divided = [one if v is None else one / v for one, v in zip(totals.unbind(), self.values, strict=True)]
        return torch.stack(divided).sum()

    def __float__(self) -> float:
        if len(self.values) != 1:
            raise TypeError(f"a mixture has one denominator per part: {self.values}")
        (value,) = self.values
        return 1.0 if value is None else value

    @property
    def is_zero(self) -> bool:
        """Whether some mean has nothing to divide by."""
        return any(value == 0 for value in self.values)


def coupled_by(reduction: str) -> str:
    """What must be seen together to divide as a reduction says."""
    return {"prompt-mean": "group"}.get(reduction, "datum" if reduction.startswith("seq-") else "token")


def coarsest(*couplings: str) -> str:
    """The coarsest of several couplings."""
    return max(couplings, key=COUPLINGS.index)
