"""The help: it needs no torch, fits any width, and explains every flag of every command."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from lossbook.cookbook.cli import main
from lossbook.cookbook.commands.table import COMMANDS
from lossbook.cookbook.settings.groups import GROUPS
from lossbook.cookbook.usage.flags import Flag, flags_of_function, flags_of_settings

#: Runs another program's words; its options come from lossbook.integrations.tinker, which needs torch.
OF_ANOTHER = ("tinker",)


def flags_of(name: tuple[str, ...]) -> list[Flag]:
    command = COMMANDS[name]
    if command.config is None:
        module = importlib.import_module(f"lossbook.cookbook.{command.module}")
        return flags_of_function(getattr(module, command.function))
    room, _, model = command.config.partition(".")
    return flags_of_settings(getattr(importlib.import_module(f"lossbook.cookbook.settings.{room}"), model))


def test_no_help_imports_torch() -> None:
    code = """if True:
        import sys
        from lossbook.cookbook.cli import COMMANDS, main
        assert main(["--help"]) == 0 == main(["--version"])
        assert not {"torch", "pydantic", "tyro"} & {*sys.modules}
        for name in COMMANDS:
            if name != ("tinker",):
                assert main([*name, "--help"]) == 0, name
                assert not {"torch", "transformers", "matplotlib"} & {*sys.modules}, name
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_the_help_fits_the_width_and_names_every_flag_and_example_whole(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= width
    for name in COMMANDS:
        if name == OF_ANOTHER:
            continue
        assert main([*name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= width, name
        words = {word.rstrip(",") for word in shown.split()}
        assert {flag.long for flag in flags_of(name) if not flag.placed and flag.default is not True} <= words, name
        assert {flag.value for flag in flags_of(name) if flag.placed and not flag.is_several} <= words, name
        examples = " ".join(shown.replace("\\\n", " ").split())
        assert width < 60 or all(example in examples for example in COMMANDS[name].examples), name
        assert COMMANDS[name].config is None or "--config" in words


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != OF_ANOTHER], ids=" ".join)
def test_every_flag_of_a_command_is_explained_in_words_of_its_own(name: tuple[str, ...]) -> None:
    flags = flags_of(name)
    assert COMMANDS[name].examples
    for flag in flags:
        assert len(flag.help.split()) >= 2, f"{flag.name}: {flag.help!r}"
        assert "likewise" not in flag.help, f"{flag.name} says its meaning by another flag's"
        assert flag.group in (*GROUPS, "Flags")
    placed = [flag.placed for flag in flags]
    assert placed == sorted(placed, reverse=True)


def test_a_recipes_help_is_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dpo", "--help"]) == 0
    shown = capsys.readouterr().out
    at = [shown.index(f"─ {group} ─") for group in GROUPS if group not in ("Server", "Rollouts")]
    assert at == sorted(at)
    assert "STR" not in shown
    assert "--loss-config NAME VALUE" in shown
    assert "(default: dpo)" in shown
