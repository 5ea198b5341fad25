"""The settings of every loss have the defaults and bounds that its page of the manual gives: none changes by accident."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from lossbook import describe_loss

from .cases import shipped

PAGES = Path(__file__).parents[2] / "docs" / "losses"
HEAD = "| setting | default | type | bounds |\n|---|---|---|---|\n"


@functools.cache
def sections(family: str) -> dict[str, str]:
    """The text of each loss on a family's page."""
    _, *parts = (PAGES / f"{family}.md").read_text(encoding="utf-8").split("\n## ")
    return {part.partition("\n")[0]: part for part in parts}


def on_page(section: str) -> list[tuple[str, str, str]]:
    """(setting, default, bounds) of each row of the section's table; none without one."""
    table = section.partition(HEAD)[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table.splitlines()]
    return [(name.strip("`"), default.strip("`"), bounds.replace("\\", "")) for name, default, _, bounds in rows]


@pytest.mark.parametrize("name", shipped())
def test_settings_have_the_defaults_and_bounds_of_the_page(name: str) -> None:
    card = describe_loss(name)
    settings = [(s.name, "required" if s.required else repr(s.default), s.bounds) for s in card.settings.values()]
    assert on_page(sections(card.family)[name]) == settings
