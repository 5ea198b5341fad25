"""Policy-gradient losses: tokens that a policy sampled, an advantage each, and a ratio to the policy that sampled them."""

from .clipped import clipped_surrogate, dual_clip, importance_sampling, ppo
from .covariance import clip_cov, kl_cov
from .group_relative import bnpo, dapo, dr_grpo, grpo
from .gspo import gspo, gspo_token, luspo
from .policy_gradient import gpg, reinforce
from .sequence import gmpo, rloo, vespo
from .weighted import cispo, dppo, dro, rollout_is, sapo

__all__ = [
    "bnpo",
    "cispo",
    "clip_cov",
    "clipped_surrogate",
    "dapo",
    "dppo",
    "dr_grpo",
    "dro",
    "dual_clip",
    "gmpo",
    "gpg",
    "grpo",
    "gspo",
    "gspo_token",
    "importance_sampling",
    "kl_cov",
    "luspo",
    "ppo",
    "reinforce",
    "rloo",
    "rollout_is",
    "sapo",
    "vespo",
]
