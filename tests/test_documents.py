"""What the documents show must be so: commands that parse, configuration files that are valid, links that lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from lossbook import describe_loss, list_losses
from lossbook.cookbook.cli import COMMANDS, parsed
from lossbook.cookbook.run.configs import read_config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def shown_commands() -> list[tuple[str, str]]:
    """(place, command line) of every `lossbook ...` line: in documents' shell blocks, and indented in recipes' docstrings."""
    shown = []
    for document in DOCUMENTS:
        for block in re.findall(
            r"^```(?:bash|sh|console)\n(.*?)^```$", document.read_text("utf-8"), re.DOTALL | re.MULTILINE
        ):
            shown += [(named(document), line) for line in block.replace("\\\n", " ").splitlines()]
    for module in sorted((ROOT / "cookbook").rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
        lines = docstring.replace("\\\n", " ").splitlines()
        shown += [(named(module), line) for line in lines if line.startswith("    lossbook ")]
    shown += [
        (named(example), example.read_text("utf-8").partition("\n")[0].removeprefix("# ")) for example in EXAMPLES
    ]
    lines = [(place, line.strip().removeprefix("$ ").removeprefix(".venv/bin/")) for place, line in shown]
    return [(place, line) for place, line in lines if re.match(r"(?:\w+=\S+ )*lossbook ", line)]


@pytest.mark.parametrize(("place", "line"), sorted(set(shown_commands())), ids=lambda value: value[:100])
def test_every_command_line_shown_is_one_that_the_program_takes(
    place: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(
        re.split(r"\s+[|;>&]|\s{3,}", line)[0], comments=True
    )  # what is piped, and explanations beside it
    words = words[words.index("lossbook") + 1 :]
    names = [name for name in COMMANDS if tuple(words[: len(name)]) == name]
    if not names:
        assert words in (["COMMAND", "--help"], ["--help"], ["--version"]), f"{place}: there is no such command: {line}"
        return
    name = max(names, key=len)
    try:
        parsed(name, words[len(name) :])
    except SystemExit as leaving:
        if leaving.code != 0:
            pytest.fail(f"{place}: {line}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_an_example_file_is_a_whole_configuration_of_the_recipe_it_names(path: Path) -> None:
    first = path.read_text("utf-8").partition("\n")[0]
    match = re.fullmatch(r"# lossbook train (\w+) --config examples/(\S+)", first)
    assert match, "the first line says how to run it"
    assert match[2] == path.name
    command = COMMANDS["train", match[1]]
    module = __import__(f"lossbook.cookbook.{command.module}", fromlist=["_"])
    model = getattr(module, command.config or "")
    values = read_config(path, model)
    assert model(**values).model_dump(include=set(values)) == model.model_construct(**values).model_dump(
        include=set(values)
    )
    assert values.keys() == tomllib.loads(path.read_text("utf-8")).keys()


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_and_pictures_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = [target for target in re.findall(r"\]\(([^)#\s]*)[^)]*\)", text) if target and ":" not in target]
    broken = [target for target in targets if not (document.parent / target).exists()]
    assert not broken, f"{named(document)} links to {broken}, which do not exist"


def test_every_recipe_has_a_page_and_an_example() -> None:
    for group, recipe in (name for name in COMMANDS if name[0] == "train"):
        assert (ROOT / "examples" / f"{recipe}.toml").exists(), f"{group} {recipe} has no examples/{recipe}.toml"
        assert (ROOT / "docs" / "recipes" / f"{recipe}.md").exists(), (
            f"{group} {recipe} has no docs/recipes/{recipe}.md"
        )


def test_code_shown_as_an_excerpt_is_in_the_file_it_names() -> None:
    for document in DOCUMENTS:
        shown = re.findall(
            r"^```python excerpt=(\S+)\n(.*?)^```$", document.read_text("utf-8"), re.DOTALL | re.MULTILINE
        )
        for name, block in shown:
            wanted, there = (
                [line.strip() for line in text.strip().splitlines()]
                for text in (block, (ROOT / name).read_text("utf-8"))
            )
            places = range(len(there) - len(wanted) + 1)
            assert any(there[at : at + len(wanted)] == wanted for at in places), f"{named(document)}: not in {name}"


def test_the_readme_counts_the_losses_of_each_family_as_the_registry_does() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\(docs/losses/\1\.md\) \| (\d+) \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    counts = Counter(describe_loss(name).family for name in list_losses())
    assert {family: int(count) for family, count in rows} == {
        family: count for family, count in counts.items() if family != "own"
    }
