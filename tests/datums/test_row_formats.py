"""Rows of each known format become datums; others are refused with what was found and what is known."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lossbook.datums import Datum, check_aligned, datum_from_row, datums_from_file, datums_from_row
from lossbook.datums.errors import DataFileError, MessageError, TemplateError, TruncationError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "Go"}


def learned(datum: Datum, tokenizer: Any) -> str:
    check_aligned(datum)
    inputs = datum.loss_fn_inputs
    return tokenizer.decode([t for t, w in zip(inputs["target_tokens"].data, inputs["weights"].data, strict=True) if w])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"messages": [USER, ANSWER], "id": 7}, "Hello<|im_end|>", id="messages, other keys ignored"),
        pytest.param({"prompt": "Hi", "completion": " you"}, " you<|im_end|>", id="prompt and completion"),
        pytest.param({"prompt": "Hi", "completion": "you<|im_end|>"}, "you<|im_end|>", id="one end is enough"),
        pytest.param(
            {"prompt": [USER], "completion": [ANSWER]}, "Hello<|im_end|>", id="messages as prompt, completion"
        ),
        pytest.param(
            {"prompt": [USER, OTHER, USER], "completion": [ANSWER, USER, OTHER]},
            "Hello<|im_end|>Go<|im_end|>",
            id="only answers of the completion are learned",
        ),
        pytest.param({"tokens": [39, 72, 72], "weights": [0, 1, 0.5]}, "ii", id="tokens and weights"),
    ],
)
@pytest.mark.parametrize("template", ["marked", "unmarked"])
def test_the_format_is_known_by_its_keys(
    row: dict[str, Any], expected: str, template: str, tokenizer_with: Any
) -> None:
    tokenizer = tokenizer_with(template)
    assert learned(datum_from_row(row, tokenizer), tokenizer) == expected
    assert datums_from_row(row, tokenizer) == [datum_from_row(row, tokenizer)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Hi", "chosen": "a", "rejected": "bc"}, ["a<|im_end|>", "bc<|im_end|>"]),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}, ["Hello<|im_end|>", "Go<|im_end|>"]),
        ({"chosen": [USER, OTHER, USER, ANSWER], "rejected": [USER, OTHER]}, ["Hello<|im_end|>", "Go<|im_end|>"]),
    ],
    ids=["texts", "messages after a prompt", "whole conversations: the last answer"],
)
def test_a_preference_pair_makes_two_datums(row: dict[str, Any], expected: list[str], tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with("marked")
    assert [learned(datum, tokenizer) for datum in datums_from_row(row, tokenizer)] == expected
    with pytest.raises(DataFileError, match="is a preference pair and makes two datums; use datums_from_row"):
        datum_from_row(row, tokenizer)


def test_a_tokenizer_that_begins_texts_with_a_token_begins_prompts_with_it(tokenizer_with: Any) -> None:
    from tokenizers import processors

    tokenizer = copy.deepcopy(tokenizer_with("marked"))
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    assert datum_from_row({"prompt": "", "completion": "a"}, tokenizer).model_input.to_ints()[0] == start


def test_options_reach_the_builder(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with("marked")
    row = {"messages": [USER, OTHER, USER, ANSWER]}
    assert learned(datum_from_row(row, tokenizer, train_on="last_assistant"), tokenizer) == "Hello<|im_end|>"
    datum = datum_from_row({"prompt": "Hi", "completion": "abc"}, tokenizer, max_length=3, truncation="right")
    assert learned(datum, tokenizer) == "a"
    assert sum(datum_from_row(row, tokenizer, reduction="mean").loss_fn_inputs["weights"].data) == pytest.approx(1)


def test_tools_reach_the_template(tokenizer_with: Any) -> None:
    tokenizer = copy.deepcopy(tokenizer_with("marked"))
    tokenizer.chat_template = "{%- if tools %}{{- tools[0]['function']['name'] }}{%- endif %}" + tokenizer.chat_template
    tool = {"type": "function", "function": {"name": "add<|im_end|>", "parameters": {}}}
    tokens = datum_from_row({"messages": [USER, ANSWER], "tools": [tool]}, tokenizer).model_input.to_ints()
    assert tokenizer.decode(tokens).startswith("add<|im_end|><|im_start|>user")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokens.count(end) == 2, "one for each message; what a tool's schema says is text"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"keys none\. Known are messages; chosen \+ rejected; prompt \+ completion; tokens \+ weights\.$"),
        ({"mesages": []}, r"with the keys mesages\..* Did you mean 'mesages' to be 'messages'\?"),
        ({"prompt": "a", "completions": "b"}, "Did you mean 'completions' to be 'completion'"),
        ({"tokens": [1]}, "'weights' is missing"),
        ({"conversations": []}, "rename 'conversations' to 'messages', 'from' to 'role'"),
        ({"instruction": "a", "output": "b"}, "rename 'instruction'"),
        ({"input_ids": [1], "labels": [1]}, "rename 'input_ids' to 'tokens'"),
        ({"text": "a"}, "give 'prompt' and 'completion'"),
        ({"prompt": "a", "completion": None}, "two texts or two lists of messages, not str and NoneType"),
        ({"prompt": [USER], "completion": "b"}, "two texts or two lists of messages, not list and str"),
    ],
)
def test_other_rows_are_refused_with_what_was_found_and_what_is_known(
    row: dict[str, Any], message: str, tokenizer_with: Any
) -> None:
    with pytest.raises(DataFileError, match=message):
        datum_from_row(row, tokenizer_with("marked"))


class TestFiles:
    """datums_from_file: from a path to datums and a report."""

    def write(self, folder: Path, *rows: dict[str, Any]) -> Path:
        path = folder / "chat.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path

    def test_rows_of_several_formats_are_read(self, tmp_path: Path, tokenizer_with: Any) -> None:
        path = self.write(tmp_path, {"messages": [USER, ANSWER]}, {"prompt": "a", "chosen": "b", "rejected": "c"})
        datums, report = datums_from_file(path, tokenizer_with("marked"))
        assert len(datums) == report.datums == 3
        assert report.rows == report.kept == 2

    def test_d19_a_bad_message_is_an_error_of_its_row(self, tmp_path: Path, tokenizer_with: Any) -> None:
        path = self.write(tmp_path, {"messages": [USER, ANSWER]}, {"messages": [{"role": "user", "content": None}]})
        with pytest.raises(MessageError, match=r"chat.jsonl, line 2: message 0 \(user\) has content is None"):
            datums_from_file(path, tokenizer_with("marked"))

    def test_bad_rows_can_be_left_out_and_counted(self, tmp_path: Path, tokenizer_with: Any) -> None:
        path = self.write(
            tmp_path,
            {"messages": [USER, ANSWER]},
            {"messages": [{"role": "robot", "content": "x"}]},
            {"prompt": "a", "chosen": "b", "rejected": "c" * 99},
        )
        datums, report = datums_from_file(path, tokenizer_with("marked"), on_error="drop", max_length=50)
        assert len(datums) == 1
        assert report.dropped == 2
        assert report.labels_lost == 2 + 100, "both sides of the pair, with the tokens that end them"
        assert set(report.problems) == {"MessageError", "TruncationError"}
        (example,) = report.problems["TruncationError"].examples
        assert example.startswith("chat.jsonl, line 3: rejected: 101 tokens are longer than max_length=50")

    def test_a_line_that_cannot_be_read_is_never_left_out(self, tmp_path: Path, tokenizer_with: Any) -> None:
        path = tmp_path / "bad.jsonl"
        path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n', encoding="utf-8")
        with pytest.raises(DataFileError, match=r"bad\.jsonl, line 2: not JSON"):
            datums_from_file(path, tokenizer_with("marked"), on_error="drop")

    def test_errors_of_templates_and_lengths_name_the_row(self, tmp_path: Path, tokenizer_with: Any) -> None:
        path = self.write(tmp_path, {"messages": [USER, OTHER, USER, ANSWER]})
        with pytest.raises(TemplateError, match=r"chat\.jsonl, line 1: the chat template does not preserve prefixes"):
            datums_from_file(path, tokenizer_with("forgets earlier answers"))
        with pytest.raises(TruncationError, match=r"chat\.jsonl, line 1: "):
            datums_from_file(path, tokenizer_with("marked"), max_length=10)
