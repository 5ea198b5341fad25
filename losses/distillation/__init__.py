"""Distillation losses: make a student's distribution that of a teacher."""

from .candidates import gkd, sdft, topk_forward_kl, topk_jsd, topk_reverse_kl
from .on_policy import ref_kl, sampled_reverse_kl

__all__ = ["gkd", "ref_kl", "sampled_reverse_kl", "sdft", "topk_forward_kl", "topk_jsd", "topk_reverse_kl"]
