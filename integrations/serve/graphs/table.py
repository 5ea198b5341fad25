"""All operations that a graph may use, by their names on the wire. A name that is not here stands for nothing."""

from __future__ import annotations

from . import functional, operators, pointwise, reductions, shapes
from .signature import Operation

OPERATIONS: tuple[Operation, ...] = (
    *operators.OPERATIONS,
    *pointwise.OPERATIONS,
    *reductions.OPERATIONS,
    *shapes.OPERATIONS,
    *functional.OPERATIONS,
)
FUNCTIONS: dict[str, Operation] = {name: one for one in OPERATIONS for name in one.functions}
METHODS: dict[str, Operation] = {name: one for one in OPERATIONS for name in one.methods}


def listed() -> dict[str, list[str]]:
    """The names that people write, by their module, with methods of tensors and attributes; for the documents."""
    names: dict[str, list[str]] = {}
    for one in OPERATIONS:
        for name in one.functions[:1]:
            module, _, own = name.rpartition(".")
            names.setdefault(module or "attributes", []).append(own)
    names["attributes"] = [*operators.ATTRIBUTES, *operators.FIELDS]
    names["torch.Tensor"] = list(METHODS)
    return {module: sorted(own, key=str.lower) for module, own in sorted(names.items())}
