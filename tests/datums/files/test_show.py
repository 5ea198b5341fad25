"""A shown datum has every token and marks the learned ones, with and without colour."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lossbook.datums import Datum, ModelInput, datum_from_messages, datum_from_tokens_weights, render_datum, show_file
from lossbook.datums.errors import DataFileError, MessageError, ShapeError
from lossbook.datums.files.show import visible

MESSAGES = [{"role": "user", "content": "Hé"}, {"role": "assistant", "content": "a\tb"}]
FILE = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}\n' * 5


def styles(datum: Datum, tokenizer: Any) -> dict[str, str]:
    text = render_datum(datum, tokenizer)
    return {text.plain[span.start : span.end]: str(span.style) for span in text.spans}


def test_special_tokens_and_line_ends_are_visible(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with("marked")
    text = render_datum(datum_from_messages(MESSAGES, tokenizer), tokenizer)
    assert text.plain == "<|im_start|>user↵\nHé<|im_end|>↵\n<|im_start|>assistant↵\na⇥b<|im_end|>↵\n"


def test_colours_follow_the_weights(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with("marked")
    tokens = tokenizer("xabcde<|im_end|>")["input_ids"]
    style_of = styles(datum_from_tokens_weights(tokens, [1, 0, 2, 1, -2, -1, 2]), tokenizer)
    assert style_of["x"] == style_of["a"] == "dim"
    assert style_of["b"] == "rgb(0,255,0)"
    assert style_of["c"] == "rgb(0,182,0)"
    assert style_of["d"] == "rgb(255,60,60)"
    assert style_of["e"] == "rgb(182,60,60)"
    assert style_of["<|im_end|>"] == "rgb(0,255,0) underline"


def test_without_colour_marks_and_weights_stand_around_learned_tokens(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with("marked")
    tokens = tokenizer("abcdef")["input_ids"]
    text = render_datum(datum_from_tokens_weights(tokens, [0, 0, 1, 1, -0.5, 0]), tokenizer, marks=True)
    assert text.plain == "ab«cd»«e»×-0.5 f"


def test_datums_without_weights_or_targets_can_be_shown(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with("marked")
    tokens = ModelInput.from_ints(tokenizer("ab")["input_ids"])
    assert render_datum(Datum(tokens), tokenizer, marks=True).plain == "ab"
    targets: Any = {"target_tokens": tokenizer("bc")["input_ids"]}
    assert render_datum(Datum(tokens, targets), tokenizer, marks=True).plain == "a«bc»"


def test_k_targets_cannot_be_shown(tokenizer_with: Any) -> None:
    datum = Datum(ModelInput.from_ints([1]), {"target_tokens": [[1, 2]]})  # type: ignore[dict-item]
    with pytest.raises(ShapeError, match=r"target_tokens of shape \[1, 2\] are not one text"):
        render_datum(datum, tokenizer_with("marked"))


def test_bytes_that_are_not_a_character_are_shown_one_by_one(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with("marked")
    first, second = tokenizer("é")["input_ids"]
    text = render_datum(datum_from_tokens_weights([first, second, first], [0, 0, 1]), tokenizer, marks=True)
    assert text.plain == "é«\ufffd»"
    split = render_datum(datum_from_tokens_weights([first, second], [0, 1]), tokenizer, marks=True)
    assert split.plain == "\ufffd«\ufffd»"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=2))
def test_every_text_is_shown_whole(tokenizer_with: Any, text: str) -> None:
    tokenizer = tokenizer_with("marked")
    tokens = tokenizer(text)["input_ids"]
    if len(tokens) > 1:
        assert render_datum(datum_from_tokens_weights(tokens, [1] * len(tokens)), tokenizer).plain in (
            visible(text),
            # the first character's bytes may differ in weight: its first token is nobody's target
            "\ufffd" * len(text[0].encode()) + visible(text[1:]),
        )


def test_control_characters_are_shown_as_codes() -> None:
    assert visible("a\x1b[2Jb\u202ec\x00\u2028") == "a\\x1b[2Jb\\u202ec\\x00\\u2028"
    assert visible("[red]é\n") == "[red]é↵\n"


class TestShowFile:
    """`lossbook data show FILE`."""

    def show(self, path: Path, tokenizer: Any, **options: Any) -> tuple[int, str]:
        file = io.StringIO()
        shown = show_file(path, tokenizer, console=Console(file=file, width=40), **options)
        return shown, file.getvalue()

    def test_the_first_rows_are_shown_with_their_place_and_counts(self, tmp_path: Path, tokenizer_with: Any) -> None:
        path = tmp_path / "chat.jsonl"
        path.write_text(FILE, encoding="utf-8")
        shown, text = self.show(path, tokenizer_with("marked"), count=2)
        assert shown == 2
        row = "<|im_start|>user↵\nHi<|im_end|>↵\n<|im_start|>assistant↵\n«Yo<|im_end|>»↵\n"
        assert text == "".join(f"chat.jsonl, line {line}: 25 tokens, 3 learned\n{row}\n\n" for line in (1, 2)) + (
            "There are more rows than these 2; --count N shows N.\n"
        )

    def test_rows_that_are_not_shown_are_spoken_of_whether_or_not_they_can_be_read(
        self, tmp_path: Path, tokenizer_with: Any
    ) -> None:
        path = tmp_path / "chat.jsonl"
        for rest, more in (("", False), ("\n\n", False), ("\n{", True)):
            path.write_text(FILE.splitlines()[0] + rest, encoding="utf-8")
            shown, text = self.show(path, tokenizer_with("marked"), count=1)
            assert shown == 1
            assert ("There are more rows than this one; --count N shows N." in text) == more

    def test_no_color_switches_colour_off(
        self, tmp_path: Path, tokenizer_with: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "chat.jsonl"
        path.write_text(FILE, encoding="utf-8")
        coloured, plain = io.StringIO(), io.StringIO()
        monkeypatch.delenv("NO_COLOR", raising=False)
        console = Console(file=coloured, force_terminal=True, color_system="truecolor")
        show_file(path, tokenizer_with("marked"), count=1, console=console)
        assert "\x1b[38;2;0;255;0mY" in coloured.getvalue()
        assert "«" not in coloured.getvalue()
        monkeypatch.setenv("NO_COLOR", "1")
        console = Console(file=plain, force_terminal=True, color_system="truecolor")
        show_file(path, tokenizer_with("marked"), count=1, console=console)
        assert "\x1b[38" not in plain.getvalue()
        assert "«" in plain.getvalue()

    def test_both_sides_of_a_pair_are_shown(self, tmp_path: Path, tokenizer_with: Any) -> None:
        path = tmp_path / "pairs.jsonl"
        path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}', encoding="utf-8")
        _, text = self.show(path, tokenizer_with("marked"))
        assert "pairs.jsonl, line 1, chosen: 3 tokens, 2 learned\na«b<|im_end|>»\n" in text
        assert "pairs.jsonl, line 1, rejected: 3 tokens, 2 learned\na«c<|im_end|>»\n" in text

    def test_options_reach_the_builder_and_errors_name_the_row(self, tmp_path: Path, tokenizer_with: Any) -> None:
        path = tmp_path / "chat.jsonl"
        path.write_text(FILE + '{"messages": []}\n', encoding="utf-8")
        _, text = self.show(path, tokenizer_with("marked"), count=1, train_on="all")
        assert "24 learned" in text
        with pytest.raises(MessageError, match=r"chat\.jsonl, line 6: messages is empty"):
            self.show(path, tokenizer_with("marked"), count=9)
        with pytest.raises(DataFileError, match="cannot be read"):
            self.show(tmp_path / "missing.jsonl", tokenizer_with("marked"))
