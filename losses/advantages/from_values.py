"""Advantages over the steps of a sample: discounted sums, GAE, a KL penalty, and the turn rewards of IGPO.

As in `from_rewards`, arguments are lists, arrays or tensors, and results are float64 tensors on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import LengthMismatchError, LossConfigError, NonFiniteLossInput
from ..math.ratios import KLEstimator, kl_estimate
from .from_rewards import Groups, NonFinite, Rewards, group_advantages, group_ids


def discounted(values: Rewards, discount: float) -> Tensor:
    """Σ_{k >= t} discount^(k - t) values_k [T]: the discounted sum of this step and all later ones."""
    _check_share("discount", discount)
    steps = _row(values)
    sums = torch.empty_like(steps)
    running = steps.new_zeros(())
    for t in reversed(range(len(steps))):
        running = steps[t] + discount * running
        sums[t] = running
    return sums


def gae(
    rewards: Rewards, values: Rewards, *, discount: float = 1.0, decay: float = 0.95, last_value: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(advantages, returns) [T] of one sample: Σ (discount decay)^k δ_{t+k}, where δ_t = r_t + discount V_{t+1} - V_t.

    rewards      [T]  unitless, one per step; only the last is non-zero where the whole sample is rewarded
    values       [T]  unitless, the critic's prediction before each step
    last_value        unitless, the prediction after the last step; 0 where the sample has ended

    Schulman et al. 2015, arXiv:1506.02438 eq. 16. `returns` are advantages + values, what a critic is trained on.
    Defaults are TRL's; verl and SkyRL have decay 1. decay 0 is the one-step error, decay 1 the return minus the value.
    """
    _check_share("discount", discount)
    _check_share("decay", decay)
    gained, predicted = _row(rewards), _row(values)
    _same_length("gae", gained, predicted, "values")
    following = torch.cat([predicted[1:], predicted.new_full((min(1, len(predicted)),), last_value)])
    advantages = discounted(gained + discount * following - predicted, discount * decay)
    return advantages, advantages + predicted


def kl_penalized_advantages(
    advantages: Sequence[Rewards | float],
    logprobs: Sequence[Rewards],
    ref_logprobs: Sequence[Rewards],
    *,
    coefficient: float,
    weights: Sequence[Rewards] | None = None,
    estimator: KLEstimator = "k1",
    is_centred: bool = True,
    discount: float = 0.0,
) -> list[Tensor]:
    """advantages - coefficient KL(policy || reference) per token: a KL penalty in the advantages, without a gradient.

    advantages     N rows of [T_i], or one number per sample
    logprobs       N rows of [T_i]  nats, under the policy that sampled
    ref_logprobs   N rows of [T_i]  nats, under the reference
    weights        N rows of [T_i]  a token of weight 0 is not penalised and does not count in the mean; None: all count
    returns        N rows of [T_i]

    is_centred: adds the batch's mean KL back, so that the penalty does not lower all advantages; it couples the batch, so
    call it once on all data. discount: a token also pays for the KL of later tokens (0: only its own). The defaults are
    `kl_penalty_coef` of Tinker's cookbook; k1 or k3 in the reward, not centred, is verl's `use_kl_in_reward` and TRL's
    RLOO. For a KL term in the loss, with a gradient, use `reference_kl`.
    """
    _check_share("discount", discount)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for i, (own, policy, reference) in enumerate(zip(advantages, logprobs, ref_logprobs, strict=True)):
        p, f = _row(policy), _row(reference)
        _same_length(f"sample {i}", p, f, "ref_logprobs")
        a = _row(own) if np.ndim(own) else p.new_full((len(p),), float(own))  # type: ignore[arg-type]
        _same_length(f"sample {i}", p, a, "advantages")
        active = torch.ones_like(p) if weights is None else (_row(weights[i]) != 0).double()
        _same_length(f"sample {i}", p, active, "weights")
        divergence = torch.where(active != 0, kl_estimate(p, f, estimator), 0.0)
        if not bool(divergence.isfinite().all()):
            at = int((~divergence.isfinite()).nonzero()[0])
            raise NonFiniteLossInput(
                f"sample {i}: the KL at token {at} is {float(divergence[at])}; its weight is not 0"
            )
        rows.append((a, divergence, active))
    count = sum(float(active.sum()) for _, _, active in rows)
    mean = sum(float(kl.sum()) for _, kl, _ in rows) / count if is_centred and count else 0.0
    return [a + discounted(coefficient * active * (mean - kl), discount) for a, kl, active in rows]


def igpo(
    gains: Sequence[Rewards],
    outcomes: Rewards,
    groups: Groups | None = None,
    *,
    discount: float = 0.95,
    gain_weight: float = 1.0,
    ddof: int = 1,
    epsilon: float = 1e-6,
    nonfinite: NonFinite = "raise",
) -> list[Tensor]:
    """One advantage per turn: information gains of the turns before the answer, then the outcome, normalised and discounted.

    gains      N rows of [turns_i]  how much more likely the right answer became with each turn before the last
    outcomes   [N]                  the reward of the answer, given in the last turn
    returns    N rows of [turns_i + 1]

    Gains and outcomes are normalised separately within each group; a turn's advantage is the discounted sum of its own and
    all later ones. arXiv:2510.14967. Give every token of a turn the turn's advantage, and train with `ppo`. Fireworks'
    recipe discounts by 0.99.
    """
    _check_share("discount", discount)
    rows = [_row(row) for row in gains]
    ends = _row(outcomes)
    if len(rows) != len(ends):
        raise LengthMismatchError(
            f"igpo: there are {len(rows)} rows of gains but {len(ends)} outcomes; give one per row"
        )
    ids = group_ids(groups, len(rows))
    last = group_advantages(ends, ids, ddof=ddof, epsilon=epsilon, nonfinite=nonfinite)
    flat = torch.cat(rows) if rows else ends
    owners = [group for group, row in zip(ids, rows, strict=True) for _ in range(len(row))]
    scaled = group_advantages(flat, owners, ddof=ddof, epsilon=epsilon, nonfinite=nonfinite)
    parts = torch.split(gain_weight * scaled, [len(row) for row in rows]) if rows else ()
    return [discounted(torch.cat([part, last[i : i + 1]]), discount) for i, part in enumerate(parts)]


def _row(values: Rewards) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu().double().reshape(-1)
    return torch.from_numpy(np.array(values, dtype=np.float64).reshape(-1))


def _same_length(who: str, values: Tensor, others: Tensor, name: str) -> None:
    if len(values) != len(others):
        raise LengthMismatchError(f"{who}: {len(others)} {name} for {len(values)} steps; give one per step")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise LossConfigError(f"{name}={value!r} must lie in [0, 1]")
