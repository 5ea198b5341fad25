"""Advantages over the steps of a sample: discounted sums, GAE, a KL penalty, and the turn rewards of IGPO.

As in `from_rewards`, arguments are lists, arrays or tensors, and results are float64 tensors on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import LengthMismatchError, LossConfigError, NonFiniteLossInput
from ..math.ratios import KLEstimator, kl_estimate
from .arguments import Groups, Rewards, check_number, check_share, finite, group_ids, numbers
from .from_rewards import NonFinite, group_advantages, whitened


def discounted(values: Rewards, discount: float, *, mask: Rewards | None = None) -> Tensor:
    """Σ_{k >= t} discount^(k - t) values_k [T]: the discounted sum of this step and all later ones.

    mask   [T]  not 0 at the policy's own tokens; None: all. Tokens that the environment wrote are no steps, so nothing is
                discounted over them; what is given at them counts at the policy's last step before. They get 0 themselves
    """
    check_share("discount", discount)
    steps = _Steps.of("discounted", values, mask)
    return steps.at_tokens(_discounted(steps.gained, discount))


def gae(
    rewards: Rewards,
    values: Rewards,
    *,
    mask: Rewards | None = None,
    discount: float = 1.0,
    decay: float = 0.95,
    last_value: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(advantages, returns) [T] of one sample: Σ (discount decay)^k δ_{t+k}, where δ_t = r_t + discount V_{t+1} - V_t.

    rewards      [T]  unitless, one per step; only the last is non-zero where the whole sample is rewarded
    values       [T]  unitless, the critic's prediction before each step; not read where the mask is 0
    mask         [T]  not 0 at the policy's own tokens; None: all. As in `discounted`, other tokens are no steps and get 0
    last_value        unitless, the prediction after the last step; 0 where the sample has ended

    Schulman et al. 2015, arXiv:1506.02438 eq. 16. `returns` are advantages + values, what a critic is trained on.
    Defaults are TRL's; verl and SkyRL have decay 1, and whiten the advantages over the batch's tokens afterwards. decay 0 is
    the one-step error, decay 1 the return minus the value; `adaptive_decay` gives one for the length of a response.
    """
    check_share("discount", discount)
    check_share("decay", decay)
    check_number("last_value", last_value)
    steps = _Steps.of("gae", rewards, mask)
    predicted = numbers(values, "values", "one number per step")
    _same_length("gae", steps.is_own, predicted, "values")
    predicted = finite(predicted[steps.is_own], "value")
    following = np.append(predicted[1:], [last_value] * min(1, len(predicted)))
    advantages = _discounted(steps.gained + discount * following - predicted, discount * decay)
    return steps.at_tokens(advantages), steps.at_tokens(advantages + predicted)


def adaptive_decay(length: int, *, alpha: float = 0.05) -> float:
    """1 - 1 / (alpha length), the decay of GAE for a response of that many tokens; 0 up to 1 / alpha tokens.

        gae(rewards, values, decay=adaptive_decay(len(rewards)))

    With one decay for all, the last reward hardly reaches the beginning of a long response; so a reward is spread over a
    share of the response that does not depend on its length. VAPO, arXiv:2504.05118, whose critic has decay 1: take its
    returns from another call of `gae`. Raises LossConfigError unless both are above 0.
    """
    check_number("alpha", alpha)
    if length < 1 or alpha <= 0:
        raise LossConfigError(f"adaptive_decay: length={length} and alpha={alpha:g} must both be above 0")
    return max(0.0, 1 - 1 / (alpha * length))


def reinforce_plus_plus_tokens(
    rewards: Sequence[Rewards],
    masks: Sequence[Rewards] | None = None,
    *,
    discount: float = 1.0,
    epsilon: float = 1e-8,
) -> list[Tensor]:
    """Each token's discounted sum of rewards, whitened over all tokens of the batch. Hu 2025, arXiv:2501.03262 eq. 5 to 7.

    rewards   N rows of [T_i]  unitless, one per token, such as -β KL at each and the sample's reward at the last
    masks     N rows of [T_i]  not 0 at the policy's own tokens; None: all. As in `discounted`
    returns   N rows of [T_i]  unitless; 0 where the mask is 0

    It couples the batch, so call it once on all data. With the whole reward at the last token and discount 1 it is
    `reinforce_plus_plus` with lengths, at every token of a sample.
    """
    check_share("discount", discount)
    check_number("epsilon", epsilon)
    if masks is not None and len(masks) != len(rewards):
        raise LengthMismatchError(f"there are {len(rewards)} rows of rewards but {len(masks)} masks; give one per row")
    if not len(rewards):
        return []
    rows = [_Steps.of(f"sample {i}", row, None if masks is None else masks[i]) for i, row in enumerate(rewards)]
    sums = [_discounted(row.gained, discount) for row in rows]
    flat = np.concatenate(sums)
    scaled = whitened(flat, np.ones(len(flat)), epsilon)
    ends = np.cumsum([len(one) for one in sums], dtype=np.int64)[:-1]
    return [row.at_tokens(part) for row, part in zip(rows, np.split(scaled, ends), strict=True)]


@dataclass(frozen=True)
class _Steps:
    """The policy's own steps among a sample's tokens. is_own: [T] bool. gained: [steps], what is given at each."""

    is_own: np.ndarray
    gained: np.ndarray

    @classmethod
    def of(cls, who: str, values: Rewards, mask: Rewards | None) -> _Steps:
        """Values at tokens that are no steps are added to the last step before."""
        given = finite(numbers(values, f"{who}: rewards", "one number per step"), f"{who}: reward")
        if mask is None:
            return cls(np.ones(len(given), dtype=bool), given)
        marks = finite(numbers(mask, f"{who}: a mask", "one number per step"), f"{who}: mask")
        _same_length(who, given, marks, "mask entries")
        is_own = marks != 0
        step = np.cumsum(is_own) - 1
        if (early := (step < 0) & (given != 0)).any():
            at = int(np.flatnonzero(early)[0])
            raise LossConfigError(
                f"{who}: reward {at} is {given[at]}, before the policy's first token, so it is nobody's"
            )
        return cls(is_own, np.bincount(step[step >= 0], given[step >= 0], minlength=int(is_own.sum())))

    def at_tokens(self, values: np.ndarray) -> Tensor:
        """[T], 0 at tokens that are no steps."""
        tokens = np.zeros(len(self.is_own))
        tokens[self.is_own] = values
        return torch.from_numpy(tokens)


def _discounted(values: np.ndarray, discount: float) -> np.ndarray:
    sums, running = np.empty(len(values)), 0.0
    for t in reversed(range(len(values))):
        running = sums[t] = values[t] + discount * running
    return sums


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
    cap: float | None = None,
) -> list[Tensor]:
    """advantages - coefficient KL(policy || reference) per token: a KL penalty in the advantages, without a gradient.

    advantages     N rows of [T_i], or one number per sample
    logprobs       N rows of [T_i]  nats, under the policy that sampled
    ref_logprobs   N rows of [T_i]  nats, under the reference
    weights        N rows of [T_i]  a token of weight 0 is not penalised and does not count in the mean; None: all count
    returns        N rows of [T_i]

    is_centred: adds the batch's mean KL back, so that the penalty does not lower all advantages; it couples the batch, so
    call it once on all data. discount: a token also pays for the KL of later tokens (0: only
    its own), discounted once per token of weight between. cap: each token's estimate is first held within ±cap nats; None:
    as it is. The defaults are `kl_penalty_coef` of Tinker's cookbook, which
    discounts once per token, also those that the environment wrote; k1 or k3 in the reward, not centred, is verl's `use_kl_in_reward` and TRL's
    RLOO. For a KL term in the loss, with a gradient, use `reference_kl`.
    """
    check_share("discount", discount)
    check_number("coefficient", coefficient)
    if cap is not None and not 0 < cap < np.inf:
        raise LossConfigError(f"cap={cap!r} must be a finite number of nats above 0, or None for no cap")
    for name, given in (("logprobs", logprobs), ("ref_logprobs", ref_logprobs), ("weights", weights)):
        if given is not None and len(given) != len(advantages):
            raise LengthMismatchError(f"there are {len(advantages)} rows of advantages but {len(given)} of {name}")
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for i, (own, policy, reference) in enumerate(zip(advantages, logprobs, ref_logprobs, strict=True)):
        active = None if weights is None else weights[i]
        rows.append(_penalty(f"sample {i}", own, (policy, reference), active, estimator))
    if cap is not None:
        rows = [(a, kl.clip(-cap, cap), active) for a, kl, active in rows]
    count = sum(float(active.sum()) for _, _, active in rows)
    mean = sum(float(kl.sum()) for _, kl, _ in rows) / count if is_centred and count else 0.0
    return [
        torch.from_numpy(a) + discounted(coefficient * active * (mean - kl), discount, mask=active)
        for a, kl, active in rows
    ]


def _penalty(
    who: str,
    advantages: Rewards | float,
    logprobs: tuple[Rewards, Rewards],
    weights: Rewards | None,
    estimator: KLEstimator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """([T] advantages, [T] KL in nats, [T] bool which tokens count) of one sample; 0 for NaN where they do not."""
    own, old = (numbers(one, f"{who}: logprobs", "one number per step") for one in logprobs)
    _same_length(who, own, old, "ref_logprobs")
    a = numbers(advantages, f"{who}: advantages", "one number per step") if np.ndim(advantages) else None  # type: ignore[arg-type]
    a = np.full(len(own), float(advantages)) if a is None else a  # type: ignore[arg-type]
    _same_length(who, own, a, "advantages")
    active = np.ones(len(own)) if weights is None else numbers(weights, f"{who}: weights", "one number per step")
    _same_length(who, own, active, "weights")
    is_active = finite(active, f"{who}: weight") != 0
    divergence = kl_estimate(torch.from_numpy(own), torch.from_numpy(old), estimator).numpy()
    for name, values in (("KL", divergence), ("advantage", a)):
        if (wrong := is_active & ~np.isfinite(values)).any():
            at = int(np.flatnonzero(wrong)[0])
            raise NonFiniteLossInput(f"{who}: the {name} at token {at} is {values[at]}; its weight is not 0")
    return np.where(np.isfinite(a), a, 0.0), np.where(is_active, divergence, 0.0), is_active


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
    check_share("discount", discount)
    check_number("gain_weight", gain_weight)
    rows = [torch.from_numpy(numbers(row, f"row {i}", "one gain per turn")) for i, row in enumerate(gains)]
    ends = torch.from_numpy(numbers(outcomes, "outcomes", "one number per row"))
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


def _same_length(who: str, values: np.ndarray, others: np.ndarray, name: str) -> None:
    if len(values) != len(others):
        raise LengthMismatchError(f"{who}: {len(others)} {name} for {len(values)} steps; give one per step")
