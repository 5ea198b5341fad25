"""Losses beside the policy's: value functions, entropy, and other terms that are added to a loss."""

from .auxiliary import entropy_bonus, reference_kl, sampled_entropy_bonus, sampler_kl
from .critic import value_clip, value_huber, value_mse

__all__ = [
    "entropy_bonus",
    "reference_kl",
    "sampled_entropy_bonus",
    "sampler_kl",
    "value_clip",
    "value_huber",
    "value_mse",
]
