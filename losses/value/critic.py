"""Losses of a value function: a scalar head's predictions of the return."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import stats
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import Positive
from ..stats import Stat


@register_loss(
    "value_clip",
    per="token",
    reduction="token-mean",
    source="Schulman et al. 2017, arXiv:1707.06347 eq. 9; the clip: Engstrom et al. 2020, arXiv:2005.12729 section 3",
    aliases=("ppo_critic",),
    axes=Axes(clip="values within ±clip of the old ones where that is the larger loss: no gradient beyond"),
    differs={
        "verl 0.9.1": "clip is 0.5 by default (`cliprange_value`)",
        "SkyRL 0.3.0": "the mean over sequences of token means: reduction seq-mean-token-mean",
    },
    laws={"is_another_loss": {"own": {"clip": 1e30}, "loss": "value_mse"}},
)
def value_clip(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: Positive = 0.2
) -> tuple[Tensor, dict[str, Stat]]:
    """½ max((v - R)², (clamp(v, v_old ± clip) - R)²), where v = values, v_old = old_values and R = returns.

    returns   [T]  in units of the reward, the target, such as advantages + old_values
    returns   [T]  in units of the reward squared

    The bounds are distances in units of the reward, so scale them with it. The gradient is that of the unclipped square
    unless the clipped one is larger; then there is none where v is beyond a bound. `clip_fraction` is the share of tokens
    with the clipped square; `squared_error` is the mean of (v - R)².

    When to use: As value_mse, in PPO with several steps on the same samples, as many implementations have it.
    """
    error = (values - returns).square()
    clipped = (values.clamp(old_values - clip, old_values + clip) - returns).square()
    is_clipped = clipped > error
    metrics = {"clip_fraction": stats.mean(is_clipped), "squared_error": stats.mean(error)}
    # where, not maximum: at a tie maximum splits the gradient between both branches, and the clipped one has none.
    return 0.5 * torch.where(is_clipped, clipped, error), metrics


@register_loss("value_mse", per="token", reduction="token-mean", source="Schulman et al. 2017, arXiv:1707.06347 eq. 9")
def value_mse(values: Tensor, returns: Tensor) -> Tensor:
    """½ (v - R)², where v = values and R = returns.

    returns   [T]  in units of the reward, the target
    returns   [T]  in units of the reward squared

    With the factor ½ the gradient is v - R; without it, as in some systems, the learning rate doubles.

    When to use: To train a value function beside a policy: the default.
    """
    return 0.5 * (values - returns).square()


@register_loss(
    "value_huber",
    per="token",
    reduction="token-mean",
    source="Huber 1964, Annals of Mathematical Statistics 35, p. 75; as optax.huber_loss",
    laws={"is_another_loss": {"own": {"delta": 1e30}, "loss": "value_mse"}},
)
def value_huber(values: Tensor, returns: Tensor, *, delta: Positive = 1.0) -> tuple[Tensor, dict[str, Stat]]:
    """½ e² where |e| ≤ delta, else delta (|e| - ½ delta); e = values - returns.

    returns   [T]  in units of the reward, the target
    returns   [T]  in units of the reward squared

    The gradient is e clamped to ±delta, so an outlier moves the head no more than an error of delta. `linear_fraction` is
    the share of tokens beyond delta: near 1 this is an absolute error, which learns medians instead of means.

    When to use: As value_mse, when a few returns are far larger than the others.
    """
    error = values - returns
    held = error.clamp(-delta, delta)
    # held (e - ½ held) is both branches in one, and its gradient is `held`.
    return held * (error - 0.5 * held), {"linear_fraction": stats.mean(error.abs() > delta)}
