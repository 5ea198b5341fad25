"""A tokenizer or template of a stranger's model that fails is one line wherever it is called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, decoders, pre_tokenizers

from lossbook.cookbook.distillation import teachers
from lossbook.cookbook.embeddings.data import encode, prefix_tokens, texts_from_row
from lossbook.cookbook.export import check
from lossbook.cookbook.steps.samples import prompt_tokens
from lossbook.cookbook.tasks.reasoning_gym_tasks import Question, question_prompt
from lossbook.datums.chat import limits
from lossbook.datums.chat.template import decoded
from lossbook.datums.errors import ConfigError, DataFileError, ExportError, LossbookError, ModelError, TemplateError
from lossbook.datums.files.text_rows import encode_completion
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.tiny import build_tiny_model, build_tiny_tokenizer
from lossbook.trainer.sampling.stops import StopStrings

SLOW = "a" * 40 + "!"
NEVER_ENDS = Regex(r"(?=((a|a)+)+b)a")
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(autouse=True)
def _without_stderr(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capfd.readouterr()  # Rust writes of its panic to stderr


def giving_up() -> Any:
    tokenizer: Any = build_tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(NEVER_ENDS, "isolated")
    return tokenizer


def question(tokenizer: Any) -> None:
    question_prompt(Question(SLOW, "b", ()), tokenizer)


def sample(tokenizer: Any) -> None:
    prompt_tokens(SLOW, tokenizer)


def sample_without_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    prompt_tokens(SLOW, tokenizer)


def second_document(tokenizer: Any) -> None:
    encode([texts_from_row({"query": "q", "positive": "p", "negatives": [SLOW]})], tokenizer, 64, {})


def prefix(tokenizer: Any) -> None:
    prefix_tokens(tokenizer, SLOW)


def teacher(tokenizer: Any) -> None:
    teachers.check_same_tokenizer(build_tiny_tokenizer(), tokenizer, "big")


def export(tokenizer: Any) -> None:
    check.probe_tokens(tokenizer, None, None)


def completion(tokenizer: Any) -> None:
    encode_completion(tokenizer, SLOW, "b")


CALLS: list[tuple[Any, type[LossbookError], str]] = [
    (question, TemplateError, "on the text 'aaaa"),
    (sample, TemplateError, "on the text 'aaaa"),
    (sample_without_template, TemplateError, "on the text 'aaaa"),
    (second_document, DataFileError, "on the document 'aaaa"),
    (prefix, ConfigError, "on the prefix 'aaaa"),
    (teacher, ModelError, "of the teacher 'big'"),
    (export, ExportError, "on the texts of the check"),
    (completion, DataFileError, "on the text 'aaaa"),
]


@pytest.mark.parametrize(("call", "kind", "where"), CALLS, ids=lambda value: getattr(value, "__name__", None))
def test_a_tokenizer_that_gives_up_on_a_text_is_one_line_that_names_the_text_and_its_file(
    call: Any, kind: type[LossbookError], where: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(teachers, "PROBE", SLOW)
    monkeypatch.setattr(check, "TEXTS", (SLOW,))
    with pytest.raises(kind, match=rf"the tokenizer,? {where}.* gave up: .*tokenizer\.json") as error:
        call(giving_up())
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_gives_up_on_tokens_is_one_line_too():
    tokenizer: Any = build_tiny_tokenizer()
    tokens = tokenizer.encode(SLOW, add_special_tokens=False)
    backend = tokenizer.backend_tokenizer
    backend.decoder = decoders.Sequence([backend.decoder, decoders.Fuse(), decoders.Replace(NEVER_ENDS, "")])
    with pytest.raises(TemplateError, match=r"on 41 tokens, gave up: .*tokenizer\.json"):
        decoded(tokens, tokenizer)
    with pytest.raises(TemplateError, match=r"gave up: .*tokenizer\.json"):
        StopStrings(tokenizer, [SLOW]).completed(tokens[0], tokens)


def test_a_tokenizer_that_panics_on_an_empty_text_is_one_line():
    class PanicException(BaseException):  # its name in pyo3
        pass

    class Broken:
        bos_token_id = eos_token_id = 1

        def decode(self, tokens: Any, **options: Any) -> str:
            return "a"

        def __call__(self, text: str, **options: Any) -> Any:
            if text:
                return {"input_ids": [5]}
            raise PanicException("index out of bounds\nnote")

    with pytest.raises(DataFileError, match=r"on an empty text, gave up: index out of bounds note\. .*tokenizer\.json"):
        encode_completion(Broken(), "a", "b")


@pytest.mark.parametrize("call", [question, sample])
@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ENDLESS, "takes more than 100000 steps"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ raise_exception('no\nlines') }}", "no lines"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template refuses"),
    ],
    ids=["endless", "division", "its own error", "syntax", "recursion"],
)
def test_a_prompt_whose_template_fails_is_refused_in_one_line(
    call: Any, template: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(limits, "STEPS", 100_000)
    tokenizer: Any = build_tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(TemplateError, match=message) as error:
        call(tokenizer)
    assert "\n" not in str(error.value)


def test_templates_are_limited_from_the_loading_of_a_model_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers.utils import chat_template_utils

    monkeypatch.setattr(limits, "STEPS", 100_000)
    utils: Any = chat_template_utils
    monkeypatch.setattr(utils, "ImmutableSandboxedEnvironment", limits.ImmutableSandboxedEnvironment)
    utils._compile_jinja_template.cache_clear()
    tokenizer: Any = build_tiny_tokenizer()
    tokenizer.chat_template = ENDLESS
    tokenizer.save_pretrained(tmp_path)
    model: Any = build_tiny_model()
    model.save_pretrained(tmp_path)
    loaded: Any = load_model(str(tmp_path), device="cpu").tokenizer
    with pytest.raises(limits.SecurityError, match="takes more than 100000 steps"):
        loaded.apply_chat_template([{"role": "user", "content": "hi"}])
