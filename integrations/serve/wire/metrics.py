"""Names of metrics on the wire: exactly one colon, behind which is how the SDK merges the parts of a call."""

from __future__ import annotations

from collections.abc import Mapping

from ....losses.stats import Kind
from ...tinker.types.training import Metrics

#: Reductions that the SDK knows; it drops metrics of others.
REDUCTIONS = ("mean", "sum", "min", "max", "slack", "hash2", "unique")
_OF_KIND: dict[Kind, str] = {"mean": "mean", "sum": "sum", "min": "min", "max": "max", "effective": "mean"}


def wire_metrics(given: Mapping[str, float]) -> dict[str, float]:
    """Metrics by their names on the wire.

    `loss:sum` and other names with one colon and a reduction behind it stay. Others get `:mean`, `:sum`, `:max` or `:min`, as their
    `Stat` is, and slashes for colons within. Raises KeyError without `loss:sum`, which the SDK cannot do without.
    """
    kinds: Mapping[str, Kind] = given.kinds if isinstance(given, Metrics) else {}
    metrics = {"loss:sum": float(given["loss:sum"])}
    for name in sorted(given.keys() - metrics):  # in an order that does not depend on the data
        wire = wire_name(name, kinds.get(name, "mean"))
        while wire in metrics:  # names that differed in a colon alone
            wire = f"other/{wire}"
        metrics[wire] = float(given[name])
    return metrics


def wire_name(name: str, kind: Kind) -> str:
    """A metric's name with exactly one colon, before its reduction."""
    stem, colon, reduction = name.rpartition(":")
    if not colon or not stem or reduction not in REDUCTIONS:
        stem, reduction = name, _OF_KIND[kind]
    return f"{stem.replace(':', '/')}:{reduction}"
