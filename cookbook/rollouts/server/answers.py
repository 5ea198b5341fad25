"""A server's completions, checked: what is wrong with one is said before it is trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ....datums.errors import InvalidLogprobError, LengthMismatchError, SamplerError, TokenRangeError
from ....trainer.responses import SampledSequence

#: Rounding may put the logprob of a certain token this far above 0, nats; as for datums.
ABOVE_ZERO = 1e-4
_TOKEN_ID = re.compile(r"token_id:(\d+)")


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Logprobs(_Part):
    token_logprobs: list[float | None]
    tokens: list[str] = []


class _Choice(_Part):
    index: int
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    stop_reason: int | str | None = None
    matched_stop: int | str | None = None


class _Completion(_Part):
    choices: list[_Choice]


@dataclass(frozen=True)
class Asked:
    """What was asked for: samples of a prompt, at most so many tokens, ending at these ids or else at strings.

    who: names the server and the prompt in errors
    """

    who: str
    prompt: Sequence[int]
    count: int
    max_tokens: int
    vocab_size: int
    stop_ids: frozenset[int]
    stops_at_strings: bool


def sequences(value: Any, asked: Asked) -> list[SampledSequence]:
    """The samples of one completion, in the order of their indices.

    Raises SamplerError for what is no such completion or lacks token ids or logprobs, LengthMismatchError,
    InvalidLogprobError and TokenRangeError for ids and logprobs that cannot be those of a sample.
    """
    try:
        choices = _Completion.model_validate(value).choices
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise SamplerError(f"{asked.who} gave no completion: {place}: {first['msg']}") from None
    choices.sort(key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(asked.count)):
        numbers = [choice.index for choice in choices]
        raise SamplerError(f"{asked.who} gave the choices {numbers[:8]}, but {asked.count} samples were asked for")
    return [_sequence(choice, asked) for choice in choices]


def _sequence(choice: _Choice, asked: Asked) -> SampledSequence:
    who = asked.who if asked.count == 1 else f"{asked.who}, sample {choice.index}"
    if choice.prompt_token_ids is not None and choice.prompt_token_ids != list(asked.prompt):
        raise SamplerError(
            f"{who}: the server read a prompt of {len(choice.prompt_token_ids)} tokens that is not the one of "
            f"{len(asked.prompt)} that was sent; does it truncate prompts, or add tokens?"
        )
    if choice.finish_reason not in ("stop", "length"):
        raise SamplerError(f"{who} ended for the reason {choice.finish_reason!r}, not 'stop' or 'length'")
    tokens, logprobs = _ids(choice, who), _logprobs(choice, who)
    if len(tokens) != len(logprobs):
        raise LengthMismatchError(f"{who} has {len(tokens)} token ids but {len(logprobs)} logprobs")
    if not 0 < len(tokens) <= asked.max_tokens:
        raise LengthMismatchError(f"{who} has {len(tokens)} tokens; 1 to {asked.max_tokens} were asked for")
    for position, token in enumerate(tokens):
        if not 0 <= token < asked.vocab_size:
            raise TokenRangeError(
                f"{who} has token {token} at position {position}, but the trained model knows 0 to {asked.vocab_size - 1}; "
                "does the server run another model?"
            )
    if choice.finish_reason == "stop" and not asked.stops_at_strings:
        _check_stop(tokens[-1], choice, asked, who)
    return SampledSequence(tokens, logprobs, "stop" if choice.finish_reason == "stop" else "length")


def _ids(choice: _Choice, who: str) -> list[int]:
    """The sampled ids: of `token_ids`, or of tokens that are written token_id:N, as older versions of vLLM do."""
    if choice.token_ids is not None:
        return choice.token_ids
    written = [_TOKEN_ID.fullmatch(token) for token in choice.logprobs.tokens] if choice.logprobs else []
    if not written or not all(written):
        raise SamplerError(
            f"{who} comes without token ids, and text tokenized again is not what was sampled. vLLM gives them from 0.10.2 on, "
            "SGLang's /v1/completions since its pull request 30917 (July 2026): return_token_ids"
        )
    return [int(match[1]) for match in written if match is not None]


def _logprobs(choice: _Choice, who: str) -> list[float]:
    if choice.logprobs is None:
        raise SamplerError(
            f"{who} comes without logprobs, which a policy loss divides by; are they switched off there?"
        )
    for position, logprob in enumerate(choice.logprobs.token_logprobs):
        if logprob is None:
            raise InvalidLogprobError(f"{who} has no logprob at position {position}")
        if not logprob <= ABOVE_ZERO:
            raise InvalidLogprobError(f"{who} has the logprob {logprob} at position {position}; none is above 0")
    return [min(logprob, 0.0) for logprob in choice.logprobs.token_logprobs if logprob is not None]


def _check_stop(last: int, choice: _Choice, asked: Asked, who: str) -> None:
    """Raise SamplerError where the token that ended the sample is not its last: it is learned like the others."""
    reason = choice.stop_reason if choice.stop_reason is not None else choice.matched_stop
    if last not in asked.stop_ids and last != reason:
        raise SamplerError(
            f"{who} stopped, but its last token is {last}, not one of the stop tokens {sorted(asked.stop_ids)[:8]}: the server "
            "leaves the stop token out of its answer, or ends sequences at another one"
        )
