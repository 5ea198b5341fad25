"""docs/cli.md is up to date with the table of commands and the recipes' settings."""

from __future__ import annotations

import runpy
from pathlib import Path

from lossbook.cookbook.commands.table import COMMANDS
from lossbook.cookbook.sft import SFTConfig

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_commands_give_and_has_every_one_of_them() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_cli_page.py"))
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert text == script["page"](), "docs/cli.md is not current: run `make docs-pages` and commit what it writes"
    assert all(f"### lossbook {' '.join(name)}\n" in text for name in COMMANDS)
    section = text.partition("### lossbook train sft\n")[2].partition("\n### ")[0]
    assert all(f"`--{name.replace('_', '-')}`" in section for name in SFTConfig.model_fields)
