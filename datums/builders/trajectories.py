"""Datums from sampled responses with their sampling logprobs and advantages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BiasedLogprobError, DatumDropped, EmptyLossError, LossbookError, located
from ..keywords import explained, explained_constructor
from ..types import Datum, TensorData, token_array
from .tokens import float_array, shifted
from .truncation import Truncation, note_dropped


@explained_constructor
@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """A prompt, the R tokens that followed it, and the inputs of policy-gradient losses for these R tokens.

    prompt_tokens      [P] token ids, P >= 1
    response_tokens    [R] token ids, R >= 1; tokens that a tool or an environment wrote are included
    sampling_logprobs  [R] nats, under the policy that sampled each token
    advantages         one number for the whole response, or [R]; unitless
    weights            [R], 0 for tokens that the policy did not write; None: all 1
    ref_logprobs       [R] nats under a reference model, or None
    temperature        the sampling temperature. Samplers report logprobs of temperature 1 at any temperature
    """

    prompt_tokens: Any
    response_tokens: Any
    sampling_logprobs: Any
    advantages: Any
    weights: Any = None
    ref_logprobs: Any = None
    temperature: float = 1.0


@explained
def datums_from_trajectories(
    trajectories: Iterable[Trajectory],
    *,
    max_length: int | None = None,
    truncation: Truncation = "error",
    allow_biased: bool = False,
) -> list[Datum]:
    """One datum per trajectory, with `target_tokens`, `weights`, `sampling_logprobs`, `advantages` (`ref_logprobs`).

    Inputs are [N], N = P + R - 1, and 0 on the prompt; position P - 1 predicts the first response token. max_length
    counts prompt and response tokens, before the shift.

    Raises BiasedLogprobError for a temperature other than 1: the reported logprobs are then not those of the sampled
    distribution, so every importance ratio is biased. `allow_biased=True` accepts them. Raises EmptyLossError (no
    prompt, no response), LengthMismatchError, TruncationError, NonFiniteLossInput; each names the trajectory.
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
    response_inputs = {
        "weights": np.ones(count, dtype=np.float32) if trajectory.weights is None else trajectory.weights,
        "sampling_logprobs": trajectory.sampling_logprobs,
        "advantages": _per_token(trajectory.advantages, count),
        "ref_logprobs": trajectory.ref_logprobs,
    }
    per_token = {
        key: np.concatenate([np.zeros(len(prompt), dtype=np.float32), float_array(v, key, count, "response tokens")])
        for key, v in response_inputs.items()
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
            f"sampled at temperature {temperature}, but sampling_logprobs are those of temperature 1, so importance "
            "ratios would be biased. Sample at temperature 1, recompute the logprobs, or pass allow_biased=True"
        )
