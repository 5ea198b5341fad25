"""Rollout correction: a policy loss times weights that make up for an inference engine whose logprobs are not the trainer's.

A loss's ratio is exp(logprobs - sampling_logprobs). Where sampling_logprobs were computed anew by the trainer before the
update, and the tokens were drawn by an engine with other numerics or older weights, what is missing is

    c = exp(x), where x = sampling_logprobs - rollout_logprobs

with `rollout_logprobs` as the engine reported them. `rollout_correction` multiplies each of a loss's values by a weight made
of c, which has no gradient. Where sampling_logprobs are the engine's own, x is 0 and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import torch
from pydantic import create_model
from torch import Tensor

from ...datums.errors import LossConfigError, LossContractError
from .. import stats
from ..batch.pack import Seqs
from ..loss.loss import Loss
from ..loss.mixture import Mixture
from ..math.ratios import MAX_LOG_RATIO, kl_estimate
from ..reductions import coarsest
from ..registry import get_loss
from ..spec.settings import LossConfig, NonNegative, Positive
from ..spec.spec import Input
from ..stats import Stat
from . import presets

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
#: What the share is called of weights that a rule changed.
CHANGED = {"truncate": "correction_truncated", "mask": "correction_masked", "band": "correction_masked"}
#: Losses whose ratio is against the engine's logprobs already: the same mismatch would count twice.
CORRECTED_ALREADY = {
    "vespo": "its own weight is made of the whole ratio to the rollout",
    "dppo": "its ratio and its mask are against the rollout",
    "rollout_is": "its ratio and its bounds are against the rollout",
}


def rollout_correction(
    loss: str | Loss | Callable[..., Any],
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
    normalize: divide by the batch's mean weight; it couples the batch. config: settings of rule and loss; all remain such.

    The log of c is held within ±20. A value of weight 0 still counts in the denominator, as in TRL; verl takes it out. Every
    value is multiplied as a whole, a KL term inside it too: to leave that alone, set the loss's own to 0 and add it,
    `rollout_correction("grpo", kl_coefficient=0.0) + 0.001 * get_loss("reference_kl")`.
    Caps elsewhere: verl and SkyRL 2, TRL 3 (`sequence_mask` by default), Fireworks 5; what Fireworks calls the sequence level
    is `geometric`.

    Metrics: `correction_mean`, `correction_min`, `correction_max` of the weights (of responses, unless level is token), the
    share that the rule changed as `correction_truncated`, `correction_masked` or `rejected`, and `rollout_kl_k1`,
    `rollout_kl_k3`, nats a token from rollout to trainer: more than 0.01 says that the two compute different policies.

    Raises LossContractError for losses that this cannot be right for, LossConfigError for settings.
    """
    if level not in LEVELS or rule not in RULES:
        raise LossConfigError(
            f"rollout_correction: level={level!r}, rule={rule!r}: levels are {', '.join(LEVELS)}, rules are {', '.join(RULES)}"
        )
    return _wrapped(
        loss,
        config,
        suffix=f"{level}_{rule}{'_normalized' if normalize else ''}",
        source=f", level={level!r}, rule={rule!r}{', normalize=True' if normalize else ''}",
        maker="rollout_correction",
        weights=_correction(level, rule, normalize),
        settings=RULES[rule],
        inputs=(Input("sampling_logprobs", True, "token"), Input("rollout_logprobs", True, "token")),
        couples="batch" if normalize else "token" if level == "token" else "datum",
    )


def off_policy_mask(loss: str | Loss | Callable[..., Any], *, threshold: float | None = None, **config: Any) -> Loss:
    """`loss` with 0 for punished tokens of responses that the policy has left. DeepSeek-V3.2, arXiv:2512.02556 eq. 8 and 9.

        off_policy_mask("grpo", threshold=0.1)
        get_loss("grpo+off_policy_mask", threshold=0.1)

    Dropped is a token with advantage < 0 in a response where the mean of rollout_logprobs - logprobs is more than `threshold`
    nats a token, which has no default; datums without `rollout_logprobs` are measured against sampling_logprobs. Rewarded tokens all stay. It has no
    gradient of its own. Dropped tokens still count in the denominator. Metrics: `off_policy_max`, nats a token of the response
    farthest away; `off_policy_responses`, the share beyond the threshold; `off_policy_masked`, the share of values dropped.
    """

    return _wrapped(
        loss,
        config if threshold is None else {"threshold": threshold, **config},
        suffix="off_policy_mask",
        source=f", threshold={threshold!r}",
        maker="off_policy_mask",
        weights=_off_policy,
        settings={"threshold": (Positive, ...)},
        inputs=(
            Input("sampling_logprobs", True, "token"),
            Input("advantages", True, "token"),
            Input("rollout_logprobs", False, "token"),
        ),
        couples="datum",
    )


def corrected(name: str, config: Mapping[str, Any]) -> Loss | Mixture | None:
    """The loss that an id such as "ppo+token_truncate" names; None without a +."""
    inner, plus, suffix = name.rpartition("+")
    if not plus:
        return None
    if suffix == "correction":
        return presets.preset_loss(presets.describe_preset(inner), config, is_corrected=True)
    if suffix == "off_policy_mask":
        return off_policy_mask(inner, **config)
    level, _, rule = suffix.removesuffix("_normalized").partition("_")
    if level not in LEVELS or rule not in RULES:
        known = ", ".join(f"{level}_{rule}" for level in LEVELS for rule in RULES)
        raise LossConfigError(f"{name}: {suffix!r} is no correction; they are {known}, off_policy_mask")
    return rollout_correction(
        inner, level=cast(Level, level), rule=cast(Rule, rule), normalize=suffix.endswith("_normalized"), **config
    )


#: (arguments of the wrapped loss by name, its own settings, per) -> a weight a value, and metrics.
Weights = Callable[[Mapping[str, Any], Mapping[str, Any], str], tuple[Tensor, dict[str, Stat]]]


def _correction(level: Level, rule: Rule, normalize: bool) -> Weights:
    def weights(given: Mapping[str, Any], settings: Mapping[str, Any], per: str) -> tuple[Tensor, dict[str, Stat]]:
        difference = (given["sampling_logprobs"] - given["rollout_logprobs"]).detach()
        weight, is_changed = _weight(_ratio(difference, level, given.get("seqs")), rule, settings)
        found = {
            "rollout_kl_k1": stats.mean(-difference),
            "rollout_kl_k3": stats.mean(kl_estimate(given["rollout_logprobs"], given["sampling_logprobs"], "k3")),
            CHANGED.get(rule, "rejected"): stats.mean(is_changed),
        }
        if rule != "reject":
            found |= {f"correction_{one.__name__}": one(weight) for one in (stats.mean, stats.min, stats.max)}
        if normalize:
            mean = weight.sum() / max(1, weight.numel())
            weight = weight / torch.where(mean == 0, torch.ones_like(mean), mean)
        return (given["seqs"].broadcast(weight) if per == "token" and level != "token" else weight), found

    return weights


def _off_policy(given: Mapping[str, Any], settings: Mapping[str, Any], per: str) -> tuple[Tensor, dict[str, Stat]]:
    seqs: Seqs = given["seqs"]
    rollout = given["sampling_logprobs"] if given["rollout_logprobs"] is None else given["rollout_logprobs"]
    distance = _mean(rollout - given["logprobs"].detach(), seqs)
    is_far = distance > settings["threshold"]
    found = {"off_policy_max": stats.max(distance), "off_policy_responses": stats.mean(is_far)}
    advantages = given["advantages"] if per == "token" else _mean(given["advantages"], seqs)
    is_dropped = (seqs.broadcast(is_far) if per == "token" else is_far) & (advantages < 0)
    return (~is_dropped).to(advantages.dtype), {**found, "off_policy_masked": stats.mean(is_dropped)}


def _wrapped(
    loss: Any,
    config: Mapping[str, Any],
    *,
    suffix: str,
    source: str,
    maker: str,
    weights: Weights,
    settings: Mapping[str, tuple[Any, Any]],
    inputs: tuple[Input, ...],
    couples: str,
) -> Loss:
    """`loss` with its values times `weights`, its settings and inputs grown by those of the weights."""
    try:
        base = get_loss(loss)
    except LossConfigError:  # some losses have settings that they cannot do without
        base = get_loss(loss, **_rest(config, settings))
    _check_base(base, maker, suffix, settings)
    spec = base.spec
    needed = {wanted.name for wanted in inputs if wanted.required}
    has = {wanted.name: replace(wanted, required=wanted.required or wanted.name in needed) for wanted in spec.inputs}
    more = [wanted.name for wanted in inputs if wanted.name not in has]
    parameters = (*spec.parameters, *more)
    if couples != "token" and "seqs" not in parameters:
        parameters = (*parameters, "seqs")

    def weighted(*arguments: Any, **given_settings: Any) -> tuple[Tensor, dict[str, Stat]]:
        given = dict(zip(parameters, arguments, strict=True))
        own = {key: given_settings.pop(key) for key in settings}
        returned = spec.function(*(given[name] for name in spec.parameters), **given_settings)
        values, metrics = returned if isinstance(returned, tuple) else (returned, {})
        weight, found = weights(given, own, spec.per)
        return values * weight, {**metrics, **found}

    imports, expression = getattr(spec.function, "made_by", ("", repr(base.name)))
    weighted.__doc__ = f"{spec.name}, times a weight without a gradient: see `{maker}`."
    weighted.made_by = f"from lossbook.losses import {maker}\n{imports}", f"{maker}({expression}{source})"  # type: ignore[attr-defined]
    grown = create_model(f"{spec.name}_{suffix}", __base__=spec.config, **cast(Any, settings))
    kept = {key: getattr(base.config, key) for key in base.config.model_fields_set}
    changed = replace(
        spec,
        name=f"{spec.name}+{suffix}",
        function=weighted,
        parameters=parameters,
        inputs=(*has.values(), *(wanted for wanted in inputs if wanted.name not in has)),
        make_config=lambda: cast(type[LossConfig], grown),
        couples=coarsest(spec.couples, couples),
        linear=False,
        aliases=(),
        differs={},
        laws={},
    )
    return get_loss(
        Loss(changed, {**kept, **{k: v for k, v in config.items() if k in settings}}), **_rest(config, settings)
    )


def _rest(config: Mapping[str, Any], settings: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in settings}


def _check_base(base: Loss | Mixture, maker: str, suffix: str, settings: Mapping[str, Any]) -> None:
    if isinstance(base, Mixture):
        raise LossContractError(f"{maker} takes one loss, not a mixture: wrap its parts, and mix those")
    spec = base.spec
    if spec.is_batch_style or spec.per not in ("token", "datum") or "logprobs" not in base.outputs:
        raise LossContractError(f"{maker} weighs a policy loss per token or datum over logprobs; {base!r} is none")
    if spec.wants_weights:
        raise LossContractError(f"{maker}: {base.name} weighs its values itself, and they cannot be weighed again")
    if spec.per == "datum" and suffix.startswith("token"):
        raise LossContractError(
            f"{maker}: {base.name} has one value a response, so its weight cannot be a token's: choose the level "
            "'sequence' or 'geometric'"
        )
    if taken := [key for key in settings if key in spec.config.model_fields]:
        raise LossContractError(f"{maker}: {base.name} has a setting {taken[0]!r} of its own")
    if maker == "rollout_correction":
        _check_counted_once(base, suffix)


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
        difference = seqs.plain_sum(difference) if level == "sequence" else _mean(difference, seqs)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _mean(values: Tensor, seqs: Seqs) -> Tensor:
    """[T] to [N]: plain means, whatever the tokens' weights."""
    return seqs.plain_sum(values) / seqs.lengths.to(values).clamp(min=1)


def _weight(ratio: Tensor, rule: Rule, settings: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """The weight, and where the rule made it another than c (or than 1)."""
    if rule == "truncate":
        return ratio.clamp(max=settings["cap"]), ratio > settings["cap"]
    low, high = settings.get("low", 0.0), settings["cap" if rule == "mask" else "high"]
    is_outside = (ratio < low) | (ratio > high)
    kept = torch.ones_like(ratio) if rule == "reject" else ratio
    return torch.where(is_outside, torch.zeros_like(ratio), kept), is_outside
