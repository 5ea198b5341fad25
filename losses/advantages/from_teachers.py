"""Advantages from a teacher: any policy loss then distils.

As in `from_rewards`, arguments are lists, arrays or tensors, and results are float64 tensors on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..math.ratios import KLEstimator
from .arguments import Rewards
from .from_values import kl_penalized_advantages


def teacher_advantages(
    logprobs: Sequence[Rewards],
    teacher_logprobs: Sequence[Rewards],
    *,
    weights: Sequence[Rewards] | None = None,
    scale: float = 1.0,
    estimator: KLEstimator = "k1",
    cap: float | None = None,
    discount: float = 0.0,
) -> list[Tensor]:
    """scale (teacher_logprobs - logprobs) per token: distillation as the advantage of a policy loss, such as `ppo`.

    logprobs           N rows of [T_i]  nats, of sampled tokens under the student that sampled them
    teacher_logprobs   N rows of [T_i]  nats, of the same tokens under the teacher
    weights            N rows of [T_i]  a token of weight 0 is not read and gets 0; None: all count
    returns            N rows of [T_i]  nats times scale, as `advantages` of the student's datums

    A token that the teacher finds likelier than the student is rewarded. On policy the expected gradient of
    `importance_sampling` is that of scale KL(student || teacher), as of `sampled_reverse_kl`; ppo, cispo, gspo and the
    others add their own clip, which allows several steps on one batch. estimator: another estimate of that KL in place of
    k1, negated; k3 and k2 are never negative, so they lower every token and are a baseline away from k1. cap: each token's
    estimate is held within ±cap nats, so that one token that the teacher rules out does not outweigh all others. discount:
    a token also answers for the divergence of later ones, as in `kl_penalized_advantages`, which adds the same to rewards.

    Source: verl 0.9.1, use_policy_gradient of its distillation losses, whose default estimator is k3, held within ±10, and
    which takes the student's logprobs at the update; Thinking Machines 2025, On-Policy Distillation. Raises
    LengthMismatchError, NonFiniteLossInput and LossConfigError.
    """
    return kl_penalized_advantages(
        [0.0] * len(logprobs),
        logprobs,
        teacher_logprobs,
        coefficient=scale,
        weights=weights,
        estimator=estimator,
        is_centred=False,
        discount=discount,
        cap=cap,
    )
