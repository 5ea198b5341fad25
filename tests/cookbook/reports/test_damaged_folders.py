"""Run folders of other people: whatever is in their files, a command ends well or with one line, and no data become markup."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lossbook.cookbook import sft
from lossbook.cookbook.cli import main
from lossbook.cookbook.reports.page import report_page
from lossbook.cookbook.reports.plots import plot_runs
from lossbook.cookbook.sft import SFTConfig
from lossbook.datums.errors import LossbookError

ATTACKS = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "\"'><svg onload=alert(1)>",
    "' style='x' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}&lt;b&gt;",
    "--><b>",
    "$\\frac{1}$ \u202e\x00\x1b[2J",
)
FLAGS = [
    "train",
    "sft",
    "--data",
    "data.jsonl",
    "--steps",
    "2",
    "--rank",
    "2",
    "--sample-prompts",
    "red",
    "--sample-tokens",
    "2",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run, beside its data; every field that a recorded sequence can have is there."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data.jsonl").write_text(
        '{"prompt": "red", "completion": "rose"}\n{"prompt": "blue", "completion": "sky"}\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = SFTConfig(
            data="data.jsonl", out=Path("run"), steps=2, rank=2, sample_prompts=("red",), sample_tokens=2
        )
        sft.main(config)
    path = folder / "run" / "sequences.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        target = [["red", 0.5, -1.5, 0.25], ["blue", None, None, None]]
        row |= {"side": "chosen", "cut": [1, 2], "embedding_gradient": 0.5}
        row |= {"candidates": [None, *[target] * (len(row["tokens"]["id"]) - 1)]}
    rows.append({"step": 2, "refused": "ValueError: no"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# --- data are no markup -----------------------------------------------------------------------------------------------


class Structure(HTMLParser):
    """The elements of a page with their attributes, without the texts that two attributes hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[Any] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        texts = ("data-tip", "aria-label", "content")
        self.elements.append((tag, [(name, None if name in texts else value) for name, value in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append(tag)

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", data))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.words += data


def written(value: Any, text: str, is_free: bool) -> Any:
    """The value with every text in it replaced, and one more key in every object whose keys are free."""
    if isinstance(value, str):
        return text
    if isinstance(value, list):
        return [written(one, text, is_free) for one in value]
    if isinstance(value, dict):
        return {key: written(one, text, is_free) for key, one in value.items()} | ({text: text} if is_free else {})
    return value


def written_folder(whole: Path, folder: Path, text: str) -> Path:
    """A copy of the run with this text in every field of its files."""
    folder.mkdir()
    for name in ("config.json", "data_report.json", "loss.json"):
        value = json.loads((whole / "run" / name).read_text())
        value = {**value, "loss": "ppo"} if name == "config.json" else value
        (folder / name).write_text(json.dumps(written(value, text, is_free=name != "loss.json")))
    for name in ("metrics.jsonl", "samples.jsonl", "sequences.jsonl"):
        rows = [json.loads(line) for line in (whole / "run" / name).read_text().splitlines()]
        for row in rows:
            if "tokens" in row:
                row["tokens"] = {**written(row["tokens"], text, False), text: [1.5] * len(row["tokens"]["id"])}
                row["losses"] = {text: [1.0, text]}
        rows = [written(row, text, is_free=name != "sequences.jsonl") | {"step": row["step"]} for row in rows]
        numbers = {f"{text} ": 1.0} if name == "metrics.jsonl" else {}
        (folder / name).write_text("".join(json.dumps({**row, **numbers}) + "\n" for row in rows))
    return folder


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.builds("".join, st.tuples(st.text(max_size=8), st.sampled_from(ATTACKS), st.text(max_size=8))))
def test_whatever_text_is_in_every_field_the_elements_of_the_page_are_the_same(whole: Path, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()  # JSON in a file holds no half characters
    assume("\n\n" not in text and not text.startswith("held_out"))
    with tempfile.TemporaryDirectory() as scratch:
        evil, plain = (written_folder(whole, Path(scratch) / name, t) for name, t in (("a", text), ("b", "words")))
        for labels in (("{}",), ("{} 1", "{} 2")):
            page = Structure(report_page({label.format(text): evil for label in labels}))
            wanted = Structure(report_page({label.format("words"): plain for label in labels}))
            assert page.elements == wanted.elements


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_a_picture_shows_names_as_they_are(whole: Path, attack: str, tmp_path: Path) -> None:
    attack = "".join(character for character in attack if character.isprintable())
    rows = [{"step": step, attack: 1.0, "loss": 2.0} for step in range(3)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    svg = plot_runs({attack: tmp_path / "run", "b": tmp_path / "run"}, tmp_path / "a.svg", [attack, "loss"]).read_text()
    parsed = Structure(svg)
    assert not {"img", "script", "b"} & {element[0] for element in parsed.elements if isinstance(element, tuple)}
    assert attack in parsed.words


# --- damaged files ----------------------------------------------------------------------------------------------------

NESTED = "[" * 2000 + "]" * 2000
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "its first half lost": lambda content: content[len(content) // 2 :],
    "not UTF-8": lambda content: content[:10] + b"\xff\xfe" + content[10:],
    "a list": lambda content: b"[]\n",
    "an empty object": lambda content: b"{}\n",
    "null": lambda content: b"null\n",
    "a number": lambda content: b"3\n",
    "a text": lambda content: b'"x"\n',
    "deeply nested": lambda content: f'{{"step": 1, "loss": {NESTED}}}\n'.encode(),
    "a huge number": lambda content: b'{"step": 1, "loss": 1' + b"0" * 400 + b"}\n",
    "a huge step": lambda content: b'{"step": 1' + b"0" * 30 + b', "loss": 1}\n',
    "a step that is a text": lambda content: b'{"step": "<b>", "loss": 1}\n',
    "a step that is true": lambda content: b'{"step": true, "loss": 1}\n',
    "other kinds of values": lambda content: (
        b'{"step": 1, "loss": {"a": []}, "parts": 3, "tokens": [], "model": [], "lora": 1}\n'
    ),
    "a key twice": lambda content: b'{"step": 1, "loss": 1, "loss": 2}\n',
    "zeros": lambda content: bytes(len(content)),
}
FILES = (
    *("config.json", "data_report.json", "loss.json", "metrics.jsonl", "samples.jsonl", "sequences.jsonl"),
    "provenance.json",
)
SAVED = tuple(
    f"checkpoints/step-000002/{name}" for name in ("MANIFEST.json", "weights.safetensors", "optimizer.safetensors")
)
COMMANDS = {
    "report": ["runs", "report", "run", "--out", "page.html"],
    "plot": ["runs", "plot", "run", "--out", "curve.svg"],
    "export": ["export", "run", "exported"],
    "resume": [*FLAGS, "--out", "run", "--resume"],
    "start from": [*FLAGS, "--out", "next", "--start-from", "run"],
}
#: What each slow command reads.
READS = {
    "plot": ("config.json", "metrics.jsonl"),
    "export": ("config.json", "data_report.json", "loss.json", "metrics.jsonl", "sequences.jsonl", SAVED[0]),
    "resume": (
        "config.json",
        "data_digest.json",
        "provenance.json",
        "metrics.jsonl",
        "samples.jsonl",
        "sequences.jsonl",
        *SAVED,
    ),
    "start from": ("config.json", *SAVED[:2]),
}


def damage(path: Path, how: str) -> None:
    if how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "a dangling link":
        path.unlink()
        path.symlink_to("nowhere")
    elif how == "a ring of links":
        path.unlink()
        path.symlink_to(path.name)
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


EVERY = (*DAMAGES, "a folder", "a dangling link", "a ring of links")


#: For commands that load a model, which all read through the same functions as reports do.
SOME = ("empty", "cut in half", "not UTF-8", "a list", "deeply nested", "other kinds of values", "a folder")


def tried(command: str, whole: Path, file: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run a command on copies of the run with this file damaged in each way; what did not end in one line, or well."""
    problems: list[str] = []
    for how in EVERY if command in ("report", "plot") else SOME:
        shutil.rmtree("run", ignore_errors=True)
        shutil.rmtree("exported", ignore_errors=True)
        shutil.rmtree("next", ignore_errors=True)
        shutil.copytree(whole / "run", "run")
        damage(Path("run") / file, how)
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                code = main(COMMANDS[command])
            except Exception as error:
                problems.append(f"{how}: raised {type(error).__name__}: {str(error)[:200]}")
                continue
        lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("training ")]
        is_one_line = len(lines) == 1 and lines[0].split(":")[0].endswith("Error") and len(lines[0]) < 2000
        if code not in (0, 1, 2) or (code and not is_one_line):
            problems.append(f"{how}: code {code}, {len(lines)} lines: {lines[-1:]}")
    return problems


@pytest.fixture
def _in_a_folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(whole / "data.jsonl", "data.jsonl")


@pytest.mark.usefixtures("_in_a_folder")
@pytest.mark.parametrize("file", FILES)
def test_a_report_on_a_folder_with_a_damaged_file_is_a_page_or_one_line(
    whole: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tried("report", whole, file, capsys) == []


@pytest.mark.slow
@pytest.mark.usefixtures("_in_a_folder")
@pytest.mark.parametrize(("command", "file"), [(command, file) for command, files in READS.items() for file in files])
def test_every_command_that_reads_a_folder_with_a_damaged_file_ends_well_or_with_one_line(
    whole: Path, command: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tried(command, whole, file, capsys) == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_value_replaced_by_any_other_gives_a_page_or_an_error_of_lossbook(whole: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    lines = (
        (whole / "run" / name).read_text().splitlines() if name.endswith("l") else [(whole / "run" / name).read_text()]
    )
    number = data.draw(st.integers(0, len(lines) - 1))
    value = json.loads(lines[number])
    holder: Any = value
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not isinstance(holder[key], dict | list) or not holder[key] or data.draw(st.integers(0, 3)) == 0:
            break
        holder = holder[key]
    other = st.sampled_from([None, True, -1, 0, 10**300, 1e308, float("nan"), "", ATTACKS[0], [], {}, [[]], {"a": 1}])
    holder[key] = data.draw(other)
    lines[number] = json.dumps(value)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        shutil.copytree(whole / "run", folder, ignore=shutil.ignore_patterns("checkpoints", "adapter"))
        (folder / name).write_text("".join(line + "\n" for line in lines))
        with suppress(LossbookError):
            assert "<img" not in report_page({"run": folder})
