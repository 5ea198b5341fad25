"""Tables and the console that commands print to, at every width."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.cookbook.terminal import MIN_WIDTH, Column, Table, console, table

words = st.text("abcdefgh", min_size=1, max_size=12)
sentences = st.lists(words, max_size=20).map(" ".join)


def printed(shown: Table, width: int) -> str:
    """What a console of that width prints."""
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        console(stream).print(shown)
    return stream.getvalue()


@given(
    st.lists(st.tuples(words, sentences, words, sentences), min_size=1, max_size=6),
    st.integers(MIN_WIDTH, 200),
    st.sampled_from([0, 2]),
)
def test_a_table_fits_any_width_and_breaks_no_word(rows: list[tuple[str, ...]], width: int, indent: int) -> None:
    columns = ["id", Column("meaning", text=True), Column("n", right=True), Column("also", text=True)]
    text = printed(table(columns, rows, indent=indent), width)
    assert all(len(line) <= width and line == line.rstrip() for line in text.splitlines())
    shown = text.split()
    kept = 4 if "No room for" not in text else 4 - len(text.split("No room for ")[1].split(":")[0].split(","))
    assert kept >= 1
    for row in rows:
        for cell in row[:kept]:
            assert set(cell.split()) <= set(shown)  # every word of every column that is shown is there, whole


def test_text_columns_take_the_slack_and_the_last_columns_are_left_out_first() -> None:
    columns = ["id", "level", Column("reads", text=True), "file"]
    rows = [["policy (1)"], ["ppo", "token", "logprobs, sampling_logprobs, advantages", "losses/policy/clipped.py"]]
    assert printed(table(columns, rows), 100).splitlines() == [
        "id   level  reads                                    file",
        "",
        "policy (1)",
        "ppo  token  logprobs, sampling_logprobs, advantages  losses/policy/clipped.py",
    ]
    assert printed(table(columns, rows), 45).splitlines() == [
        "id   level  reads",
        "",
        "policy (1)",
        "ppo  token  logprobs, sampling_logprobs,",
        "            advantages",
        "No room for file: widen the terminal, or set",
        "COLUMNS.",
    ]


def test_data_in_a_table_can_neither_command_the_terminal_nor_hide() -> None:
    text = printed(table(["run", "loss"], [["\x1b[2Jrun\u202e", "[red]0.5[/red]"]]), 80)
    assert "\\x1b[2Jrun\\u202e" in text
    assert "[red]0.5[/red]" in text
    assert "\x1b" not in text


def test_a_pipe_is_80_wide_and_without_colour_unless_columns_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    assert console(stream).width == 80
    console(stream).print("[bold]as it is[/bold]", style="red")
    assert stream.getvalue() == "[bold]as it is[/bold]\n"
    for given_columns, width in (("140", 140), ("60", 60), ("1", MIN_WIDTH), ("wide", 80)):
        monkeypatch.setenv("COLUMNS", given_columns)
        assert console(stream).width == width


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 cells, but there are 2 columns"):
        table(["a", "b"], [["1", "2", "3"]])
