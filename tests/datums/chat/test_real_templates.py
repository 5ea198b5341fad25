"""Chat templates of real models, as TRL ships them: a conversation is rendered whole, or the missing part is named."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from lossbook.datums.chat.messages import check_messages
from lossbook.datums.chat.omissions import check_rendered, with_readable_arguments
from lossbook.datums.chat.template import ChatTemplate
from lossbook.datums.errors import TemplateError

from ..conftest import byte_tokenizer

SPEC = importlib.util.find_spec("trl")
FOLDER = Path(SPEC.origin).parent / "chat_templates" if SPEC and SPEC.origin else Path("none")
TEMPLATES = sorted(FOLDER.glob("*.jinja"))

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Describes qdescription.",
        "parameters": {"type": "object", "properties": {"qparameter": {"type": "string", "description": "x"}}},
    },
}
USER, SYSTEM = {"role": "user", "content": "quser"}, {"role": "system", "content": "qsystem"}
ANSWER = {"role": "assistant", "content": "qanswer"}


def call(value: str, number: int) -> dict[str, Any]:
    arguments = f'{{"qkey{number}": "{value}"}}'
    return {"id": f"abcdef12{number}", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def result(text: str, number: int) -> dict[str, Any]:
    return {"role": "tool", "name": "weather", "tool_call_id": f"abcdef12{number}", "content": text}


CALLS = {"role": "assistant", "content": "", "tool_calls": [call("qfirst", 1)]}
ROWS: dict[str, tuple[list[dict[str, Any]], list[Any]]] = {
    "plain": ([USER, ANSWER], []),
    "system": ([SYSTEM, USER, ANSWER], []),
    "reasoning": ([USER, {**ANSWER, "reasoning_content": "qreasoning"}], []),
    "reasoning in the text": ([USER, {**ANSWER, "content": "<think> qreasoning </think> qanswer"}], []),
    "tools": ([USER, ANSWER], [TOOL]),
    "a call": ([SYSTEM, USER, CALLS, result("qresult1", 1), ANSWER], [TOOL]),
    "two calls of one function": (
        [
            USER,
            {**CALLS, "tool_calls": [call("qfirst", 1), call("qsecond", 2)]},
            result("qresult1", 1),
            result("qresult2", 2),
            ANSWER,
        ],
        [TOOL],
    ),
}
#: Every text has a word of its own, which begins with q.
WORD = re.compile(r"\bq[a-z]+[0-9]?\b")


@pytest.mark.skipif(not TEMPLATES, reason="TRL is not installed, or ships no templates")
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_real_template_renders_every_part_or_the_error_names_one_that_is_missing(path: Path, row: str) -> None:
    tokenizer = byte_tokenizer(path.read_text(encoding="utf-8"))
    tokenizer.bos_token = "<|im_start|>"
    messages, tools = copy.deepcopy(ROWS[row])
    template = ChatTemplate(tokenizer, {"tools": tools} if tools else {})
    try:
        checked = with_readable_arguments(template, check_messages(messages))
        text = template.render(checked)
    except TemplateError as error:
        assert "the chat template refuses these" in str(error)  # noqa: PT017  # in the template's own words
        return
    missing = sorted(set(WORD.findall(str((messages, tools)))) - set(WORD.findall(text)))
    calls = sum(len(message.get("tool_calls", [])) for message in messages)
    if not missing and text.count("weather") >= calls + len(tools):
        check_rendered(template, checked)
        assert not re.search(r'\\"qkey|\'qkey', text), "arguments are JSON, once"
    else:
        with pytest.raises(TemplateError, match="the chat template leaves out"):
            check_rendered(template, checked)
