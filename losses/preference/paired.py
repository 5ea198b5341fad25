"""Preference losses: pairs of a chosen and a rejected response. Datums 2i and 2i+1 are a pair, the chosen one first."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from .. import stats
from ..config import Positive, Smoothing
from ..packing import Seqs
from ..registry import register_loss
from ..stats import Stat


@register_loss(
    "dpo",
    per="pair",
    reduction="pair-mean",
    source="Rafailov et al. 2023, arXiv:2305.18290 eq. 7; label_smoothing: Mitchell 2023, conservative DPO",
)
def dpo(
    logprobs: Tensor, ref_logprobs: Tensor, seqs: Seqs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0
) -> tuple[Tensor, dict[str, Stat]]:
    """-log σ(beta Δ), where Δ = Σ_chosen (logprobs - ref_logprobs) - Σ_rejected (logprobs - ref_logprobs).

    logprobs       [T]    nats, under the policy in training
    ref_logprobs   [T]    nats, under the frozen reference
    returns        [N/2]  nats, one loss a pair; ln 2 while policy and reference agree

    Sums are over the response, tokens weighted by their weights. `margin` is Δ in nats, not scaled by beta;
    `chosen_reward` and `rejected_reward` are scaled. With label_smoothing ε the loss is
    -(1 - ε) log σ(beta Δ) - ε log σ(-beta Δ).
    """
    chosen, rejected = seqs.pairs(seqs.sum(logprobs - ref_logprobs))
    margin = chosen - rejected
    losses = -(1 - label_smoothing) * logsigmoid(beta * margin) - label_smoothing * logsigmoid(-beta * margin)
    return losses, {
        "accuracy": stats.mean(margin > 0),
        "margin": stats.mean(margin),
        "chosen_reward": stats.mean(beta * chosen),
        "rejected_reward": stats.mean(beta * rejected),
    }
