"""Rows of each known format become datums; others are refused with their keys and the known formats."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums import Datum, TensorData, check_aligned, datum_from_row, datums_from_file, datums_from_row
from lossbook.datums.errors import (
    AlignmentError,
    DataFileError,
    DtypeError,
    EmptyLossError,
    LabelError,
    LengthMismatchError,
    MessageError,
    ShapeError,
    TemplateError,
    TruncationError,
)

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
            {"prompt": "Hi", "completion": "you<|im_end|>\n"}, "you<|im_end|>", id="a line break behind the end"
        ),
        pytest.param(
            {"prompt": "Hi", "completion": "you\n<|im_end|> <|im_end|>\n\n"}, "you\n<|im_end|>", id="two ends"
        ),
        pytest.param({"prompt": "Hi", "completion": "you \n"}, "you \n<|im_end|>", id="a line break is kept elsewhere"),
        pytest.param(
            {"prompt": [USER], "completion": [ANSWER]}, "Hello<|im_end|>", id="messages as prompt, completion"
        ),
        pytest.param(
            {"prompt": [USER, OTHER, USER], "completion": [ANSWER, USER, OTHER]},
            "Hello<|im_end|>Go<|im_end|>",
            id="only answers of the completion are learned",
        ),
        pytest.param({"tokens": [39, 72, 72], "weights": [0, 1, 0.5]}, "ii", id="tokens and weights"),
        pytest.param({"input_ids": [39, 72, 65], "labels": [-100, -100, 65]}, "b", id="input ids and labels"),
        pytest.param(
            {"input_ids": [0, 39, 72, 0], "labels": [-100, -100, 72, -100], "attention_mask": [0, 1, 1, 0]},
            "i",
            id="input ids and labels, with padding",
        ),
        pytest.param(
            {"messages": [USER, {**OTHER, "weight": 0}, {**USER, "weight": 0}, {**ANSWER, "weight": 0.5}]},
            "Hello<|im_end|>",
            id="messages with weights",
        ),
        pytest.param({"prompt": "Hi", "completion": " a", "label": True}, " a<|im_end|>", id="a labelled completion"),
        pytest.param({"prompt": None, "completion": None, "messages": [USER, ANSWER]}, "Hello<|im_end|>", id="nulls"),
        pytest.param(
            {"messages": None, "prompt": "Hi", "completion": "a"}, "a<|im_end|>", id="nulls of another format"
        ),
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
        (
            {},
            r"keys none\. Known are messages; chosen \+ rejected; prompt \+ completion \+ label; prompt \+ completion; "
            r"tokens \+ weights; input_ids \+ labels; input_ids \+ loss_mask; input_ids \+ completion_mask; "
            r"input_ids \+ assistant_masks\.$",
        ),
        ({"mesages": []}, r"with the keys mesages\..* Did you mean 'mesages' to be 'messages'\?"),
        ({"prompt": "a", "completions": "b"}, "Did you mean 'completions' to be 'completion'"),
        ({"tokens": [1]}, "'weights' is missing"),
        ({"conversations": []}, "rename 'conversations' to 'messages', 'from' to 'role'"),
        ({"instruction": "a", "output": "b"}, "rename 'instruction'"),
        ({"input_ids": [1], "label": [1]}, "Here: add 'labels'"),
        ({"prompt": "a", "answer": "b"}, "rename 'answer' to 'completion' to learn it; `lossbook train rl`"),
        (
            {"query": "a", "positive": "b"},
            "texts to embed are not learned token by token; `lossbook train embed` reads such rows",
        ),
        ({"anchor": "a", "positive": "b", "negative": "c"}, "`lossbook train embed` reads such rows"),
        ({"query": "a", "negatives": ["b"]}, "`lossbook train embed` reads such rows"),
        ({"text": "a"}, "give 'prompt', which is only read, and 'completion', which is learned"),
        ({"prompt": "a", "completion": None}, "two texts or two lists of messages, not str and NoneType"),
        (
            {"prompt": [USER], "completion": "b"},
            r"two texts or two lists of messages, not list and str. Write 'completion' as \[{'role': 'assistant'",
        ),
        ({"prompt": "a", "completion": [ANSWER]}, r"not str and list. Write 'prompt' as \[{'role': 'user'"),
        ({"messages": [USER, ANSWER], "tools": "{"}, "'tools' is a text that is not JSON: Expecting"),
        ({"messages": [USER, ANSWER], "tools": {"a": 1}}, "'tools' must be a list of schemas, or its JSON, not a dict"),
        (
            {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 0, 1]},
            "attention_mask is 0 at 1, inside the sequence",
        ),
        (
            {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "attention_mask": [1, 1, 0]},
            r"labels\[2\] is to be learned, but attention_mask marks it as padding",
        ),
    ],
)
def test_other_rows_are_refused_with_their_keys_and_the_known_formats(
    row: dict[str, Any], message: str, tokenizer_with: Any
) -> None:
    with pytest.raises(DataFileError, match=message):
        datum_from_row(row, tokenizer_with("marked"))


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"prompt": "a", "completion": "b", "label": "yes"}, LabelError, "^'label' is 'yes'; with .* true or false"),
        ({"prompt": "a", "completion": "b", "label": None}, LabelError, "^'label' is None; "),
        ({"prompt": "a", "completion": "b", "label": 2}, LabelError, "^'label' is 2; .* Rename it"),
        ({"prompt": "a", "completion": "b", "label": 0.5}, LabelError, "^'label' is 0.5; "),
        ({"prompt": "a", "completion": ""}, EmptyLossError, "'completion' is an empty text"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, EmptyLossError, "chosen: 'chosen' is an empty text"),
        ({"chosen": "b", "rejected": "c"}, DataFileError, "not NoneType and str. Add 'prompt', the text before it"),
        ({"tokens": "abc", "weights": [1]}, DtypeError, "^'tokens': tokens must be numbers, got str"),
        ({"tokens": [1, 2.5], "weights": [0, 1]}, DtypeError, "^'tokens': tokens must be integers, got floats"),
        ({"tokens": [1, 2], "weights": [1]}, LengthMismatchError, "weights has 1 entries for 2 tokens"),
        ({"tokens": [1, 2], "weights": [0, "x"]}, DtypeError, "must be numbers"),
        ({"tokens": [1, 2], "weights": [0, 10**400]}, DtypeError, "."),
        ({"prompt": "a", "completion": "b", "weight": 10**400}, DataFileError, "'weight' is 1000"),
        (
            {"tokens": [1, 2], "weights": [0, 1], "advantages": [1]},
            LengthMismatchError,
            "advantages has 1 entries for 2 tokens. Off by one: give one entry per unshifted token; advantages is",
        ),
        ({"input_ids": [1, 2], "labels": [1]}, LengthMismatchError, "labels has 1 entries for 2 input_ids"),
        ({"input_ids": [1, 2], "labels": None}, DtypeError, "^'labels': "),
        ({"input_ids": [[1, 2]], "labels": [[1, 2]]}, ShapeError, "^'input_ids': tokens must be one flat list"),
        (
            {"input_ids": [1, 2, 3], "labels": [2, 3, -100]},
            AlignmentError,
            r"labels\[0\] is 2, but input_ids\[0\] is 1: .* already shifted by one: give them unshifted",
        ),
        ({"input_ids": [1, 2, 3], "labels": [-100, 2, 9]}, AlignmentError, r"labels\[2\] is 9.* only read.$"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, EmptyLossError, "every label is -100"),
        ({"input_ids": [1, 2], "labels": [1, -100]}, EmptyLossError, "every label is -100"),
        ({"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1]}, LengthMismatchError, "attention_mask has 1"),
        (
            {"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [0, 0]},
            EmptyLossError,
            "all of the row is padding",
        ),
    ],
)
def test_an_error_names_the_key_of_a_bad_value(
    row: dict[str, Any], kind: type[Exception], message: str, tokenizer_with: Any
) -> None:
    with pytest.raises(kind, match=message):
        datums_from_row(row, tokenizer_with("marked"))


def test_of_thousands_of_keys_an_error_names_the_first_20(tokenizer_with: Any) -> None:
    row = {f"{number}{'x' * 500}": number for number in range(5000)}
    with pytest.raises(DataFileError, match=r"with the keys 0x.*, 19x{9,}\S*, 4980 more\. Known are") as refused:
        datum_from_row(row, tokenizer_with("marked"))
    assert len(str(refused.value)) < 3000


@pytest.mark.parametrize("label", [True, False, 1, 0, 1.0, 0.0])
def test_a_label_becomes_one_number_of_the_datum(label: float, tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with("marked")
    row = {"prompt": [USER], "completion": [ANSWER]}
    datum = datum_from_row({**row, "label": label}, tokenizer)
    assert datum.loss_fn_inputs["label"] == TensorData(data=int(label), dtype="int64")
    assert datum.loss_fn_inputs["label"].shape == []
    unlabelled = datum_from_row(row, tokenizer)
    assert {**unlabelled.loss_fn_inputs, "label": datum.loss_fn_inputs["label"]} == datum.loss_fn_inputs


def test_an_empty_answer_may_be_the_rejected_one(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with("marked")
    row = {"prompt": "a", "chosen": "b", "rejected": ""}
    assert [learned(datum, tokenizer) for datum in datums_from_row(row, tokenizer)] == ["b<|im_end|>", "<|im_end|>"]


def test_inputs_per_token_are_shifted_with_their_tokens(tokenizer_with: Any) -> None:
    row = {"tokens": [5, 6, 7], "weights": [0, 1, 1], "advantages": [0, 0.5, -0.5], "ref_logprobs": None}
    inputs = datum_from_row(row, tokenizer_with("marked")).loss_fn_inputs
    assert set(inputs) == {"target_tokens", "weights", "advantages"}
    assert inputs["advantages"].data == [0.5, -0.5]


@given(
    st.lists(st.tuples(st.integers(0, 255), st.booleans()), min_size=2, max_size=9),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_labels_give_the_same_datum_as_weights(tokens: list[tuple[int, bool]], before: int, after: int) -> None:
    ids, labels = [t for t, _ in tokens], [t if seen else -100 for t, seen in tokens]
    if not any(seen for _, seen in tokens[1:]):
        return
    plain = datum_from_row({"tokens": ids, "weights": [float(seen) for _, seen in tokens]}, None)
    assert datum_from_row({"input_ids": ids, "labels": labels}, None) == plain
    padded = {
        "input_ids": [0] * before + ids + [0] * after,
        "labels": [-100] * before + labels + [-100] * after,
        "attention_mask": [0] * before + [1] * len(ids) + [0] * after,
    }
    assert datum_from_row(padded, None) == plain


def test_tools_may_be_json(tokenizer_with: Any) -> None:
    tokenizer = copy.deepcopy(tokenizer_with("marked"))
    tokenizer.chat_template = "{%- if tools %}{{- tools[0]['name'] }}{%- endif %}" + tokenizer.chat_template
    row = {"messages": [USER, ANSWER]}
    as_list = datum_from_row({**row, "tools": [{"name": "add"}]}, tokenizer)
    assert datum_from_row({**row, "tools": '[{"name": "add"}]'}, tokenizer) == as_list
    assert datum_from_row({**row, "tools": ""}, tokenizer) == datum_from_row(row, tokenizer) != as_list


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

    def test_a_line_that_cannot_be_read_always_raises(self, tmp_path: Path, tokenizer_with: Any) -> None:
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
