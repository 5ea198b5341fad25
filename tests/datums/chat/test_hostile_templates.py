"""Templates and tokenizers of a stranger's model folder: what cannot be rendered or encoded is one error of one line."""

from __future__ import annotations

from typing import Any

import pytest

from lossbook.datums.chat.masks import check_template, datum_from_messages
from lossbook.datums.errors import TemplateError
from lossbook.trainer.model.tiny import build_tiny_tokenizer

MESSAGES = [{"role": "user", "content": "a" * 40 + "!"}, {"role": "assistant", "content": "b"}]

TEMPLATES = {
    "a range of 10**9": "{% for i in range(10**9) %}x{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a division by zero": "{{ 1 // 0 }}",
    "an integer too long to write": "{{ 10 ** 5000 }}",
    "text of 10**13 characters": "{{ 'x' * (10 ** 13) }}",
    "a class of Python": "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
    "an error of a megabyte": "{{ raise_exception('x' * 1000000) }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_template_that_cannot_be_rendered_is_an_error_of_one_line(template: str) -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = template
    for attempt in (lambda: datum_from_messages(MESSAGES, tokenizer), lambda: check_template(tokenizer)):
        with pytest.raises(TemplateError) as caught:
            attempt()
        assert len(str(caught.value)) < 1000
        assert "\n" not in str(caught.value).strip()


def test_a_regular_expression_that_never_ends_is_an_error_of_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer: Any = build_tiny_tokenizer()
    slow = pre_tokenizers.Split(Regex(r"(?=((a|a)+)+b)a"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = slow
    with pytest.raises(TemplateError, match="the tokenizer gave up") as caught:
        datum_from_messages(MESSAGES, tokenizer)
    assert "\n" not in str(caught.value)
    capfd.readouterr()  # Rust writes of its panic to stderr
