"""SamplingParams and prompts, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np

from ...datums.errors import ModelError, TokenRangeError, TruncationError
from ...datums.types import SamplingParams, token_list


class Sampled(Protocol):
    """What the checks ask of a model that is sampled from, here or on a server."""

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def end_tokens(self) -> frozenset[int]: ...


@dataclass(frozen=True)
class SampledLogprobs:
    """What is said about sampled tokens.

    scaled  logprobs are those of softmax(logits / temperature), top_k and top_p left out; at temperature 0, and else, of the
            model itself, temperature 1
    topk    so many of the likeliest tokens are named at each position too, under the same distribution
    """

    scaled: bool = False
    topk: int = 0


#: The logprobs of the model itself, of the sampled tokens alone.
OWN = SampledLogprobs()


@dataclass(frozen=True)
class Rules:
    """Checked SamplingParams, with `stop` split into ids and strings, and which logprobs are reported."""

    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    max_tokens: int | None
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    said: SampledLogprobs = OWN

    @property
    def logprob_temperature(self) -> float:
        """Of the distribution whose logprobs are returned."""
        return max(self.temperature, 1e-30) if self.said.scaled and self.temperature > 0 else 1.0


def check_params(model: Sampled, params: SamplingParams, said: SampledLogprobs = OWN) -> Rules:
    """Every field checked. Raises ModelError, or TokenRangeError for stop ids, with the field's name."""
    limit, top_k = params.max_tokens, params.top_k
    temperature, top_p = _number(params.temperature), _number(params.top_p)
    if not 0 <= temperature < math.inf:
        raise ModelError(f"temperature must be 0 (greedy) or positive and finite, not {params.temperature!r}")
    if not 0 < top_p <= 1:
        raise ModelError(f"top_p must be above 0 and at most 1 (off), not {params.top_p!r}")
    if not is_integer(top_k) or (top_k != -1 and top_k < 1):
        raise ModelError(f"top_k must be -1 (off) or at least 1, not {top_k!r}")
    if limit is not None and (not is_integer(limit) or limit < 1):
        raise ModelError(f"max_tokens must be at least 1, or None for the rest of the context, not {limit!r}")
    ids, strings = _stops(model, params.stop)
    limit = None if limit is None else int(limit)
    own = SampledLogprobs(bool(said.scaled), check_width("topk_sample_logprobs", said.topk, model))
    return Rules(temperature, int(top_k), top_p, check_seed("seed", params.seed), limit, ids, strings, own)


def check_width(name: str, width: Any, model: Sampled) -> int:
    """How many of the likeliest tokens are named. Raises ModelError for more than there are."""
    if not is_integer(width) or not 0 <= width <= model.vocab_size:
        raise ModelError(
            f"{name} must be 0 (none) to {model.vocab_size}, the size of {model.name}'s vocabulary, not {width!r}"
        )
    return int(width)


def check_seed(name: str, seed: Any) -> int | None:
    """The seed as a Python integer, None for none. Raises ModelError for what torch's generators do not take."""
    if seed is None:
        return None
    if not is_integer(seed) or not -(2**63) <= seed < 2**64:
        raise ModelError(f"{name} must be an integer from -2**63 to 2**64 - 1, or None for a new one, not {seed!r}")
    return int(seed)


def check_seeds(seeds: Any, count: int) -> list[int | None]:
    """One seed per prompt. Raises ModelError."""
    if isinstance(seeds, str | bytes | Mapping) or not isinstance(seeds, Sequence | np.ndarray):
        raise ModelError(f"seeds must be a list of integers, one per prompt, not {seeds!r}")
    if len(seeds) != count:
        raise ModelError(f"there are {count} prompts but {len(seeds)} seeds; give one per prompt")
    return [check_seed(f"seeds[{i}]", seed) for i, seed in enumerate(seeds)]


def is_integer(value: Any) -> bool:
    """Python's and NumPy's integers; not booleans."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: Any) -> float:
    """NaN for what is no number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _stops(model: Sampled, stop: Any) -> tuple[frozenset[int], tuple[str, ...]]:
    if stop is None:
        return model.end_tokens, ()
    if hasattr(stop, "tolist") and not isinstance(stop, memoryview):  # arrays and tensors
        stop = stop.tolist()
    if isinstance(stop, str) or is_integer(stop):
        stop = [stop]
    elif isinstance(stop, bytes | bytearray | memoryview | Mapping) or not isinstance(stop, Iterable):
        raise ModelError(f"stop must be a string, a list of strings or a list of token ids, not {stop!r}")
    items: list[Any] = list(stop)
    for item in items:
        if not isinstance(item, str) and not is_integer(item):
            raise ModelError(f"stop must hold strings or token ids, not {item!r}")
    if all(isinstance(item, str) for item in items):
        if "" in items:
            raise ModelError("an empty string in stop would stop everything; leave it out")
        return frozenset(), tuple(items)
    if any(isinstance(item, str) for item in items):
        raise ModelError(f"stop must be strings or token ids, not both: {items[:8]}")
    for token in items:
        if not 0 <= token < model.vocab_size:
            raise TokenRangeError(f"stop token {token} is outside the vocabulary [0, {model.vocab_size})")
    return frozenset(map(int, items)), ()


def check_prompt(model: Sampled, prompt: Sequence[int], index: int, count: int, params: SamplingParams) -> list[int]:
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
