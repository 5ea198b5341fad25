"""How many losses other systems name, and which of them have none here: from elsewhere.toml. make_loss_pages.py uses it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ELSEWHERE = Path(__file__).resolve().parent.parent / "elsewhere.toml"


def systems() -> dict[str, dict[str, Any]]:
    """{system: {"from": what it was counted from, family: {its id: ours, or {"lacks": why}}}}."""
    return tomllib.loads(ELSEWHERE.read_text(encoding="utf-8"))


def counted(sizes: Mapping[str, int]) -> Iterator[Sequence[str]]:
    """The heads and the rows of the table of counts. sizes: {family: how many losses it has here}."""
    known = systems()
    yield ("family", "lossbook", *known)
    for family, size in sizes.items():
        yield (family, str(size), *(str(len(system.get(family, ())) or "–") for system in known.values()))
    totals = [sum(len(system.get(family, ())) for family in sizes) for system in known.values()]
    yield ("all", str(sum(sizes.values())), *map(str, totals))


def lacking() -> Iterator[Sequence[str]]:
    """The heads and the rows of the table of what others have and lossbook has not."""
    yield ("system", "family", "loss", "why it has none here")
    for name, system in systems().items():
        for family, losses in system.items():
            if family != "from":
                for theirs, ours in losses.items():
                    if not isinstance(ours, str):
                        yield (name, family, f"`{theirs}`", ours["lacks"])


def named(families: Sequence[str]) -> Iterator[str]:
    """A line for each system: what it was counted from, and each of its losses with ours."""
    for name, system in systems().items():
        lists = "; ".join(
            f"{family}: {', '.join(_pair(theirs, ours) for theirs, ours in system[family].items())}"
            for family in families
            if family in system
        )
        yield f"- **{name}**, counted from {system['from']}. {lists[0].upper()}{lists[1:]}."


def _pair(theirs: str, ours: Any) -> str:
    if not isinstance(ours, str):
        return f"`{theirs}` (none)"
    return f"`{theirs}`" if ours == theirs else f"`{theirs}` (`{ours}`)"
