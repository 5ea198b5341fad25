"""What the documents show must be so: commands that parse, configuration files that are valid, links that lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from lossbook import describe_loss, list_losses
from lossbook.cookbook.cli import COMMANDS, parsed
from lossbook.cookbook.settings.written.files import read_config

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
        assert words in (["COMMAND", "--help"], ["--help"], ["--version"], ["--completion", "bash"]), (
            f"{place}: there is no such command: {line}"
        )
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
    room, _, name = (command.config or "").partition(".")
    model = getattr(importlib.import_module(f"lossbook.cookbook.settings.{room}"), name)
    values = read_config(path, model)
    assert model(**values).model_dump(include=set(values)) == model.model_construct(**values).model_dump(
        include=set(values)
    )
    assert values.keys() == tomllib.loads(path.read_text("utf-8")).keys()


def links_of(document: Path) -> list[tuple[str, str]]:
    """(target, anchor) of every link and picture of a document."""
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [(target, anchor) for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)[^)]*\)", text)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_and_pictures_lead_somewhere(document: Path) -> None:
    targets = [target for target, _ in links_of(document) if target and ":" not in target]
    broken = [target for target in targets if not (document.parent / target).exists()]
    assert not broken, f"{named(document)} links to {broken}, which do not exist"


#: Addresses of this project, and the folder that each stands for. `.../actions`, `/issues` and the like are GitHub's own.
ADDRESSES = {
    "https://github.com/lossbook/lossbook/blob/main/": ROOT,
    "https://github.com/lossbook/lossbook/tree/main/": ROOT,
    "https://raw.githubusercontent.com/lossbook/lossbook/main/": ROOT,
    "https://lossbook.github.io/lossbook/": ROOT / "docs",
}
#: Pages that the site builds from something else than a file of docs/.
BUILT = ("gallery/", "api/", "genindex.html", "search.html")


def broken_address(target: str, anchor: str) -> str:
    """What is wrong with an absolute link into this project, or ""."""
    for start, folder in ADDRESSES.items():
        if not target.startswith(start):
            continue
        rest = target.removeprefix(start)
        if folder == ROOT:
            return "" if (ROOT / rest).exists() else "there is no such file"
        if rest.startswith(BUILT):
            return ""
        page = folder / ((rest.removesuffix(".html") if rest else "index") + ".md")
        if not page.exists() or (rest and not rest.endswith(".html")):
            return "the site has no such page"
        return "" if not anchor or anchor in anchors_of(page) else f"{named(page)} has no such heading"
    return ""


def anchors_of(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    words = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads]
    return {re.sub(r"[^\w -]", "", one).replace(" ", "-") for one in words}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_absolute_links_into_this_project_lead_to_files_and_pages_that_exist(document: Path) -> None:
    broken = {f"{target}#{anchor}": broken_address(target, anchor) for target, anchor in links_of(document)}
    assert not any(broken.values()), {link: why for link, why in broken.items() if why}


def test_links_from_page_to_page_name_headings_that_exist() -> None:
    broken = [
        f"{named(document)}: {target}#{anchor}"
        for document in DOCUMENTS
        for target, anchor in links_of(document)
        if anchor and ":" not in target and (page := document.parent / target if target else document).suffix == ".md"
        if anchor not in anchors_of(page)
    ]
    assert not broken, broken


def test_the_readme_is_read_anywhere_and_in_a_few_minutes() -> None:
    """A package index shows it without the repository around it."""
    readme = ROOT / "README.md"
    relative = [target for target, _ in links_of(readme) if not target.startswith("https://")]
    assert not relative, f"links that hold in a clone alone: {relative}"
    prose = re.sub(r"^```.*?^```$", "", readme.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert 800 <= len(prose.split()) <= 950
    assert len(re.findall(r"!\[", prose)) == 1, "one picture"


def test_the_citation_and_the_package_name_one_version_and_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = dict(re.findall(r'^([\w-]+): "?([^"\n]+)"?$', (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert (citation["repository-code"], citation["url"]) == (
        project["urls"]["Repository"],
        project["urls"]["Homepage"],
    )
    for address in project["urls"].values():
        assert not broken_address(address, ""), address


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
        r"^\| \[(\w+)\]\(https://lossbook\.github\.io/lossbook/losses/\1\.html\) \| (\d+) \|",
        (ROOT / "README.md").read_text("utf-8"),
        re.MULTILINE,
    )
    counts = Counter(describe_loss(name).family for name in list_losses())
    assert {family: int(count) for family, count in rows} == {
        family: count for family, count in counts.items() if family != "own"
    }
