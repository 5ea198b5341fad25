"""Prompts from the command line, a file or a pipe, and their tokens."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...datums.chat.limits import within_limits
from ...datums.chat.messages import check_messages
from ...datums.chat.template import ChatTemplate
from ...datums.errors import ConfigError, DataFileError, MessageError, located
from ...datums.files.sources import read_rows
from ...datums.files.text_rows import encode_prompt

#: A prompt: a text, or a conversation that the assistant is to go on with.
Prompt = str | list[dict[str, Any]]


def given_prompts(prompts: Sequence[str], file: str | None) -> list[Prompt]:
    """The prompts that were given: as words, as a file's rows, or as lines of standard input.

    file: .txt with a prompt per line ("-": standard input), or rows of data with `prompt` or `messages`. Raises ConfigError
    where there are none, or two kinds, and DataFileError for a file that cannot be read.
    """
    if prompts and file is not None:
        raise ConfigError("give prompts as arguments or in --file, not both")
    if prompts:
        return list(prompts)
    if file is None and sys.stdin.isatty():
        raise ConfigError(
            'give a prompt: lossbook sample RUN "What is 2 + 3?", or --file FILE, or text on standard input'
        )
    given: list[Prompt] = [*_lines(file)] if file in (None, "-") or file.endswith(".txt") else _rows(file)
    if not given:
        raise ConfigError(f"{'standard input' if file in (None, '-') else file} holds no prompt")
    return given


def prompt_tokens(prompt: Prompt, tokenizer: Any, *, is_chat: bool, system: str | None = None) -> list[int]:
    """The tokens of a prompt: of the conversation up to where the assistant answers, or, without is_chat, of the plain text.

    Raises ConfigError where a conversation or a system message has no chat template to go into, MessageError, TemplateError.
    """
    if not is_chat:
        if not isinstance(prompt, str) or system is not None:
            raise ConfigError("messages and --system need the chat template: these prompts are plain text (see --raw)")
        return encode_prompt(tokenizer, prompt)
    messages = check_messages([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    if system is not None and messages[0]["role"] == "system":
        raise ConfigError("the conversation has a system message already: leave --system out")
    whole = messages if system is None else [{"role": "system", "content": system}, *messages]
    template, guarded = ChatTemplate(tokenizer).guarded(whole)
    with within_limits(len(whole)):
        return template.tokens(guarded, add_generation_prompt=True)


def _lines(file: str | None) -> list[str]:
    try:
        text = sys.stdin.read() if file in (None, "-") else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(f"{file or 'standard input'} cannot be read: {error}") from None
    return [line for line in text.splitlines() if line.strip()]


def _rows(file: str) -> list[Prompt]:
    prompts: list[Prompt] = []
    for row in read_rows(file):
        try:
            prompts.append(_prompt_of(row))
        except (ConfigError, MessageError) as error:
            raise located(error, str(row.place)) from None
    return prompts


def _prompt_of(row: Mapping[str, Any]) -> Prompt:
    """A row's prompt; of messages all but the assistant's last, which it is to write itself."""
    prompt = row.get("prompt", row.get("messages"))
    if isinstance(prompt, list) and len(prompt) > 1 and check_messages(prompt)[-1]["role"] == "assistant":
        prompt = prompt[:-1]
    if not prompt or not isinstance(prompt, str | list):
        raise ConfigError(f"no text or messages under 'prompt' or 'messages'; it has {', '.join(row) or 'nothing'}")
    return prompt
