"""GSPO and related losses: the geometric mean of a response's token ratios, clipped close to 1."""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch.seqs import Seqs
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import LowerBound, UpperBound
from ..stats import Stat
from .clipped import clipped_surrogate
from .sequence import SEQUENCE_CLIP, clipped_sequences, sequence_metrics, sequence_ratio


@register_loss(
    "gspo",
    per="datum",
    reduction="mean",
    source="Zheng et al. 2025, arXiv:2507.18071 section 4.1",
    axes=Axes(ratio="sequence", clip=SEQUENCE_CLIP),
    differs={
        "Tinker 0.38.0": "the bounds have to be given, tokens are added up, and the mean is over `sequence_ratio_mask`: `gspo_token`",
        "Fireworks cookbook 5922b31": "the mean log-ratio is capped at 10",
        "TRL 1.16.0": "importance_sampling_level 'sequence': bounds from epsilon, 0.2 unless set to 3e-4 and 4e-4",
        "verl 0.9.1": "bounds [0.8, 1.2] and a token-mean unless set; the mean log-ratio is capped at 10",
        "SkyRL 0.3.0": "bounds [0.8, 1.2] and a token-mean, with a warning, unless set; the mean log-ratio is capped at 10",
    },
    laws={
        "on_policy_is_reinforce": {"reduction": "seq-mean-token-mean"},
        "is_another_loss": {
            "max_length": 1,
            "loss": "ppo",
            "settings": {"clip_low": 1 - 3e-4, "clip_high": 1 + 4e-4, "reduction": "seq-mean-token-mean"},
        },
        "zero_advantage_is_silent": {},
        "beyond_the_clip_no_gradient": {"nats": 1e-3},
    },
)
def gspo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    seqs: Seqs,
    *,
    clip_low: LowerBound = 1 - 3e-4,
    clip_high: UpperBound = 1 + 4e-4,
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(s A, clip(s) A), where s = exp(mean over a response's tokens of logprobs - sampling_logprobs).

    advantages   [T]  unitless, one for the whole response: their mean is used
    returns      [N]  unitless, one loss per response

    s is a geometric mean, so its bounds are much closer to 1 than those of single tokens. Means are weighted by the tokens'
    weights. Beyond a bound no token of the response has a gradient; `clip_fraction` is a share of responses.

    When to use: A reward per response and mixtures of experts, or other models whose ratios of single tokens are
    noisy.
    """
    ratio = sequence_ratio(seqs.mean(logprobs - sampling_logprobs))
    return clipped_sequences(logprobs, sampling_logprobs, seqs.mean(advantages), ratio, clip_low, clip_high)


@register_loss(
    "gspo_token",
    per="token",
    couples="datum",
    reduction="seq-mean-token-mean",
    source="Zheng et al. 2025, arXiv:2507.18071 section 4.3",
    aliases=("gspo-token",),
    axes=Axes(ratio="sequence", clip="s within [clip_low, clip_high] where that is the smaller: no gradient beyond"),
    differs={
        "Fireworks 1.2.30": "the managed service's loss is this one",
        "Fireworks cookbook 5922b31": "`gspo`: the mean log-ratio is capped at 10",
        "Tinker 0.38.0": "`gspo`: the bounds have to be given, and tokens are added up",
        "verl 0.9.1": "`gspo`: bounds [0.8, 1.2] and a token-mean unless set; the mean log-ratio is capped at 10",
        "SkyRL 0.3.0": "`gspo`: bounds [0.8, 1.2] and a token-mean, with a warning, unless set; the mean log-ratio is capped at 10",
    },
    laws={
        "on_policy_is_reinforce": {},
        "is_another_loss": [
            {"loss": "gspo", "uniform": True, "settings": {"reduction": "mean"}},
            {"loss": "ppo", "max_length": 1, "settings": {"clip_low": 1 - 3e-4, "clip_high": 1 + 4e-4}},
        ],
        "zero_advantage_is_silent": {},
        "beyond_the_clip_no_gradient": {"nats": 1e-3},
    },
)
def gspo_token(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    seqs: Seqs,
    sequence_ratio_mask: Tensor | None = None,
    *,
    clip_low: LowerBound = 1 - 3e-4,
    clip_high: UpperBound = 1 + 4e-4,
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(s A, clip(s) A) per token, where s = exp(mean over its response of logprobs - sampling_logprobs).

    advantages            [T]  unitless, may differ within a response
    sequence_ratio_mask   [T]  unitless, optional: 0 or 1, the tokens that the mean is over; by default all of non-zero weight
    returns               [T]  unitless

    s is the same for all tokens of a response, but its gradient is per token: d s / d logprobs = s. With one advantage per
    response the gradient is that of `gspo`. Tokens outside sequence_ratio_mask do not enter s but do have a gradient. A
    clipped token has none; `clip_fraction` is a share of tokens.

    When to use: As gspo, when advantages differ between the tokens of a response, as with several turns.
    """
    mean = seqs.mean(logprobs - sampling_logprobs, sequence_ratio_mask).detach()
    ratio = sequence_ratio(seqs.broadcast(mean) + logprobs - logprobs.detach())
    losses, is_clipped = clipped_surrogate(ratio, advantages, clip_low, clip_high)
    return losses, sequence_metrics(logprobs, sampling_logprobs, ratio, is_clipped)


@register_loss(
    "luspo",
    per="datum",
    reduction="mean",
    source="arXiv:2602.05261",
    axes=Axes(ratio="sequence", clip=SEQUENCE_CLIP),
    differs={
        "TRL 1.16.0": "bounds from epsilon, 0.2 unless set; importance_sampling_level 'sequence' has to be set beside it"
    },
    laws={
        "on_policy_is_reinforce": {"reduction": "seq-mean-token-sum"},
        "is_another_loss": {
            "max_length": 1,
            "loss": "ppo",
            "settings": {"clip_low": 1 - 3e-4, "clip_high": 1 + 4e-4, "reduction": "seq-mean-token-sum"},
        },
        "zero_advantage_is_silent": {},
        "beyond_the_clip_no_gradient": {"nats": 1e-3},
    },
)
def luspo(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    advantages: Tensor,
    seqs: Seqs,
    *,
    clip_low: LowerBound = 1 - 3e-4,
    clip_high: UpperBound = 1 + 4e-4,
) -> tuple[Tensor, dict[str, Stat]]:
    """-min(s A, clip(s) A) times the response's length, with s as in gspo.

    advantages   [T]  unitless, one for the whole response: their mean is used
    returns      [N]  unitless, one loss per response

    GSPO gives every response the same weight, so a token of a long response counts less; the factor, the sum of the
    response's weights, undoes that.

    When to use: As gspo, when it makes responses shorter than they should be.
    """
    losses, metrics = gspo(logprobs, sampling_logprobs, advantages, seqs, clip_low=clip_low, clip_high=clip_high)
    return losses * seqs.sum(torch.ones_like(logprobs)), metrics
