"""A byte-level tokenizer with ChatML's control tokens, and the chat templates that the tests put into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

#: The assistant's text and its end are marked.
MARKED = (
    "{%- for m in messages %}"
    "{%- if m['role'] == 'assistant' %}"
    "{{- '<|im_start|>assistant\\n' }}{%- generation %}{{- m['content'] + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
#: Nothing is marked.
UNMARKED = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
TEMPLATES = {
    "marked": MARKED,
    "unmarked": UNMARKED,
    "the end of the turn lies outside the marks": MARKED.replace(
        "m['content'] + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}",
        "m['content'] }}{%- endgeneration %}{{- '<|im_end|>\\n' }}",
    ),
    "marked, forgets earlier answers": MARKED.replace(
        "m['content'] + '<|im_end|>' }}{%- end", "('' if not loop.last else m['content']) + '<|im_end|>' }}{%- end"
    ),
    "marks enclose everything": "{%- generation %}" + UNMARKED + "{%- endgeneration %}",
    "marks enclose nothing": MARKED.replace("{{- m['content'] + '<|im_end|>' }}{%- endgen", "{%- endgen").replace(
        "{%- endgeneration %}", "{%- endgeneration %}{{- m['content'] + '<|im_end|>' }}"
    ),
    "marked, renders earlier answers otherwise": MARKED.replace(
        "m['content'] + '<|im_end|>' }}{%- end",
        "(m['content'] + ('*' if messages | length > 4 else '')) + '<|im_end|>' }}{%- end",
    ),
    "marked in a macro": (
        "{%- macro say(m) %}{%- generation %}{{- m['content'] + '<|im_end|>' }}{%- endgeneration %}{%- endmacro %}"
        + MARKED.replace(
            "{%- generation %}{{- m['content'] + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}",
            "{{- say(m) + '\\n' }}",
        )
    ),
    "marks that change the text": MARKED.replace(
        "{%- generation %}{{- m['content'] + '<|im_end|>' }}{%- endgeneration %}",
        "{%- set told = 'no' %}{%- generation %}{%- set told = m['content'] %}{%- endgeneration %}{{- told }}",
    ),
    "takes user text apart": UNMARKED.replace(
        "+ m['content'] +", "+ (m['content'][:-3] if m['role'] == 'user' else m['content']) +"
    ),
    "leaves answers out": UNMARKED.replace(
        "{%- for m in messages %}", "{%- for m in messages if m['role'] != 'assistant' %}"
    ).replace("{{- '<|im_start|>assistant\\n' }}", ""),
    "forgets earlier answers": UNMARKED.replace(
        "m['content'] +", "('' if m['role'] == 'assistant' and not loop.last else m['content']) +"
    ),
    "no generation prompt": UNMARKED.replace("{%- if add_generation_prompt %}", "{%- if false %}"),
    "no end of the turn": (
        "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "wants users and assistants in turn": "{%- if messages[0]['role'] != 'user' %}"
    "{{- raise_exception('Conversation roles must alternate') }}{%- endif %}" + UNMARKED,
    "calls tools": UNMARKED.replace(
        "+ m['content'] +",
        "+ (m['content'] or '') + ((m['tool_calls'] | tojson) if m['tool_calls'] else '') +",
    ),
    "calls tools, but forgets what they answer": UNMARKED.replace(
        "+ m['content'] +",
        "+ ('' if m['role'] == 'tool' else m['content'] or '')"
        " + ((m['tool_calls'] | tojson) if m['tool_calls'] else '') +",
    ),
    "leaves tool calls out": UNMARKED.replace("+ m['content'] +", "+ (m['content'] or '') +"),
    "parts": UNMARKED.replace("+ m['content'] +", "+ m['content'][0]['text'] +"),
}

MakeTokenizer = Callable[[str | None], Any]


def byte_tokenizer(template: str | None) -> Any:
    """Ids 0 to 255 stand for bytes (in the order of GPT-2's symbols), 256 for two newlines, then the control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab={**symbols, "ĊĊ": 256}, merges=[("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    for text in ("<|im_start|>", "<|im_end|>", "<filename>"):
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_with() -> MakeTokenizer:
    """A function from the name of a template above (None: no template) to a tokenizer that has it."""
    made: dict[str | None, Any] = {}

    def make(name: str | None) -> Any:
        if name not in made:
            made[name] = byte_tokenizer(None if name is None else TEMPLATES[name])
        return made[name]

    return make
