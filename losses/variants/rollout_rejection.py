"""Rejection by a divergence: a policy loss without the tokens or responses on which trainer and rollout are too far apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...datums.errors import LossConfigError
from .. import stats
from ..ids import LossId, PresetId
from ..loss.loss import Loss
from ..math.logarithms import log1mexp
from ..math.ratios import MAX_LOG_RATIO, kl_estimate
from ..spec.settings import NonNegative
from ..stats import Stat
from .rollout import INPUTS, check_counted_once, distance_metrics, log_ratio
from .wrapper import Weighting, Weights, mean_per_datum, weighed

Divergence = Literal["k1", "k2", "k3", "binary_kl", "tv"]
Over = Literal["token", "sum", "mean", "max"]
DIVERGENCES: tuple[str, ...] = get_args(Divergence)
OVER: tuple[str, ...] = get_args(Over)


def rollout_rejection(
    loss: LossId | PresetId | str | Loss | Callable[..., Any],
    divergence: Divergence = "k3",
    *,
    over: Over = "token",
    low: float | None = None,
    high: float | None = None,
    **config: Any,
) -> Loss:
    """`loss` with 0 where a divergence from rollout to trainer leaves its bounds. Also as an id, whose settings name it.

        rollout_rejection("ppo", "k3", over="mean", high=0.01)
        get_loss("ppo+reject_mean_k3", mean_k3_high=0.01)
        get_loss("ppo+token_truncate+reject_token_k1+reject_max_tv", token_k1_low=-1, token_k1_high=1, max_tv_high=0.3)

    divergence, with x = sampling_logprobs - rollout_logprobs held within ±20 nats:
        k1           -x                 nats, of either sign: bounded by `low` and `high`
        k2           x²/2               nats
        k3           exp(x) - 1 - x     nats
        binary_kl    KL of "this token or any other" from rollout to trainer, in nats
        tv           |p - q|            the difference of the token's two probabilities
    over: each `token` by itself; or whole responses, by the `sum`, the `mean` or the `max` of their tokens'. (`max` of k1:
    a response is kept if every token's lies within the bounds.)
    low, high: what is kept; exactly at a bound, too. Only k1 has a lower one. None has a default.

    Several rejections go together, and with one weight of `rollout_correction`. What is rejected still counts in the
    denominator, as in AReaL; verl takes it out, and so does `without_rejected`. verl's `rollout_rs` has token_*, seq_sum_*, seq_mean_* and seq_max_* of k1 to k3, and
    gives the bounds of k1 as ratios exp(k1); SkyRL's outlier mask is the `max` of k1; binary_kl and tv are OpenRLHF's
    `is_correction_gating`, which holds probabilities within [1e-6, 1 - 1e-6].

    Metrics: `rejected_mean_k3`, the share of tokens (or responses) rejected; `mean_k3_average` and `mean_k3_largest`, of
    what is bounded (of tokens, for `max`); and `rollout_kl_k1`, `rollout_kl_k3`.

    Raises LossContractError for a loss that must not be corrected, LossConfigError for settings.
    """
    name = f"{over}_{divergence}"
    if low is not None and divergence != "k1":
        raise LossConfigError(f"rollout_rejection: only k1 has a lower bound, not {divergence}: give high alone")
    bounds = {f"{name}_{end}": bound for end, bound in (("low", low), ("high", high)) if bound is not None}
    return rejecting(loss, divergence, over, **bounds, **config)


def rejecting(
    loss: LossId | PresetId | str | Loss | Callable[..., Any], divergence: Divergence, over: Over, **config: Any
) -> Loss:
    """The same, its bounds under the names that they have as settings."""
    if divergence not in DIVERGENCES or over not in OVER:
        raise LossConfigError(
            f"rollout_rejection: divergence={divergence!r}, over={over!r}: divergences are {', '.join(DIVERGENCES)}; over is "
            f"{', '.join(OVER)}"
        )
    name = f"{over}_{divergence}"
    bounds: dict[str, tuple[Any, Any]] = {f"{name}_high": (NonNegative, ...)}
    if divergence == "k1":
        bounds = {f"{name}_low": (float, ...), f"{name}_high": (float, ...)}
    gate = Weighting(
        maker="rollout_rejection",
        suffix=f"reject_{name}",
        source=f", {divergence!r}, over={over!r}",
        weights=_gate(divergence, over, name),
        settings=bounds,
        inputs=INPUTS,
        couples="token" if over == "token" else "datum",
        check=lambda base: check_counted_once(base, "rollout_rejection", f"reject_{name}"),
        conflict=lambda settings: _empty(name, settings),
        needs_tokens="reject over 'sum', 'mean' or 'max'" if over == "token" else "",
    )
    return weighed(loss, config, gate)


def _empty(name: str, settings: Mapping[str, Any]) -> str:
    low, high = settings.get(f"{name}_low", -math.inf), settings[f"{name}_high"]
    return "" if low <= high else f"{name}_low={low:g} is above {name}_high={high:g}, so all would be rejected"


def _gate(divergence: Divergence, over: Over, name: str) -> Weights:
    def weights(given: Mapping[str, Any], settings: Mapping[str, Any], per: str) -> tuple[Tensor, dict[str, Stat]]:
        seqs: Any = given.get("seqs")
        value = _divergence(divergence, given)
        if over in ("sum", "mean"):
            value = seqs.plain_sum(value) if over == "sum" else mean_per_datum(value, seqs)
        is_outside = value > settings[f"{name}_high"]
        if divergence == "k1":
            is_outside = is_outside | (value < settings[f"{name}_low"])
        if over == "max":
            is_outside = seqs.plain_sum(is_outside) > 0
        metrics = {
            f"rejected_{name}": stats.mean(is_outside),
            f"{name}_average": stats.mean(value),
            f"{name}_largest": stats.max(value),
            **distance_metrics(given),
        }
        kept = (~is_outside).to(given["rollout_logprobs"].dtype)
        return (seqs.broadcast(kept) if per == "token" and over != "token" else kept), metrics

    return weights


def _divergence(divergence: Divergence, given: Mapping[str, Any]) -> Tensor:
    """[T] from rollout to trainer, without a gradient."""
    rollout, trainer = given["rollout_logprobs"].detach(), given["sampling_logprobs"].detach()
    if divergence == "tv":
        return (rollout.exp() - trainer.exp()).abs()
    difference = -log_ratio(given).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if divergence == "binary_kl":
        others = -torch.expm1(rollout) * (log1mexp(rollout) - log1mexp(trainer))
        return rollout.exp() * difference + others
    return kl_estimate(difference, torch.zeros_like(difference), divergence)
