"""SamplingParams and prompts, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ...datums.errors import ModelError, TokenRangeError, TruncationError
from ...datums.types import SamplingParams, token_list
from ..model.model import LoadedModel


@dataclass(frozen=True)
class Rules:
    """SamplingParams, checked, with `stop` split into ids and strings."""

    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    max_tokens: int | None
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]


def check_params(model: LoadedModel, params: SamplingParams) -> Rules:
    if not (isinstance(params.temperature, Real) and 0 <= params.temperature < math.inf):
        raise ModelError(f"temperature must be 0 (greedy) or positive and finite, not {params.temperature}")
    if not 0 < params.top_p <= 1:
        raise ModelError(f"top_p must be above 0 and at most 1 (off), not {params.top_p}")
    if params.top_k != -1 and params.top_k < 1:
        raise ModelError(f"top_k must be -1 (off) or at least 1, not {params.top_k}")
    if params.max_tokens is not None and params.max_tokens < 1:
        raise ModelError(f"max_tokens must be at least 1, or None for the room in the context, not {params.max_tokens}")
    ids, strings = _stops(model, params.stop)
    return Rules(
        float(params.temperature), params.top_k, float(params.top_p), params.seed, params.max_tokens, ids, strings
    )


def _stops(model: LoadedModel, stop: Any) -> tuple[frozenset[int], tuple[str, ...]]:
    if stop is None:
        return frozenset(_end_tokens(model)), ()
    items: list[Any] = [stop] if isinstance(stop, str | Integral) else list(stop)
    if all(isinstance(item, str) for item in items):
        if "" in items:
            raise ModelError("an empty string in stop would stop everything; leave it out")
        return frozenset(), tuple(items)
    if not all(isinstance(item, Integral) for item in items):
        raise ModelError(f"stop must be strings or token ids, not both: {items[:8]}")
    for token in items:
        if not 0 <= token < model.vocab_size:
            raise TokenRangeError(f"stop token {token} is outside the vocabulary [0, {model.vocab_size})")
    return frozenset(map(int, items)), ()


def _end_tokens(model: LoadedModel) -> set[int]:
    module: Any = model.module
    sources = (module.config.get_text_config(), getattr(module, "generation_config", None), model.tokenizer)
    named = [getattr(source, "eos_token_id", None) for source in sources]
    return {token for ids in named if ids is not None for token in (ids if isinstance(ids, list) else [ids])}


def check_prompt(
    model: LoadedModel, prompt: Sequence[int], index: int, count: int, params: SamplingParams
) -> list[int]:
    who = "the prompt" if count == 1 else f"prompt {index} of {count}"
    tokens = token_list(prompt)
    if not tokens:
        raise ModelError(f"{who} is empty; sampling needs a token to begin with, such as the tokenizer's bos_token_id")
    for position, token in enumerate(tokens):
        if not 0 <= token < model.vocab_size:
            raise TokenRangeError(
                f"{who} has token {token} at position {position}; {model.name} knows tokens 0 to {model.vocab_size - 1}"
            )
    if model.max_length is None and params.max_tokens is None:
        raise ModelError(f"{model.name} has no context limit, so max_tokens must be given")
    if model.max_length is not None and len(tokens) >= model.max_length:
        raise TruncationError(
            f"{who} has {len(tokens)} tokens, which leaves no room in the context of {model.max_length} of {model.name}"
        )
    return tokens
