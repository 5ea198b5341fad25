"""Templates and tokenizers of a stranger's model folder: what cannot be rendered or encoded is one error of one line."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lossbook.datums.chat import limits
from lossbook.datums.chat.masks import check_template, datum_from_messages
from lossbook.datums.errors import DataFileError, TemplateError
from lossbook.datums.files.text_rows import encode_completion
from lossbook.trainer.model.tiny import build_tiny_tokenizer

MESSAGES = [{"role": "user", "content": "a" * 40 + "!"}, {"role": "assistant", "content": "b"}]

TEMPLATES = {
    "a range of 10**9": "{% for i in range(10**9) %}x{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a division by zero": "{{ 1 // 0 }}",
    "an integer too long to write": "{{ 10 ** 5000 }}",
    "text of 10**13 characters": "{{ 'x' * (10 ** 13) }}",
    "a power too large": "{% set a = 9**9 %}{{ a**a**a }}",
    "a list of 10**11 elements": "{% set a = [0] * 10**11 %}",
    "a text doubled 60 times": "{% set n = namespace(a='xxxx') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "a text doubled by +": "{% set n = namespace(a='xxxx') %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "a block doubled": "{% set n = namespace(a='xx') %}{% for i in range(60) %}"
    "{% set b %}{{ n.a }}{{ n.a }}{% endset %}{% set n.a = b %}{% endfor %}",
    "a filter's width": "{{ 'x'|center(10**12) }}",
    "a block's filter": "{% filter center(10**12) %}x{% endfilter %}",
    "a method's width": "{{ 'x'.ljust(10**12) }}",
    "a replacement": "{% set a = 'x' * 10**6 %}{{ a.replace('x', a) }}",
    "a format": "{{ '%1000000000000d' % 1 }}",
    "a format's argument": "{{ '%*d' % (10**12, 1) }}",
    "a format method": "{{ '{:1000000000000}'.format(1) }}",
    "a format method's argument": "{{ '{:{}}'.format(1, 10**12) }}",
    "a joined list": "{% set a = 'x' * 10**6 %}{{ ([a] * 10**6)|map('string')|join }}",
    "an indent": "{{ ('\n' * 10**6)|indent(10**6) }}",
    "tabs": "{{ ('\t' * 10**6).expandtabs(10**6) }}",
    "a batch": "{{ [1]|batch(10**12, 'x')|list }}",
    "filler": "{{ lipsum(n=10**9) }}",
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


ENDLESS = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "a loop within itself": "{% for i in range(99999) recursive %}{% if loop.depth < 2 %}{{ loop(range(99999)) }}{% endif %}"
    "{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(100) }}",
    "sums in a loop": "{% for i in range(99999) %}{{ range(99999)|sum }}{% endfor %}",
    "searches in a loop": "{% set a = 'x' * 10**6 %}{% for i in range(99999) %}{% if 'y' in a %}{% endif %}{% endfor %}",
    "texts that are kept": "{% set a = 'x' * 10**6 %}{% set n = namespace(l=[]) %}"
    "{% for i in range(99999) %}{% set n.l = n.l + [a[1:]] %}{% endfor %}",
    "lists in lists": "{% set n = namespace(a=['x']) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
    "{{ n.a|tojson }}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_template_that_does_not_end_is_stopped_after_a_number_of_steps(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STEPS", 100_000)
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(TemplateError, match="takes more than 100000 steps"):
        datum_from_messages(MESSAGES, tokenizer)


def test_a_template_within_the_limits_renders_as_in_the_sandbox_without_them() -> None:
    source = (
        "{% for m in messages %}{{ loop.index ~ '/' ~ loop.length }}{{ m.role|upper|center(11) }}{{ m.content[:3] * 2 }}"
        "{% if 'a' in m.content and not loop.last %}{{ '%05d|{}'|format(7) + '{:>4}'.format(2**5) }}{% endif %}"
        "{% for k, v in m|items recursive %}{{ k }}{% else %}none{% endfor %}{% endfor %}{{ [messages[1:], none]|tojson }}"
    )
    environment: Any = ImmutableSandboxedEnvironment()
    limited: Any = limits.LimitedEnvironment()
    assert limited.from_string(source).render(messages=MESSAGES) == environment.from_string(source).render(
        messages=MESSAGES
    )


def test_a_regular_expression_that_never_ends_is_an_error_of_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer: Any = build_tiny_tokenizer()
    slow = pre_tokenizers.Split(Regex(r"(?=((a|a)+)+b)a"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = slow
    with pytest.raises(TemplateError, match="the tokenizer gave up") as caught:
        datum_from_messages(MESSAGES, tokenizer)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataFileError, match=r"on the text 'aaaa.* gave up"):
        encode_completion(tokenizer, "a" * 40 + "!", "b")
    capfd.readouterr()  # Rust writes of its panic to stderr
