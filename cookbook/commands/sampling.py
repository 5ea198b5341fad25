"""`lossbook sample` and `lossbook chat`: text from what was trained, or from a model as it is."""

from __future__ import annotations

import json as json_format
import sys
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ...datums.errors import ConfigError, LossbookError, located
from ..settings.choices import Precision

if TYPE_CHECKING:
    from ...datums.types import SamplingParams
    from ...trainer.responses import SampledSequence
    from ..talk.prompts import Prompt
    from ..talk.weights import Form, Weights

Source = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|CHECKPOINT|MODEL")]


def sample(
    source: Source,
    prompts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT")] = (),
    file: str | None = None,
    num_samples: int = 1,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = -1,
    seed: int | None = None,
    system: str | None = None,
    raw: bool = False,
    chat_template: bool = False,
    json: bool = False,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Print answers to prompts. A run's prompts are read as in its training: as turns of the chat template, or as plain text.

    Args:
        source: a run's folder (its newest checkpoint), a checkpoint, or a model: hub id, folder, .gguf file, or 'tiny'.
        prompts: the prompts; without any, each line of standard input is one.
        file: read them from a file instead: .txt with one per line, or rows of data with `prompt` or `messages`.
        num_samples: answers per prompt.
        max_tokens: most tokens in an answer.
        temperature: 0: greedy; 1: the model's own distribution.
        top_p: sample from the likeliest tokens of this total probability only.
        top_k: sample from so many of the likeliest tokens only; -1: from all.
        seed: a prompt gets the same answers again under the same seed.
        system: a system message before each prompt.
        raw: read prompts as plain text, also where the run was trained with the chat template.
        chat_template: read prompts as turns of the chat template, also where the run was trained without it.
        json: print JSON, one answer per line: prompt, text, tokens, logprob (nats, their sum), stop_reason.
        device: cpu, cuda, ...; by default the best available.
        dtype: of products and weights; by default float32 on a CPU, bfloat16 on a GPU.
    """
    params = _params(max_tokens, seed, temperature, top_k, top_p, num_samples)
    form = _form(raw, chat_template)
    from ...datums.chat.template import decoded
    from ..talk.chat import shown
    from ..talk.prompts import given_prompts
    from ..talk.weights import load_weights

    given = given_prompts(prompts, file)
    weights = load_weights(source, form=form, device=device, dtype=dtype)
    tokens = [_tokens(prompt, number, len(given), weights, system) for number, prompt in enumerate(given, start=1)]
    print(f"prompts are {'turns of the chat template' if weights.is_chat else 'plain text'}", file=sys.stderr)
    responses = weights.sampler.sample_batch(tokens, params, num_samples=num_samples).result()
    for number, (prompt, response) in enumerate(zip(given, responses, strict=True)):
        if not json and len(given) > 1:
            print(
                f"{'' if number == 0 else chr(10)}> {prompt if isinstance(prompt, str) else prompt[-1].get('content')}"
            )
        for sequence in response.sequences:
            text = decoded(sequence.tokens, weights.tokenizer, skip_special_tokens=True)
            print(
                json_format.dumps(_row(prompt, text, sequence), ensure_ascii=False) if json else shown(text), flush=True
            )


def chat(
    source: Source,
    system: str | None = None,
    max_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = -1,
    seed: int | None = None,
    raw: bool = False,
    chat_template: bool = False,
    device: str | None = None,
    dtype: Precision | None = None,
) -> int:
    """Talk to a run or a model. Ctrl-C stops an answer; /help lists the commands. In a pipe each line is a message.

    Args:
        source: a run's folder (its newest checkpoint), a checkpoint, or a model: hub id, folder, .gguf file, or 'tiny'.
        system: the system message.
        max_tokens: most tokens in an answer.
        temperature: 0: greedy; 1: the model's own distribution.
        top_p: sample from the likeliest tokens of this total probability only.
        top_k: sample from so many of the likeliest tokens only; -1: from all.
        seed: the same messages get the same answers again under the same seed.
        raw: one plain text that the model continues, also where the run was trained with the chat template.
        chat_template: turns of the chat template, also where the run was trained without it.
        device: cpu, cuda, ...; by default the best available.
        dtype: of products and weights; by default float32 on a CPU, bfloat16 on a GPU.
    """
    params = _params(max_tokens, seed, temperature, top_k, top_p)
    form = _form(raw, chat_template)
    from ..talk.chat import converse
    from ..talk.conversation import Conversation
    from ..talk.weights import load_weights

    return converse(Conversation(load_weights(source, form=form, device=device, dtype=dtype), params, system))


def _params(
    max_tokens: int,
    seed: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    num_samples: int = 1,
) -> SamplingParams:
    """The parameters. Raises ConfigError for impossible numbers, before a model is loaded; the sampler checks the rest."""
    wrong = {
        "--num-samples must be at least 1": num_samples < 1,
        "--max-tokens must be at least 1": max_tokens < 1,
        "--temperature must be 0 (greedy) or more": not 0 <= temperature < float("inf"),
        "--top-p must be above 0 and at most 1": not 0 < top_p <= 1,
        "--top-k must be -1 (all) or at least 1": top_k != -1 and top_k < 1,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(message)
    from ...datums.types import SamplingParams
    from ..run.loggers import quiet_libraries

    quiet_libraries()
    return SamplingParams(max_tokens=max_tokens, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)


def _form(raw: bool, chat_template: bool) -> Form | None:
    if raw and chat_template:
        raise ConfigError("choose one of --raw and --chat-template")
    return "raw" if raw else "chat" if chat_template else None


def _tokens(prompt: Prompt, number: int, count: int, weights: Weights, system: str | None) -> list[int]:
    from ..talk.prompts import prompt_tokens

    try:
        return prompt_tokens(prompt, weights.tokenizer, is_chat=weights.is_chat, system=system)
    except LossbookError as error:
        raise (located(error, f"prompt {number}") if count > 1 else error) from None


def _row(prompt: Prompt, text: str, sequence: SampledSequence) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": text,
        "tokens": len(sequence.tokens),
        "logprob": sum(sequence.logprobs or []),
        "stop_reason": sequence.stop_reason,
    }
