"""docs/data.md: every row of it is read as the page says, every refusal is in those words, every command runs."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from lossbook.cookbook.cli import main
from lossbook.datums import show_file
from lossbook.datums.errors import LossbookError
from lossbook.datums.files.formats import FORMATS, format_of
from lossbook.datums.files.sources import JSONL_ENDINGS, PARQUET_ENDINGS
from lossbook.trainer.model.tiny import build_tiny_tokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


class Block(NamedTuple):
    """A fenced block: its section, its language, and its text."""

    section: str
    language: str
    text: str


def blocks() -> list[Block]:
    fenced, section = [], ""
    for match in re.finditer(r"^#+ ([^\n]*)$|^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S):
        if match[1]:
            section = match[1]
        else:
            fenced.append(Block(section, match[2], match[3]))
    return fenced


def examples() -> list[tuple[str, str, str]]:
    """Each row of the page, its section, and the text under it."""
    every = blocks()
    return [
        (row.section, row.text.strip(), said.text)
        for row, said in itertools.pairwise(every)
        if (row.language, said.language) == ("jsonl", "text")
    ]


def shown(row: str, folder: Path) -> str:
    """What `lossbook data show` says of a row, an error included."""
    (folder / "train.jsonl").write_text(row + "\n", encoding="utf-8")
    file = io.StringIO()
    try:
        show_file(folder / "train.jsonl", build_tiny_tokenizer(), console=Console(file=file, width=200))
    except LossbookError as error:
        return f"{type(error).__name__}: {error}\n"
    return tidy(file.getvalue())


def tidy(text: str) -> str:
    """Without white space at the ends of lines, and with single blank lines."""
    return re.sub(r"\n{2,}", "\n", re.sub(r"[ \t]+$", "", text, flags=re.M)).strip() + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page's commands name: train.jsonl holds its rows of one datum, eval.jsonl the first of them."""
    rows = [row for section, row, _ in examples() if section != "What is refused"]
    single = [row for row in rows if "chosen" not in row]
    (tmp_path / "train.jsonl").write_text("\n".join(single), encoding="utf-8")
    (tmp_path / "eval.jsonl").write_text(single[0], encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text("\n".join(row for row in rows if "chosen" in row), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.parametrize(("section", "row", "said"), examples())
def test_a_row_is_read_or_refused_as_the_page_says(section: str, row: str, said: str, tmp_path: Path) -> None:
    printed = shown(row, tmp_path)
    assert printed == said
    assert printed.startswith("train.jsonl, line 1") == (section != "What is refused")


def test_every_format_and_every_ending_has_its_place_on_the_page() -> None:
    formats = {format_of(json.loads(row)) for section, row, _ in examples() if section != "What is refused"}
    assert formats == set(FORMATS)
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{ending}`" in text for ending in (*JSONL_ENDINGS, *PARQUET_ENDINGS, ".gz", ".zst"))


def run(command: str) -> str:
    """What a command of the page prints, with the model `tiny`, for which nothing is fetched."""
    words = [word if "/" not in word else "tiny" for word in shlex.split(command)[1:]]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words) == 0
    return tidy(out.getvalue())


def test_every_command_runs_and_prints_what_is_under_it(folder: Path) -> None:
    every = blocks()
    commands = [
        (line.removeprefix("$ "), after)
        for block, after in zip(every, [*every[1:], Block("", "", "")], strict=True)
        if block.language == "console"
        for line in block.text.splitlines()
    ]
    assert len(commands) == 5
    for command, after in commands:
        printed = run(command)
        assert after.language != "text" or printed == after.text, command
    assert "<script" not in (folder / "page.html").read_text(encoding="utf-8")


def test_the_python_on_the_page_runs(folder: Path) -> None:
    (code,) = (block.text for block in blocks() if block.language == "python")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, str(PAGE), "exec"), {"tokenizer": build_tiny_tokenizer()})
    assert out.getvalue().startswith("train.jsonl, line 1 user\nrows    ")
