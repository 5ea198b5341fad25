"""What a conversation says is rendered, or the error names the part that the chat template leaves out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums import datum_from_messages, datum_from_row
from lossbook.datums.builders.notes import watch_notes
from lossbook.datums.errors import MessageError, TemplateError

from ..conftest import byte_tokenizer

#: Renders every part. Each piece can be taken out, which makes a template that leaves that part out.
PIECES = {
    "tools": "{%- if tools %}{%- for tool in tools %}{{- tool | tojson + '\n' }}{%- endfor %}{%- endif %}",
    "reasoning": "{%- if m['reasoning_content'] %}{{- '<think>' + m['reasoning_content'] + '</think>' }}{%- endif %}",
    "content": "{{- m['content'] or '' }}",
    "calls": (
        "{%- for call in m['tool_calls'] or [] %}{%- set f = call['function'] %}"
        "{{- '<call>' + f['name'] + ' ' + (f['arguments'] | tojson) }}{%- endfor %}"
    ),
}


def template(
    without: str = "",
    replace: tuple[str, str] = ("", ""),
    roles: tuple[str, ...] = ("system", "user", "assistant", "tool"),
) -> str:
    pieces = {name: "" if name == without else piece for name, piece in PIECES.items()}
    body = pieces["reasoning"] + pieces["content"] + pieces["calls"]
    return (
        pieces["tools"]
        + f"{{%- for m in messages if m['role'] in {list(roles)} %}}"
        + "{{- '<|im_start|>' + m['role'] + '\n' }}"
        + (body.replace(*replace) if replace[0] else body)
        + "{{- '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    )


def call(arguments: Any, name: str = "weather") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "Is it 7 in Oslo?"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "content": None, "tool_calls": [call({"city": "Oslo"})]}
RESULT = {"role": "tool", "content": "7"}
ANSWER = {"role": "assistant", "content": "It is 7 in Oslo."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says how warm it is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def text_of(row: Mapping[str, Any], source: str) -> str:
    """The whole text of a row's datum."""
    tokenizer = byte_tokenizer(source)
    datum = datum_from_row(row, tokenizer)
    return tokenizer.decode([*datum.model_input.to_ints(), datum.loss_fn_inputs["target_tokens"].data[-1]])


@pytest.mark.parametrize(
    ("arguments", "source", "written"),
    [
        pytest.param('{"city": "Oslo"}', template(), '{"city": "Oslo"}', id="a JSON text, and a template with tojson"),
        pytest.param({"city": "Oslo"}, template(), '{"city": "Oslo"}', id="an object, and a template with tojson"),
        pytest.param('{"city":"Bodø"}', template(), '{"city": "Bodø"}', id="letters beyond ASCII stay letters"),
        pytest.param("", template(), "<call>weather {}", id="an empty text: no arguments"),
        pytest.param("{}", template(), "<call>weather {}", id="an empty object as text"),
        pytest.param(
            '{"city":"Oslo"}',
            template(replace=("(f['arguments'] | tojson)", "f['arguments']")),
            '{"city":"Oslo"}',
            id="a template that writes texts gets the author's text",
        ),
        pytest.param(
            {"city": "Oslo"},
            template(replace=("(f['arguments'] | tojson)", "f['arguments']")),
            '{"city": "Oslo"}',
            id="a template that writes texts gets an object as JSON",
        ),
        pytest.param(
            '{"city": "Oslo"}',
            template(replace=("+ (f['arguments'] | tojson) }}", "}}{{- f['arguments'] }}")),
            '{"city": "Oslo"}',
            id="a template that would write a dict as Python does gets a text",
        ),
        pytest.param(
            '{"city": "Oslo"}',
            template(
                replace=(
                    "(f['arguments'] | tojson)",
                    "(f['arguments'] if f['arguments'] is string else f['arguments'] | tojson)",
                )
            ),
            '{"city": "Oslo"}',
            id="a template that takes both",
        ),
        pytest.param(
            '{"city": "Oslo"}',
            template(
                replace=(
                    "+ (f['arguments'] | tojson) }}",
                    "}}{%- for k, v in f['arguments'].items() %}{{- '<' + k + '>' + v }}{%- endfor %}",
                )
            ),
            "<call>weather <city>Oslo",
            id="a template that writes arguments one by one",
        ),
    ],
)
def test_arguments_of_a_call_are_rendered_once(arguments: Any, source: str, written: str) -> None:
    messages = [USER, {**CALL, "tool_calls": [call(arguments)]}, RESULT, ANSWER]
    text = text_of({"messages": messages}, source)
    assert written in text
    assert '\\"' not in text
    assert "'city'" not in text


def test_the_older_function_call_is_a_tool_call() -> None:
    older = {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    assert '<call>weather {"city": "Oslo"}<|im_end|>' in text_of(
        {"messages": [USER, older, RESULT, ANSWER]}, template()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('{"city": ', "a text that is not JSON: Expecting value at column 10"),
        ("city=Oslo", "a text that is not JSON"),
        ('"Oslo"', "a str; they must be an object, or the JSON text of one"),
        ('["Oslo"]', "a list; they must be an object"),
        (3, "a int; they must be an object"),
        ('{"a": 1, "a": 2}', "a text that is not usable JSON: the key 'a' appears more than once"),
        ('{"a": NaN}', "a text that is not usable JSON: NaN is not JSON"),
        (r'{"a": "\ud800"}', "a text that is not usable JSON: an unpaired surrogate"),
    ],
)
def test_broken_arguments_name_message_and_call(arguments: Any, message: str) -> None:
    messages = [USER, {**CALL, "tool_calls": [call({"city": "Oslo"}), call(arguments, "wind")]}, RESULT, ANSWER]
    with pytest.raises(
        MessageError, match=r"message 1 \(assistant\): the arguments of tool call 1 \('wind'\) are " + message
    ):
        datum_from_messages(messages, byte_tokenizer(template()))


def test_arguments_that_a_template_never_writes_as_json_are_refused() -> None:
    twice = template(replace=("(f['arguments'] | tojson)", "(f['arguments'] ~ '') | tojson"))
    with pytest.raises(TemplateError, match="neither from an object nor from a text as JSON"):
        datum_from_messages([USER, CALL, RESULT, ANSWER], byte_tokenizer(twice))


CALLS_ONCE = template(
    replace=("{%- for call in m['tool_calls'] or [] %}", "{%- for call in (m['tool_calls'] or [])[:1] %}")
)


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        pytest.param(
            template(roles=("user", "assistant", "tool")),
            {"messages": [SYSTEM, USER, ANSWER]},
            r"leaves out the content of message 0 \(system\). Use a template that renders it, put",
            id="system",
        ),
        pytest.param(
            template(roles=("user", "assistant", "tool")),
            {"messages": [SYSTEM, {"role": "user", "content": "Be brief."}, ANSWER]},
            r"leaves out the content of message 0 \(system\)",
            id="system, where the user says the same",
        ),
        pytest.param(
            template("tools"),
            {"messages": [USER, ANSWER], "tools": [TOOL]},
            r"leaves out tool 0 \('weather'\)",
            id="tools",
        ),
        pytest.param(
            template().replace("tool | tojson", "tool['function']['name']"),
            {"messages": [USER, ANSWER], "tools": [TOOL]},
            r"leaves out a part of tool 0 \('weather'\)",
            id="a tool's description",
        ),
        pytest.param(
            template("reasoning"),
            {"messages": [USER, {**ANSWER, "reasoning_content": "7 is what it is."}]},
            r"leaves out 'reasoning_content' of message 1 \(assistant\). Write it into 'content'",
            id="reasoning",
        ),
        pytest.param(
            template(replace=("+ (f['arguments'] | tojson)", "")),
            {"messages": [USER, CALL, RESULT, ANSWER]},
            r"leaves out the arguments of tool call 0 \('weather'\) of message 1",
            id="arguments, where the user names the city",
        ),
        pytest.param(
            CALLS_ONCE,
            {"messages": [USER, {**CALL, "tool_calls": [call({"city": "Oslo"})] * 2}, RESULT, ANSWER]},
            r"leaves out tool call 1 \('weather'\) of message 1",
            id="a second call of the same function",
        ),
        pytest.param(
            template("calls"), {"messages": [USER, CALL, RESULT, ANSWER]}, "leaves out tool call 0", id="calls"
        ),
        pytest.param(
            template(roles=("system", "user", "assistant")),
            {"messages": [USER, CALL, RESULT, ANSWER]},
            r"leaves out the content of message 2 \(tool\)",
            id="a tool's answer 7, where the user wrote 7",
        ),
        pytest.param(
            template(replace=("m['content'] or ''", "(m['content'] or '')[:12]")),
            {"messages": [USER, {"role": "assistant", "content": "Yes."}]},
            r"leaves out a part of the content of message 0 \(user\)",
            id="the end of a text",
        ),
    ],
)
def test_a_part_that_the_template_leaves_out_is_named(source: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        datum_from_row(row, byte_tokenizer(source))


THINKS_LAST = template(replace=("{%- if m['reasoning_content'] %}", "{%- if m['reasoning_content'] and loop.last %}"))


def test_reasoning_that_is_rendered_in_the_last_answer_only_may_be_missing_where_it_is_only_read() -> None:
    thought = {**ANSWER, "reasoning_content": "Seven."}
    messages = [USER, thought, USER, thought]
    marked = THINKS_LAST.replace("{{- '<|im_end|>", "{%- generation %}{{- '!' }}{%- endgeneration %}{{- '<|im_end|>")
    with pytest.raises(TemplateError, match=r"leaves out 'reasoning_content' of message 1 .*train_on='last_assistant'"):
        datum_from_messages(messages, byte_tokenizer(marked))
    with watch_notes() as notes:
        datum_from_messages(messages, byte_tokenizer(THINKS_LAST), train_on="last_assistant")
    assert notes.left_unread() == [
        "'reasoning_content' of answers that are not learned, which the chat template leaves out"
    ]


@pytest.mark.parametrize("key", ["reasoning", "thinking"])
def test_reasoning_under_another_name_is_rendered_or_named(key: str) -> None:
    # transformers gives a template each of these names; where it does not, the template here leaves them out
    messages = [USER, {**ANSWER, key: "Seven."}]
    try:
        said = text_of({"messages": messages}, template())
    except TemplateError as error:
        said = str(error)
    assert "<think>Seven.</think>" in said or f"leaves out {key!r} of message 1 (assistant)" in said
    with pytest.raises(TemplateError, match=f"leaves out {key!r} of message 1"):
        datum_from_messages(messages, byte_tokenizer(template("reasoning")))


def test_templates_may_search_texts_for_markup() -> None:
    # Qwen3's way: reasoning is cut out of the content and written again
    source = template(
        replace=(
            "{{- m['content'] or '' }}",
            "{%- if m['content'] and '</think>' in m['content'] %}"
            "{{- '<think>' + m['content'].split('</think>')[0].split('<think>')[-1].strip() + '</think>' }}"
            "{{- m['content'].split('</think>')[-1].lstrip() }}{%- else %}{{- m['content'] or '' }}{%- endif %}",
        )
    )
    said = {"role": "assistant", "content": "<think>\nSeven.\n</think>\n\nYes."}
    assert "<think>Seven.</think>Yes.<|im_end|>" in text_of({"messages": [USER, said]}, source)


def test_a_text_that_cannot_bear_a_mark_is_looked_for_as_it_is() -> None:
    picky = "{%- if messages[0]['content'] != 'Hi' %}{{- raise_exception('no') }}{%- endif %}"
    said = [{"role": "user", "content": "Hi"}, ANSWER]
    assert "Hi<|im_end|>" in text_of({"messages": said}, picky + template())
    with pytest.raises(TemplateError, match=r"leaves out the content of message 0 \(user\)"):
        datum_from_messages(said, byte_tokenizer(picky + template(roles=("assistant",))))


def test_keys_of_messages_that_are_not_rendered_are_noted() -> None:
    with watch_notes() as notes:
        datum_from_messages(
            [{**USER, "name": "Kari", "id": 3, "tool_call_id": "x"}, ANSWER], byte_tokenizer(template())
        )
    assert notes.left_unread() == ["'name' of messages", "'id' of messages"]
    named = template(replace=("{{- m['content'] or '' }}", "{{- (m['name'] or '') + (m['content'] or '') }}"))
    with watch_notes() as notes:
        assert "KariIs it" in text_of({"messages": [{**USER, "name": "Kari"}, ANSWER]}, named)
    assert notes.left_unread() == []


WORDS = st.sampled_from(["7", "Oslo", "yes", "yes yes", "<b>no</b>", "a: {1}"])


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    """A row with any subset of the parts, of few words, so that texts often stand elsewhere too."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": draw(WORDS)}]
    if draw(st.booleans()):
        messages.insert(0, {"role": "system", "content": draw(WORDS)})
    calls = draw(st.lists(st.dictionaries(WORDS, WORDS, max_size=2), max_size=2))
    if calls:
        as_text = draw(st.booleans())
        made = [call(json.dumps(one) if as_text else one, draw(st.sampled_from(["weather", "yes"]))) for one in calls]
        messages.append({"role": "assistant", "content": draw(st.none() | WORDS), "tool_calls": made})
        messages += [{"role": "tool", "content": draw(WORDS)} for _ in made]
    messages.append({"role": "assistant", "content": draw(WORDS)})
    if draw(st.booleans()):
        messages[-1]["reasoning_content"] = draw(WORDS)
    return {"messages": messages, **({"tools": [TOOL]} if draw(st.booleans()) else {})}


@given(conversations(), st.sampled_from(["", "tools", "reasoning", "calls", "system", "tool"]))
def test_any_conversation_is_rendered_whole_or_the_missing_part_is_named(row: dict[str, Any], without: str) -> None:
    roles = tuple(role for role in ("system", "user", "assistant", "tool") if role != without)
    left_out = {
        "tools": "tools" in row,
        "reasoning": any("reasoning_content" in m for m in row["messages"]),
        "calls": any("tool_calls" in m for m in row["messages"]),
        "system": any(m["role"] == "system" for m in row["messages"]),
        "tool": any(m["role"] == "tool" for m in row["messages"]),
    }
    text, problem = "", ""
    try:
        text = text_of(row, template(without, roles=roles))
    except TemplateError as error:
        problem = str(error)
    is_missing = bool(without) and left_out[without]
    assert bool(problem) == is_missing, problem
    if problem:
        named = {"tools": "tool 0", "reasoning": "reasoning_content", "calls": "tool call", "system": "(system)"}
        assert named.get(without, "(tool)") in problem
        return
    said = [m["content"] for m in row["messages"] if m["content"]]
    said += [f"<call>{c['function']['name']} " for m in row["messages"] for c in m.get("tool_calls", [])]
    assert all(text.count(one) >= said.count(one) for one in said)
