"""Losses: the registry, the protocol, reductions, and the loss functions themselves."""

from . import advantages, distillation, embedding, policy, preference, returns, stats, supervised, value
from .axes import Axes
from .cards import LossCard, describe_loss
from .comparison import Comparison, compare_losses
from .config import LossConfig, LowerBound, NonNegative, Positive, RatioBound, UpperBound
from .correction import off_policy_mask, rollout_correction
from .divergences import forward_kl, jsd, reverse_kl, with_tail
from .embedding import matryoshka
from .loss import Loss
from .mixture import Mixture
from .outputs import Outputs
from .packing import Seqs
from .presets import UNPUBLISHED, Preset, describe_preset, list_presets
from .protocol import LossLike
from .ratios import capped_log_ratio, kl_estimate, ratio_stats, safe_ratio
from .reductions import REDUCTIONS, Count
from .registry import get_loss, list_losses, plugin_errors, register_loss, unregister_loss
from .signature import FlagPerDatum, PerDatum
from .stats import Stat
from .trace import TracedLoss, trace_report

__all__ = [
    "REDUCTIONS",
    "UNPUBLISHED",
    "Axes",
    "Comparison",
    "Count",
    "FlagPerDatum",
    "Loss",
    "LossCard",
    "LossConfig",
    "LossLike",
    "LowerBound",
    "Mixture",
    "NonNegative",
    "Outputs",
    "PerDatum",
    "Positive",
    "Preset",
    "RatioBound",
    "Seqs",
    "Stat",
    "TracedLoss",
    "UpperBound",
    "advantages",
    "capped_log_ratio",
    "compare_losses",
    "describe_loss",
    "describe_preset",
    "distillation",
    "embedding",
    "forward_kl",
    "get_loss",
    "jsd",
    "kl_estimate",
    "list_losses",
    "list_presets",
    "matryoshka",
    "off_policy_mask",
    "plugin_errors",
    "policy",
    "preference",
    "ratio_stats",
    "register_loss",
    "returns",
    "reverse_kl",
    "rollout_correction",
    "safe_ratio",
    "stats",
    "supervised",
    "trace_report",
    "unregister_loss",
    "value",
    "with_tail",
]
