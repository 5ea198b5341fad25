"""The losses written a second time, in NumPy, sharing no code with the first; one module a family."""

from __future__ import annotations

from typing import Any

from . import (
    crossed,
    distillation,
    embedding,
    embedding_batches,
    embedding_classes,
    off_policy,
    policy,
    preference,
    ranking,
    supervised,
    value,
    whole,
)
from .rows import Reference, evaluated

FAMILIES = (
    crossed,
    distillation,
    embedding,
    embedding_batches,
    embedding_classes,
    off_policy,
    policy,
    preference,
    ranking,
    supervised,
    value,
    whole,
)
#: The reference of each loss, by id.
REFERENCES: dict[str, Reference] = {name: one for family in FAMILIES for name, one in family.REFERENCES.items()}
#: Settings beside the defaults under which a loss is compared, by id.
VARIANTS: dict[str, list[dict[str, Any]]] = {name: v for family in FAMILIES for name, v in family.VARIANTS.items()}

__all__ = ["REFERENCES", "VARIANTS", "Reference", "evaluated"]
