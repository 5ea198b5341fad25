"""Losses: the registry, the protocol, reductions, and the loss functions themselves."""

if "." not in __name__:
    raise ImportError("losses/ is a part of the lossbook package: write `import lossbook.losses`")

from . import advantages, distillation, embedding, policy, preference, ranking, returns, stats, supervised, value
from .batch.outputs import Outputs
from .batch.seqs import Seqs
from .cards.card import LossCard, describe_loss
from .cards.compare import Comparison, compare_losses
from .embedding import adaptive_layer, matryoshka, matryoshka_2d, sampled_layers
from .loss.loss import Loss, LossLike, Mixture
from .math.divergences import forward_kl, jsd, reverse_kl, with_tail
from .math.ratios import capped_log_ratio, kl_estimate, ratio_stats, safe_ratio
from .reductions import REDUCTIONS, Count
from .registry import get_loss, list_losses, plugin_errors, register_loss, trace_report, unregister_loss
from .spec.axes import Axes
from .spec.groups import Grouping
from .spec.inputs import FlagPerDatum, PerDatum, VectorPerDatum
from .spec.settings import AtLeastOne, LossConfig, LowerBound, NonNegative, Positive, RatioBound, UpperBound
from .stats import Stat
from .trace.trace import TracedLoss
from .value.adaptive import AdaptiveEntropy
from .variants.off_policy_mask import off_policy_mask
from .variants.presets import UNPUBLISHED, Preset, describe_preset, list_presets
from .variants.rejected_data import without_rejected
from .variants.rollout_correction import rollout_correction
from .variants.rollout_rejection import rollout_rejection
from .variants.suffixes import SUFFIXES
from .variants.top_entropy import top_entropy

__all__ = [
    "REDUCTIONS",
    "SUFFIXES",
    "UNPUBLISHED",
    "AdaptiveEntropy",
    "AtLeastOne",
    "Axes",
    "Comparison",
    "Count",
    "FlagPerDatum",
    "Grouping",
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
    "VectorPerDatum",
    "adaptive_layer",
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
    "matryoshka_2d",
    "off_policy_mask",
    "plugin_errors",
    "policy",
    "preference",
    "ranking",
    "ratio_stats",
    "register_loss",
    "returns",
    "reverse_kl",
    "rollout_correction",
    "rollout_rejection",
    "safe_ratio",
    "sampled_layers",
    "stats",
    "supervised",
    "top_entropy",
    "trace_report",
    "unregister_loss",
    "value",
    "with_tail",
    "without_rejected",
]
