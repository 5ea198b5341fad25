"""Rollout correction: a policy loss times weights that make up for an inference engine whose logprobs are not the trainer's.

A loss's ratio is exp(logprobs - sampling_logprobs). Where the trainer recomputed sampling_logprobs before the update, and an
engine with other numerics or older weights drew the tokens, the ratio lacks the factor

    c = exp(x), where x = sampling_logprobs - rollout_logprobs

with `rollout_logprobs` as the engine reported them. `rollout_correction` multiplies each of a loss's values by a weight made
of c, which has no gradient. Where sampling_logprobs are the engine's own, x is 0 and nothing is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from ...datums.errors import LossConfigError, LossContractError
from .. import stats
from ..batch.seqs import Seqs
from ..ids import LossId, PresetId
from ..loss.loss import Loss
from ..math.ratios import MAX_LOG_RATIO, kl_estimate
from ..registry import register_resolver
from ..spec.settings import NonNegative, Positive
from ..spec.spec import Input
from ..stats import Stat
from .off_policy_mask import off_policy_mask
from .wrapper import Weighting, Weights, mean_per_datum, weighed

Level = Literal["token", "sequence", "geometric"]
Rule = Literal["truncate", "mask", "band", "reject"]
LEVELS: tuple[str, ...] = get_args(Level)
_CAP: dict[str, tuple[Any, float]] = {"cap": (Positive, 2.0)}
#: The settings of each rule, with their defaults.
RULES: dict[str, dict[str, tuple[Any, float]]] = {
    "truncate": _CAP,
    "mask": _CAP,
    "band": {"low": (NonNegative, 0.5), "high": (Positive, 5.0)},
    "reject": {"low": (NonNegative, 0.5), "high": (Positive, 2.0)},
}
#: The metric's name for the share of weights that a rule changed.
CHANGED = {"truncate": "correction_truncated", "mask": "correction_masked", "band": "correction_masked"}
#: Losses whose ratio is against the engine's logprobs already: the same mismatch would count twice.
CORRECTED_ALREADY = {
    "vespo": "its own weight is made of the whole ratio to the rollout",
    "dppo": "its ratio and its mask are against the rollout",
    "rollout_is": "its ratio and its bounds are against the rollout",
}


def rollout_correction(
    loss: LossId | PresetId | str | Loss | Callable[..., Any],
    *,
    level: Level = "token",
    rule: Rule = "truncate",
    normalize: bool = False,
    **config: Any,
) -> Loss:
    """`loss` with each of its values times a weight of c = exp(sampling_logprobs - rollout_logprobs). Also as an id.

        rollout_correction("ppo", level="sequence", rule="mask", cap=3.0)
        get_loss("ppo+sequence_mask", cap=3.0)

    level: c of each `token`; of the whole `sequence`, the product of its tokens'; or its `geometric` mean.
    rule: `truncate` min(c, cap) (TIS); `mask` c, but 0 above `cap` (MIS); `band` c, but 0 outside [low, high] (IcePop is the
    band of tokens, arXiv:2510.18855); `reject` 1 within [low, high], 0 outside.
    normalize: divide by the batch's mean weight; this couples the batch. config: settings of the rule and of the loss.

    The log of c is held within ±20. A value of weight 0 still counts in the denominator, as in TRL; in verl too, but for
    `reject`, whose values it takes out. The whole value is multiplied, including a KL term inside it. To leave the KL alone,
    set the loss's own to 0 and add one: `rollout_correction("grpo", kl_coefficient=0.0) + 0.001 * get_loss("reference_kl")`.
    Caps elsewhere: verl and SkyRL 2, TRL 3 (`sequence_mask` by default), Fireworks 5; what Fireworks calls the sequence level
    is `geometric`.

    Metrics: `correction_mean`, `correction_min`, `correction_max` of the weights (of responses, unless level is token), the
    share that the rule changed as `correction_truncated`, `correction_masked` or `rejected`, and `rollout_kl_k1`,
    `rollout_kl_k3`, nats per token from rollout to trainer: more than 0.01 means that the two compute different policies.

    Raises LossContractError for a loss that must not be corrected, LossConfigError for settings.
    """
    if level not in LEVELS or rule not in RULES:
        raise LossConfigError(
            f"rollout_correction: level={level!r}, rule={rule!r}: levels are {', '.join(LEVELS)}, rules are {', '.join(RULES)}"
        )
    suffix = f"{level}_{rule}{'_normalized' if normalize else ''}"
    correction = Weighting(
        maker="rollout_correction",
        suffix=suffix,
        source=f", level={level!r}, rule={rule!r}{', normalize=True' if normalize else ''}",
        weights=_correction(level, rule, normalize),
        settings=RULES[rule],
        inputs=(Input("sampling_logprobs", True, "token"), Input("rollout_logprobs", True, "token")),
        couples="batch" if normalize else "token" if level == "token" else "datum",
        check=lambda base: _check_counted_once(base, suffix),
        conflict=_empty_band,
    )
    return weighed(loss, config, correction)


@register_resolver
def _named(name: str, config: Mapping[str, Any]) -> Loss | None:
    """The loss that an id such as "ppo+token_truncate" names."""
    inner, plus, suffix = name.rpartition("+")
    if not plus or suffix == "correction":  # a preset's own correction: see presets.py
        return None
    if suffix == "off_policy_mask":
        return off_policy_mask(inner, **config)
    level, _, rule = suffix.removesuffix("_normalized").partition("_")
    if level not in LEVELS or rule not in RULES:
        known = ", ".join(f"{level}_{rule}" for level in LEVELS for rule in RULES)
        raise LossConfigError(f"{name}: {suffix!r} is not a correction; they are {known}, off_policy_mask")
    return rollout_correction(
        inner, level=cast(Level, level), rule=cast(Rule, rule), normalize=suffix.endswith("_normalized"), **config
    )


def _empty_band(settings: Mapping[str, Any]) -> str:
    low, high = settings.get("low", 0.0), settings.get("high", math.inf)
    return "" if low <= high else f"low={low:g} is above high={high:g}, so every weight would be 0"


def _correction(level: Level, rule: Rule, normalize: bool) -> Weights:
    def weights(given: Mapping[str, Any], settings: Mapping[str, Any], per: str) -> tuple[Tensor, dict[str, Stat]]:
        difference = (given["sampling_logprobs"] - given["rollout_logprobs"]).detach()
        weight, is_changed = _weight(_ratio(difference, level, given.get("seqs")), rule, settings)
        metrics = {
            "rollout_kl_k1": stats.mean(-difference),
            "rollout_kl_k3": stats.mean(kl_estimate(given["rollout_logprobs"], given["sampling_logprobs"], "k3")),
            CHANGED.get(rule, "rejected"): stats.mean(is_changed),
        }
        if rule != "reject":
            metrics |= {f"correction_{one.__name__}": one(weight) for one in (stats.mean, stats.min, stats.max)}
        if normalize:
            mean = weight.sum() / max(1, weight.numel())
            weight = weight / torch.where(mean == 0, torch.ones_like(mean), mean)
        return (given["seqs"].broadcast(weight) if per == "token" and level != "token" else weight), metrics

    return weights


def _check_counted_once(base: Loss, suffix: str) -> None:
    root, *done = base.name.split("+")
    reads = not done and "rollout_logprobs" in base.spec.parameters
    why = CORRECTED_ALREADY.get(root, "it reads rollout_logprobs itself" if reads else "")
    if why:
        raise LossContractError(
            f"rollout_correction: {root} is corrected already, for {why}: the mismatch would count twice. Give it the engine's "
            "logprobs as sampling_logprobs, and no correction"
        )
    weighed = [one for one in done if one != "off_policy_mask" and "_reject" not in one]
    if weighed and "_reject" not in suffix:
        raise LossContractError(
            f"rollout_correction: {base.name} is weighed by {weighed[0]} already: the mismatch would count twice. Only "
            "`reject` goes with another rule"
        )


def _ratio(difference: Tensor, level: Level, seqs: Seqs | None) -> Tensor:
    """c: [T], or [N] for whole responses."""
    if level != "token":
        assert seqs is not None
        difference = seqs.plain_sum(difference) if level == "sequence" else mean_per_datum(difference, seqs)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _weight(ratio: Tensor, rule: Rule, settings: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """The weight, and where the rule changed it from c (or from 1)."""
    if rule == "truncate":
        return ratio.clamp(max=settings["cap"]), ratio > settings["cap"]
    low, high = settings.get("low", 0.0), settings["cap" if rule == "mask" else "high"]
    is_outside = (ratio < low) | (ratio > high)
    kept = torch.ones_like(ratio) if rule == "reject" else ratio
    return torch.where(is_outside, torch.zeros_like(ratio), kept), is_outside
