"""Sampled answers with the logprobs they were sampled with and the advantages they earned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BiasedLogprobError, DatumDropped, EmptyLossError, LossbookError, located
from ..types import Datum, TensorData, token_array
from .tokens import float_array, shifted
from .truncation import Truncation, note_dropped


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """One prompt, R tokens that followed it, and what policy-gradient losses read about them.

    prompt_tokens      [P] token ids, P >= 1
    response_tokens    [R] token ids, R >= 1; also those that a tool or an environment wrote
    sampling_logprobs  [R] nats, under the policy that sampled each token
    advantages         one number for the whole response, or [R]; unitless
    weights            [R] or None for ones; 0 for tokens the policy did not write
    ref_logprobs       [R] nats under a reference model, or None
    temperature        at which the tokens were sampled. Samplers report raw logprobs, those of temperature 1
    """

    prompt_tokens: Any
    response_tokens: Any
    sampling_logprobs: Any
    advantages: Any
    weights: Any = None
    ref_logprobs: Any = None
    temperature: float = 1.0


def datums_from_trajectories(
    trajectories: Iterable[Trajectory],
    *,
    max_length: int | None = None,
    truncation: Truncation = "error",
    allow_biased: bool = False,
) -> list[Datum]:
    """One datum a trajectory, with `target_tokens`, `weights`, `sampling_logprobs`, `advantages` (`ref_logprobs`).

    All inputs are [N], N = P + R - 1, and 0 on the prompt; the N - R + 1st position predicts the first response
    token. max_length counts prompt and response tokens, before the shift.

    Raises BiasedLogprobError for a temperature other than 1: the reported logprobs are then not those of the
    distribution that was sampled from, and every ratio of importance sampling is off. `allow_biased=True` takes them
    all the same. Raises EmptyLossError (no prompt, no response), LengthMismatchError, TruncationError,
    NonFiniteLossInput; each names the trajectory.
    """
    datums: list[Datum] = []
    dropped: list[DatumDropped] = []
    for index, trajectory in enumerate(trajectories):
        try:
            _check_temperature(trajectory.temperature, allow_biased)
            datums.append(_datum(trajectory, max_length, truncation))
        except DatumDropped as error:
            dropped.append(error)
        except LossbookError as error:
            raise located(error, f"trajectory {index}") from None
    if not datums and not dropped:
        raise EmptyLossError("there are no trajectories: the list is empty")
    note_dropped(dropped, everything=not datums)
    return datums


def _datum(trajectory: Trajectory, max_length: int | None, truncation: Truncation) -> Datum:
    prompt, response = token_array(trajectory.prompt_tokens), token_array(trajectory.response_tokens)
    if not len(prompt):
        raise EmptyLossError("prompt_tokens is empty, so nothing predicts the first response token; begin with BOS")
    if not len(response):
        raise EmptyLossError("response_tokens is empty: nothing was sampled")
    count = len(response)
    given = {
        "weights": np.ones(count, dtype=np.float32) if trajectory.weights is None else trajectory.weights,
        "sampling_logprobs": trajectory.sampling_logprobs,
        "advantages": _per_token(trajectory.advantages, count),
        "ref_logprobs": trajectory.ref_logprobs,
    }
    per_token = {
        key: np.concatenate([np.zeros(len(prompt), dtype=np.float32), float_array(v, key, count, "response tokens")])
        for key, v in given.items()
        if v is not None or key == "sampling_logprobs"
    }
    return shifted(np.concatenate([prompt, response]), per_token, max_length=max_length, truncation=truncation)


def _per_token(advantages: Any, count: int) -> Any:
    if TensorData(advantages, dtype="float32").shape:
        return advantages
    return np.full(count, float(advantages), dtype=np.float32)


def _check_temperature(temperature: float, allow_biased: bool) -> None:
    if not math.isfinite(temperature) or temperature < 0:
        raise BiasedLogprobError(f"temperature must be a finite number >= 0, not {temperature}")
    if temperature != 1 and not allow_biased:
        raise BiasedLogprobError(
            f"sampled at temperature {temperature}, but sampling_logprobs are raw, those of temperature 1: ratios "
            "against them would be biased. Sample at temperature 1, or recompute the logprobs, or pass "
            "allow_biased=True"
        )
