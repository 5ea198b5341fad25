"""Sampling: parameters, sequences, and logprobs as lists and as numpy arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from ....datums.errors import did_you_mean
from ....datums.tensors import TensorData
from .base import BaseModel, StrictBase, TensorField
from .model_input import ModelInput

StopReason = Literal["length", "stop"]
SamplingClientKind = Literal["snapshot", "inflight"]
#: The logprob of cells of `TopkLogprobs` that hold nothing; their token is 0.
EMPTY_LOGPROB = -99999.0

Candidates = list[list[tuple[int, float]] | None]


class SamplingParams(BaseModel):
    """How to sample. `stop=None` stops at the end-of-sequence token, `stop=[]` only at `max_tokens`."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | Sequence[int] | None = None
    temperature: float = 1
    top_k: int = -1
    top_p: float = 1

    @model_validator(mode="before")
    @classmethod
    def _warn_of_unknown(cls, given: Any) -> Any:
        for name in sorted(set(given) - set(cls.model_fields)) if isinstance(given, Mapping) else ():
            warnings.warn(
                f"SamplingParams ignores {name!r}, as Tinker's does.{did_you_mean(name, cls.model_fields)}",
                stacklevel=3,
            )
        return given


class SampleRequest(StrictBase):
    """A request as Tinker's client sends it. `SamplingClient.sample` takes its fields as arguments."""

    num_samples: int = 1
    prompt: ModelInput
    sampling_params: SamplingParams
    base_model: str | None = None
    model_path: str | None = None
    sampling_session_id: str | None = None
    seq_id: int | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: TensorField | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool | None = None
    type: Literal["sample"] = "sample"


@dataclass(frozen=True, slots=True)
class TopkLogprobs:
    """The K likeliest tokens at each of N positions.

    token_ids  [N, K] int32
    logprobs   [N, K] float32 nats; a cell that holds nothing has token 0 and logprob `EMPTY_LOGPROB`
    """

    token_ids: np.ndarray
    logprobs: np.ndarray

    def to_lists(self) -> Candidates:
        """(token, logprob) pairs for each position; None where no cell holds anything."""
        if not self.token_ids.size:
            return []
        rows = zip(self.token_ids.tolist(), self.logprobs.tolist(), strict=True)
        return [_pairs(tokens, logprobs) for tokens, logprobs in rows]


def _pairs(tokens: list[int], logprobs: list[float]) -> list[tuple[int, float]] | None:
    pairs = list(zip(tokens, logprobs, strict=True))
    while pairs and pairs[-1] == (0, EMPTY_LOGPROB):
        pairs.pop()
    return pairs or None


@dataclass(frozen=True)
class PromptAltTokens:
    """K draws from the model's next-token distribution at each prompt position after the first.

    tokens, logprobs   [N - 1, K]; row i is about prompt token i + 1 (nats)
    """

    tokens: TensorData
    logprobs: TensorData


@dataclass(frozen=True)
class SampledSequence:
    """T sampled tokens, the stop token included, as lists and as numpy arrays.

    tokens_np         [T] int32
    logprobs_np       [T] float32 nats, or None
    topk_logprobs_np  [T, K], or None where none were asked for
    """

    stop_reason: StopReason
    sequence_id: str
    tokens_np: np.ndarray | None = field(default=None, repr=False)
    logprobs_np: np.ndarray | None = field(default=None, repr=False)
    topk_logprobs_np: TopkLogprobs | None = field(default=None, repr=False)
    _tokens_list: list[int] | None = field(default=None, repr=False)
    _logprobs_list: list[float] | None = field(default=None, repr=False)
    _topk_logprobs_list: Candidates | None = field(default=None, repr=False)

    @cached_property
    def tokens(self) -> list[int]:
        """The sampled token ids."""
        if self._tokens_list is not None:
            return self._tokens_list
        return [] if self.tokens_np is None else self.tokens_np.tolist()

    @cached_property
    def logprobs(self) -> list[float] | None:
        """The logprob of each sampled token (nats)."""
        if self._logprobs_list is not None:
            return self._logprobs_list
        return None if self.logprobs_np is None else self.logprobs_np.tolist()

    @cached_property
    def topk_logprobs(self) -> Candidates | None:
        """The likeliest (token, logprob) pairs at each sampled position."""
        if self._topk_logprobs_list is not None:
            return self._topk_logprobs_list
        return None if self.topk_logprobs_np is None else self.topk_logprobs_np.to_lists()


@dataclass(frozen=True)
class SampleResponse:
    """The sequences, and what was asked about the prompt of N tokens.

    prompt_logprobs_np      [N] float32 nats, NaN where there is none, such as for the first token
    topk_prompt_logprobs_np [N, K]
    target_prompt_logprobs  as the tensor of ids that was given, 0 where it has -1
    prompt_cache_hit_tokens how many of the prompt's tokens were not computed again
    """

    sequences: Sequence[SampledSequence]
    prompt_logprobs_np: np.ndarray | None = field(default=None, repr=False)
    topk_prompt_logprobs_np: TopkLogprobs | None = field(default=None, repr=False)
    target_prompt_logprobs: TensorData | None = None
    prompt_cache_hit_tokens: int = 0
    prompt_alt_tokens: PromptAltTokens | None = None
    _prompt_logprobs_list: list[float | None] | None = field(default=None, repr=False)
    _topk_prompt_logprobs_list: Candidates | None = field(default=None, repr=False)

    @cached_property
    def prompt_logprobs(self) -> list[float | None] | None:
        """The logprob of each prompt token (nats), None where there is none."""
        if self._prompt_logprobs_list is not None or self.prompt_logprobs_np is None:
            return self._prompt_logprobs_list
        return [None if logprob != logprob else logprob for logprob in self.prompt_logprobs_np.tolist()]

    @cached_property
    def topk_prompt_logprobs(self) -> Candidates | None:
        """The likeliest (token, logprob) pairs at each prompt position."""
        if self._topk_prompt_logprobs_list is not None:
            return self._topk_prompt_logprobs_list
        return None if self.topk_prompt_logprobs_np is None else self.topk_prompt_logprobs_np.to_lists()
