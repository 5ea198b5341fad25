"""The tensors at the ends of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def other_leaves(value: Tensor, known: Sequence[Tensor]) -> list[Tensor]:
    """The tensors at the ends of a value's graph, apart from the known ones: parameters that a loss holds."""
    waiting: list[Any] = [value.grad_fn]
    visited: set[Any] = set()
    leaves: dict[int, Tensor] = {}
    skipped = {id(one) for one in known}
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)  # of the nodes that accumulate into a leaf
        if leaf is not None and id(leaf) not in skipped:
            leaves[id(leaf)] = leaf
        waiting += [following for following, _ in node.next_functions]
    return list(leaves.values())
