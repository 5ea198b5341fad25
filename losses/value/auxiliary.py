"""Terms to add to a policy's loss, which teach nothing alone: entropy, and the distance to a reference or sampler."""

from __future__ import annotations

from torch import Tensor

from .. import stats
from ..math.ratios import KLEstimator, kl_estimate
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import Positive
from ..stats import Stat


@register_loss(
    "entropy_bonus",
    per="token",
    reduction="sum",
    source="Williams & Peng 1991; Mnih et al. 2016, arXiv:1602.01783 section 4",
    differs={
        "verl 0.9.1": "coefficient is 0 by default (`entropy_coeff`)",
        "SkyRL 0.3.0": "coefficient is 0.01, and the term is off by default",
        "TRL 1.16.0": "coefficient is 0 by default, and may adapt to a target entropy",
    },
)
def entropy_bonus(entropy: Tensor, *, coefficient: Positive = 0.01) -> tuple[Tensor, dict[str, Stat]]:
    """-coefficient entropy.

    Auxiliary, to be added to another loss: get_loss("ppo") + get_loss("entropy_bonus").

    returns   [T]  nats

    It keeps a policy from converging before it has explored enough. Alone it teaches nothing: its optimum is the uniform
    distribution. Give it the reduction of the loss that it is added to. If `entropy` falls to 0, the coefficient is too
    small; if it rises to the logarithm of the vocabulary size, it is too large. `AdaptiveEntropy` moves it towards a target.

    When to use: Added to a policy loss whose entropy falls before enough has been tried.
    """
    return -coefficient * entropy, {"entropy": stats.mean(entropy)}


@register_loss(
    "sampled_entropy_bonus",
    per="token",
    reduction="sum",
    source="the score-function gradient of the entropy: Williams 1992, Machine Learning 8, with reward -log p",
)
def sampled_entropy_bonus(logprobs: Tensor, *, coefficient: Positive = 0.01) -> Tensor:
    """coefficient sg(logprobs) logprobs; sg stops the gradient.

    Auxiliary, to be added to another loss: get_loss("ppo") + get_loss("sampled_entropy_bonus").

    logprobs   [T] or [T, K]  nats, of tokens that the policy in training sampled itself
    returns    [T] or [T, K]  nats²; its value has no meaning, only its gradient

    The gradient of the entropy is -E[log p ∇ log p], so over the policy's own tokens the expected gradient is that of
    `entropy_bonus`, with more noise, and it needs only logprobs. (-logprobs estimates the entropy, but its expected gradient
    is zero.) For tokens of another sampler or a person it is not the gradient of the entropy. Alone it teaches nothing: it
    makes every sampled token less likely, unlikely ones most. `nll` estimates the entropy and should not fall to 0.

    When to use: As entropy_bonus, when only logprobs of the sampled tokens are at hand.
    """
    return coefficient * logprobs.detach() * logprobs


@register_loss(
    "reference_kl",
    per="token",
    reduction="sum",
    source="Schulman 2020, Approximating KL divergence; as a term of the loss: Shao et al. 2024, arXiv:2402.03300 eq. 4",
    axes=Axes(kl="to the reference, estimated at the sampled tokens (k3), with a gradient"),
    differs={
        "verl 0.9.1": "k3 is also held within ±10; off by default, coefficient 0.001",
        "SkyRL 0.3.0": "k3 is also held within ±10; always a mean over sequences of token means; on by default, coefficient 0.001",
        "TRL 1.16.0": "the log-ratio is not held within ±20; coefficient 0 by default",
        "Fireworks 1.2.30": "the log-ratio is not held within ±20; `reinforce` and `igpo` detach the term, so it has no gradient",
        "Tinker 0.38.0": "the cookbook subtracts k1 from the advantages, centred over the batch, instead of adding a loss",
        "prime-rl 559b447": "adds the squared log-ratio (twice k2) to the sampler, not to a reference",
    },
)
def reference_kl(
    logprobs: Tensor, ref_logprobs: Tensor, *, estimator: KLEstimator = "k3"
) -> tuple[Tensor, dict[str, Stat]]:
    """KL(policy || reference), estimated per token.

    Auxiliary, to be added to another loss: get_loss("ppo") + 0.001 * get_loss("reference_kl").

    logprobs       [T] or [T, K]  nats, of tokens that the policy in training sampled itself
    ref_logprobs   [T] or [T, K]  nats, under a frozen reference
    returns        [T] or [T, K]  nats

    Alone it teaches nothing: its optimum is the reference. Give it the reduction of the loss that it is added to. The
    estimator also decides the gradient: that of k1 is zero in expectation and has no effect (see `kl_estimate`). `ref_kl`
    is the mean estimate; with k1 it may be negative.

    When to use: Added to a policy loss, to stay near a reference model.
    """
    divergence = kl_estimate(logprobs, ref_logprobs, estimator)
    return divergence, {"ref_kl": stats.mean(divergence)}


@register_loss(
    "sampler_kl",
    per="token",
    reduction="sum",
    source="Schulman 2020, Approximating KL divergence; as a trust region: Schulman et al. 2015, arXiv:1502.05477 eq. 12",
    axes=Axes(kl="to the sampler, estimated at the sampled tokens (k2), with a gradient"),
    differs={
        "prime-rl 559b447": "the squared log-ratio, twice k2, times 0.001, over all loss tokens, dropped ones too"
    },
)
def sampler_kl(
    logprobs: Tensor, sampling_logprobs: Tensor, *, estimator: KLEstimator = "k2"
) -> tuple[Tensor, dict[str, Stat]]:
    """KL(policy || sampler), estimated per token. Auxiliary, to be added to another loss: dppo + 0.002 sampler_kl.

    logprobs            [T] or [T, K]  nats, of tokens that the sampler sampled
    sampling_logprobs   [T] or [T, K]  nats, under the policy that sampled the token
    returns             [T] or [T, K]  nats

    A trust region: it pulls the policy back to its sampler, harder the further it has moved, also at tokens that a clip or
    mask leaves without a gradient. Alone it teaches nothing. `sampler_kl` is the mean estimate.

    When to use: Added to a policy loss, to stay near the weights that sampled.
    """
    divergence = kl_estimate(logprobs, sampling_logprobs, estimator, sampling_logprobs)
    return divergence, {"sampler_kl": stats.mean(divergence)}
