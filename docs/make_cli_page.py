"""Write cli.md: every command, its examples and flags, from the table of commands and the recipes' settings. `make docs-pages` runs it.

    python docs/make_cli_page.py

tests/docs/test_cli_page.py fails while the page is not current.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from lossbook.cookbook.commands.table import COMMANDS, Command, Section
from lossbook.cookbook.settings.groups import GROUPS, group_of
from lossbook.losses.cards.setting_text import bounds_text, type_text

PAGE = Path(__file__).resolve().parent / "cli.md"
MADE = (
    "<!-- Made by docs/make_cli_page.py (`make docs-pages`) from the table of commands: change that, not this page. -->"
)
HEAD = """# Command line

`lossbook --help` lists the commands, `lossbook COMMAND --help` the flags of one. A recipe's flags are also the keys of a file for
`--config`, with `_` for `-`; flags override the file. `--debug` anywhere keeps the traceback of an error. Exit codes: 0, 1 after an
error, 2 after a usage error, 130 after Ctrl-C.
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
    yield from (f"### lossbook {name}", "", f"{_text(command.summary[0].upper() + command.summary[1:])}.", "")
    if command.examples:
        yield from ("```bash", *command.examples, "```", "")
    module = importlib.import_module(f"lossbook.cookbook.{command.module}")
    if command.config:
        fields = getattr(module, command.config).model_fields
        for group in GROUPS:
            members = {flag: field for flag, field in fields.items() if group_of(field) == group}
            if members:
                yield from (f"**{group}**", "", *_fields(members), "")
    elif not command.words:
        yield from (*_parameters(getattr(module, command.function)), "")


def _fields(fields: dict[str, Any]) -> Iterator[str]:
    yield from ("| flag | default | |", "|---|---|---|")
    for name, field in fields.items():
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        bounds = bounds_text(field)
        says = _text(field.description or type_text(field.annotation))
        yield f"| {_flag(name)} | {default} | {says}{f'; {_text(bounds)}' if bounds else ''} |"


def _parameters(function: Any) -> Iterator[str]:
    """A row per parameter of a function; what each means is in its docstring, `name: ...`."""
    parameters = inspect.signature(function, eval_str=True).parameters
    if not parameters:
        return
    says = _said(inspect.getdoc(function) or "", tuple(parameters))
    yield from ("| argument | default | |", "|---|---|---|")
    for name, one in parameters.items():
        positional = "_PositionalMarker" in repr(one.annotation) or "Positional" in str(one.annotation)
        shown = f"`{name.upper()}`" if positional else _flag(name)
        default = "required" if one.default is inspect.Parameter.empty else _default(one.default)
        yield f"| {shown} | {default} | {_text(says.get(name, ''))} |"


def _said(docstring: str, names: tuple[str, ...]) -> dict[str, str]:
    starts = rf"^\s*({'|'.join(map(re.escape, names))}):\s"
    said: dict[str, str] = {}
    name = None
    for line in docstring.splitlines():
        if match := re.match(starts, line):
            name = match[1]
            said[name] = line[match.end() :].strip()
        elif name and line.strip() and line.startswith(" "):
            said[name] += f" {line.strip()}"
        elif not line.strip():
            name = None
    return said


def _flag(name: str) -> str:
    return f"`--{name.replace('_', '-')}`"


def _default(value: Any) -> str:
    if value is None or value == () or value == {} or value == []:
        return ""
    shown = str(value) if isinstance(value, str | int | float | bool | Path) else repr(value)
    return f"`{shown.replace('|', chr(92) + '|')}`"


def _text(text: str) -> str:
    return re.sub(r"([|<*\[])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    main()
