"""Rollout correction: a policy loss times weights that make up for an inference engine whose logprobs are not the trainer's.

A loss's ratio is exp(logprobs - sampling_logprobs). Where the trainer recomputed sampling_logprobs before the update, and an
engine with other numerics or older weights drew the tokens, the ratio lacks the factor

    c = exp(x), where x = sampling_logprobs - rollout_logprobs

with `rollout_logprobs` as the engine reported them. `rollout_correction` multiplies each of a loss's values by a weight made
of c, which has no gradient. Where sampling_logprobs are the engine's own, x is 0 and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...datums.errors import LossConfigError
from .. import stats
from ..batch.seqs import Seqs
from ..ids import LossId, PresetId
from ..loss.loss import Loss
from ..math.ratios import MAX_LOG_RATIO
from ..spec.settings import NonNegative, Positive
from ..stats import Stat
from .rollout import INPUTS, NO_TOKENS, check_counted_once, distance_metrics, log_ratio
from .wrapper import Weighting, Weights, mean_per_datum, weighed

Level = Literal["token", "sequence", "geometric"]
Rule = Literal["truncate", "clamp", "uncapped", "mask", "band", "reject"]
LEVELS: tuple[str, ...] = get_args(Level)
_CAP: dict[str, tuple[Any, float]] = {"cap": (Positive, 2.0)}
#: The settings of each rule, with their defaults.
RULES: dict[str, dict[str, tuple[Any, float]]] = {
    "truncate": _CAP,
    "clamp": {"floor": (NonNegative, 0.5), "cap": (Positive, 5.0)},
    "uncapped": {},
    "mask": _CAP,
    "band": {"low": (NonNegative, 0.5), "high": (Positive, 5.0)},
    "reject": {"low": (NonNegative, 0.5), "high": (Positive, 2.0)},
}
#: The metric's name for the share of weights that a rule changed.
CHANGED = {
    "truncate": "correction_truncated",
    "clamp": "correction_truncated",
    "mask": "correction_masked",
    "band": "correction_masked",
    "reject": "rejected",
}
#: Pairs of settings of which the first must not be above the second, and what would follow.
BOUNDS = (("low", "high", "every weight would be 0"), ("floor", "cap", "every weight would be the cap"))


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
        get_loss("ppo+token_uncapped+geometric_reject", low=0.999, high=1.002)

    level: c of each `token`; of the whole `sequence`, the product of its tokens'; or its `geometric` mean.
    rule: `truncate` min(c, cap) (TIS); `clamp` c held within [floor, cap]; `uncapped` c; `mask` c, but 0 above `cap` (MIS);
    `band` c, but 0 outside [low, high] (IcePop is the band of tokens, arXiv:2510.18855); `reject` 1 within [low, high], 0
    outside.
    normalize: divide by the batch's mean weight; this couples the batch. config: settings of the rule and of the loss.

    One weight and any rejections go together, each at its own level: the last example is NeMo-RL's and OpenRLHF's
    seq-mask-tis, which keeps a response if its geometric mean lies within bounds and weighs its tokens by their own c. Other
    rejections measure a divergence: see `rollout_rejection`.

    The log of c is held within ±20. A value of weight 0 still counts in the denominator, as in TRL; verl takes rejected
    tokens out of it, and leaves those in that its IcePop gives the weight 0. The whole value is multiplied, including a KL
    term inside it. To leave the KL alone, set the loss's own to 0 and add one:
    `rollout_correction("grpo", kl_coefficient=0.0) + 0.001 * get_loss("reference_kl")`.
    Bounds elsewhere: verl 2; SkyRL 2 for tokens and 5 for sequences; TRL 3 (`sequence_mask` by default); Fireworks 5;
    OpenRLHF `clamp` within [0.5, 5]. What Fireworks calls the sequence level is `geometric`.

    Metrics: `correction_mean`, `correction_min`, `correction_max` of the weights (of responses, unless level is token);
    `effective_sample_size`, (Σ w)² / (n Σ w²) of them, the share of the values that as many equal weights would be: below
    0.5 few values decide; the share that the rule changed as `correction_truncated`, `correction_masked` or `rejected`; and
    `rollout_kl_k1`, `rollout_kl_k3`, nats per token from rollout to trainer: more than 0.01 means that the two compute
    different policies.

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
        inputs=INPUTS,
        couples="batch" if normalize else "token" if level == "token" else "datum",
        check=lambda base: check_counted_once(base, "rollout_correction", suffix),
        conflict=_empty_band,
        needs_tokens=NO_TOKENS if level == "token" else "",
    )
    return weighed(loss, config, correction)


def _empty_band(settings: Mapping[str, Any]) -> str:
    for low, high, then in BOUNDS:
        if low in settings and high in settings and settings[low] > settings[high]:
            return f"{low}={settings[low]:g} is above {high}={settings[high]:g}, so {then}"
    return ""


def _correction(level: Level, rule: Rule, normalize: bool) -> Weights:
    def weights(given: Mapping[str, Any], settings: Mapping[str, Any], per: str) -> tuple[Tensor, dict[str, Stat]]:
        weight, is_changed = _weight(_ratio(log_ratio(given), level, given.get("seqs")), rule, settings)
        metrics = distance_metrics(given)
        if rule in CHANGED:
            metrics[CHANGED[rule]] = stats.mean(is_changed)
        if rule != "reject":
            metrics |= {f"correction_{one.__name__}": one(weight) for one in (stats.mean, stats.min, stats.max)}
            metrics["effective_sample_size"] = stats.effective(weight)
        if normalize:
            mean = weight.sum() / max(1, weight.numel())
            weight = weight / torch.where(mean == 0, torch.ones_like(mean), mean)
        return (given["seqs"].broadcast(weight) if per == "token" and level != "token" else weight), metrics

    return weights


def _ratio(difference: Tensor, level: Level, seqs: Seqs | None) -> Tensor:
    """c: [T], or [N] for whole responses."""
    if level != "token":
        assert seqs is not None
        difference = seqs.plain_sum(difference) if level == "sequence" else mean_per_datum(difference, seqs)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _weight(ratio: Tensor, rule: Rule, settings: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """The weight, and where the rule changed it from c (or from 1)."""
    if rule in ("truncate", "clamp", "uncapped"):
        weight = ratio.clamp(settings.get("floor"), settings["cap"]) if "cap" in settings else ratio
        return weight, weight != ratio
    low, high = settings.get("low", 0.0), settings["cap" if rule == "mask" else "high"]
    is_outside = (ratio < low) | (ratio > high)
    kept = torch.ones_like(ratio) if rule == "reject" else ratio
    return torch.where(is_outside, torch.zeros_like(ratio), kept), is_outside
