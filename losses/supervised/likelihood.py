"""Losses that raise or lower the likelihood of given tokens."""

from __future__ import annotations

from torch import Tensor

from .. import stats
from ..math.logarithms import MAX_LOGPROB_OF_COMPLEMENT, log1mexp
from ..registry import register_loss
from ..stats import Stat


@register_loss(
    "cross_entropy",
    per="token",
    reduction="sum",
    source="negative log-likelihood; Shannon 1948",
    linear=True,
    aliases=("ce",),
    differs={
        "TRL 1.16.0": "divides by the number of tokens, of all ranks and accumulation steps (reduction token-mean)",
        "Tinker 0.38.0": "in a custom forward missing weights are zeros, not ones",
        "Fireworks 1.2.30": "in a custom forward missing weights are zeros, not ones",
        "prime-rl 559b447": "divides by the number of its own tokens, of all ranks (reduction token-mean)",
    },
)
def cross_entropy(logprobs: Tensor) -> Tensor:
    """-logprobs: the negative log-likelihood of the target tokens, in nats.

    logprobs   [T] or [T, K]  nats, of the K given targets of each position
    returns    [T] or [T, K]  nats

    With [N, K] targets, the weights of a position are a distribution over K candidates, and its loss is
    -Σ_k w_k logprobs_k: soft-label cross-entropy, without renormalising.

    When to use: The default for fine-tuning on answers that should be imitated; begin here, and compare others with
    it.
    """
    return -logprobs


@register_loss(
    "unlikelihood",
    per="token",
    reduction="token-mean",
    source="Welleck et al. 2019, arXiv:1908.04319 section 5.1",
)
def unlikelihood(logprobs: Tensor) -> tuple[Tensor, dict[str, Stat]]:
    """-log(1 - p), where p = exp(logprobs), of tokens that should become less likely.

    logprobs   [T] or [T, K]  nats, of the negative tokens, which become less likely
    returns    [T] or [T, K]  nats, from 0 to 13.8

    A mixture has one set of weights, so mixed with cross_entropy it would push the same tokens up and down. Instead call
    forward_backward twice before a step, with positive and with negative datums. logprobs are clamped to at most -1e-6, so
    a token that the model is certain of has no gradient; `certain` counts such tokens.

    When to use: To make given text less likely: repetition, or answers that were rejected without a better one beside
    them. Keep a step of cross_entropy beside it.
    """
    return -log1mexp(logprobs), {"certain": stats.sum(logprobs > MAX_LOGPROB_OF_COMPLEMENT)}
