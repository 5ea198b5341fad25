"""Write cli.md: every command, its examples and flags, from the table of commands. `make docs-pages` runs it.

    python docs/make_cli_page.py

tests/docs/test_cli_page.py fails while the page is not current.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from lossbook.cookbook.commands.table import COMMANDS, Command, Section
from lossbook.cookbook.usage.flags import NEEDED, Flag, flags_of_function, flags_of_settings, summary

PAGE = Path(__file__).resolve().parent / "cli.md"
MADE = (
    "<!-- Made by docs/make_cli_page.py (`make docs-pages`) from the table of commands: change that, not this page. -->"
)
HEAD = """# Command line

`lossbook --help` lists the commands, `lossbook COMMAND --help` the flags of one. A recipe's flags are also the keys of a file for
`--config` (TOML, JSON or YAML), with `_` for `-`; flags override the file. A switch that is on is switched off with `--no-`. `--debug`
anywhere keeps the traceback of an error. Exit codes: 0, 1 after an error, 2 after a usage error, 130 after Ctrl-C.

`lossbook train RECIPE --sweep loss=dpo,simpo seed=0,1,2` trains every combination, `--jobs N` of them at once: [sweeps](running.md#sweeps).
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """The text of the page."""
    lines = [MADE, "", HEAD]
    for section in get_args(Section):
        named = {name: one for name, one in COMMANDS.items() if one.section == section}
        if named:
            lines += [f"## {section}", "", *_contents(named), ""]
        for name, command in named.items():
            lines += _command(" ".join(name), command)
    return "\n".join(lines).rstrip() + "\n"


def _contents(commands: dict[tuple[str, ...], Command]) -> Iterator[str]:
    yield from ("| command | |", "|---|---|")
    for name, command in commands.items():
        words = " ".join(name)
        yield f"| [`{words}`](#lossbook-{words.replace(' ', '-')}) | {_text(command.summary)} |"


def _command(name: str, command: Command) -> Iterator[str]:
    yield from (f"### lossbook {name}", "")
    module = importlib.import_module(f"lossbook.cookbook.{command.module}")
    function = getattr(module, command.function)
    is_plain = command.config is None and not command.words
    says = summary(function) if is_plain else f"{command.summary[0].upper()}{command.summary[1:]}."
    for paragraph in says.split("\n\n"):
        yield from (_text(paragraph), "")
    if command.examples:
        yield from ("```bash", *command.examples, "```", "")
    if command.config:
        room, _, model = command.config.partition(".")
        flags = flags_of_settings(getattr(importlib.import_module(f"lossbook.cookbook.settings.{room}"), model))
        for group in dict.fromkeys(flag.group for flag in flags):
            yield from (f"**{group}**", "", *_rows([flag for flag in flags if flag.group == group]), "")
    elif is_plain and (flags := flags_of_function(function)):
        yield from (*_rows(flags), "")


def _rows(flags: Sequence[Flag]) -> Iterator[str]:
    yield from ("| flag | default | |", "|---|---|---|")
    for flag in flags:
        names = flag.value if flag.placed else ", ".join((flag.long, *flag.aliases))
        yield f"| `{names}` | {_default(flag)} | {_text(flag.help)} |"


def _default(flag: Flag) -> str:
    if flag.default is NEEDED:
        return "required"
    if flag.is_switch and isinstance(flag.default, bool):
        return "on" if flag.default else "off"
    if flag.default is None or flag.default in ((), {}, []):
        return ""
    shown = flag.default if isinstance(flag.default, str | int | float | Path) else repr(flag.default)
    return f"`{shown}`".replace("|", "\\|")


def _text(text: str) -> str:
    """Text in which only `code` is markup."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"([<*\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


if __name__ == "__main__":
    main()
