"""How datums belong together in a loss, and how many values it returns for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Grouping:
    """How some datums belong together in a loss.

    members: groups of datum indices, such as a query and its document; groups of one size may change places. None: each
    datum (or pair) by itself. values: how many values the loss returns for these datums; None: as `per` says.
    """

    members: Sequence[Sequence[int]] | None = None
    values: int | None = None


#: (number of datums, config, packed inputs by name) to how these datums belong together. The inputs are None where only
#: `members` is asked for, since there is no data then.
Groups = Callable[[int, Any, Mapping[str, Tensor | None] | None], Grouping]
#: The older pair of words for the same: (datums, config, packed inputs) to the number of values,
Units = Callable[[int, Any, Mapping[str, Tensor | None]], int]
#: and (datums, config) to groups of datums.
Partners = Callable[[int, Any], list[list[int]]]


def groups_of(units: Units | None, partners: Partners | None) -> Groups | None:
    """`groups` from its two older halves."""
    if units is None and partners is None:
        return None

    def groups(datums: int, config: Any, inputs: Mapping[str, Tensor | None] | None) -> Grouping:
        members = None if partners is None else partners(datums, config)
        return Grouping(members, None if units is None or inputs is None else units(datums, config, inputs))

    return groups
