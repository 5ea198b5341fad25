"""Corrections as ids: `get_loss("ppo+token_truncate")` is `rollout_correction("ppo", level="token", rule="truncate")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ...datums.errors import LossConfigError, LossContractError, did_you_mean
from ..loss.loss import Loss
from ..registry import register_resolver
from .off_policy_mask import off_policy_mask
from .rollout_correction import LEVELS, RULES, rollout_correction
from .rollout_rejection import DIVERGENCES, OVER, rejecting
from .top_entropy import top_entropy

Maker = Callable[..., Loss]


def _makers() -> dict[str, Maker]:
    makers: dict[str, Maker] = {
        f"{level}_{rule}{end}": partial(rollout_correction, level=level, rule=rule, normalize=bool(end))  # type: ignore[arg-type]
        for end in ("", "_normalized")
        for level in LEVELS
        for rule in RULES
    }
    makers |= {
        f"reject_{over}_{divergence}": partial(rejecting, divergence=divergence, over=over)  # type: ignore[arg-type]
        for over in OVER
        for divergence in DIVERGENCES
    }
    return {**makers, "off_policy_mask": off_policy_mask, "top_entropy": top_entropy}


#: What makes a loss of a loss, by what its id ends in behind the +.
SUFFIXES: Mapping[str, Maker] = _makers()
#: Those for a sampler whose logprobs are not the trainer's.
ROLLOUT_SUFFIXES = tuple(name for name in SUFFIXES if name not in ("off_policy_mask", "top_entropy"))


def unknown_suffix(suffix: str) -> str:
    """Why a suffix is no correction, with the likeliest one and how the others are called."""
    if suffix in SUFFIXES:
        return f"{suffix!r} is not a correction for the sampler's logprobs: put it behind the loss, as in grpo+{suffix}"
    return (
        f"{suffix!r} is not a correction.{did_you_mean(suffix, SUFFIXES)} They are level_rule, with the levels "
        f"{', '.join(LEVELS)} and the rules {', '.join(RULES)}, each also with _normalized; reject_over_divergence, over "
        f"{', '.join(OVER)} and with the divergences {', '.join(DIVERGENCES)}; off_policy_mask; top_entropy"
    )


@register_resolver
def _named(name: str, config: Mapping[str, Any]) -> Loss | None:
    """The loss that an id such as "ppo+token_truncate" names."""
    inner, plus, suffix = name.rpartition("+")
    if not plus or suffix == "correction":  # a preset's own correction: see presets.py
        return None
    if suffix not in SUFFIXES:
        raise LossConfigError(f"{name}: {unknown_suffix(suffix)}")
    if suffix in inner.split("+"):
        raise LossContractError(f"{name}: {suffix} is there twice")
    return SUFFIXES[suffix](inner, **config)
