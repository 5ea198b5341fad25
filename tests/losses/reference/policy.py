"""Policy losses in NumPy, one row at a time, from the papers' formulas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .rows import Row

Array = np.ndarray


def reinforce(rows: Sequence[Row]) -> list[Array]:
    """-A p."""
    return [-row["advantages"] * row["logprobs"] for row in rows]


REFERENCES = {"reinforce": reinforce}
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict]] = {}
