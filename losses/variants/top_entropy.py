"""High-entropy tokens only: a policy loss at the tokens where the policy itself is least certain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .. import stats
from ..ids import LossId, PresetId
from ..loss.loss import Loss
from ..spec.settings import Share
from ..stats import Stat
from .wrapper import Weighting, weighed


def top_entropy(
    loss: LossId | PresetId | str | Loss | Callable[..., Any], *, entropy_share: float = 0.2, **config: Any
) -> Loss:
    """`loss` at the `entropy_share` of tokens whose entropy is highest, and 0 elsewhere. Wang et al. 2025, arXiv:2506.01939.

        top_entropy("grpo", entropy_share=0.2)
        get_loss("grpo+top_entropy", entropy_share=0.2)

    A token counts if its entropy, in nats, is at least the (1 - entropy_share) quantile of all entropies of the call: of all
    its tokens of non-zero weight, over all datums, micro-batches and ranks. Between two entropies the quantile is
    interpolated. 1 keeps all tokens, 0 the one of highest entropy (and any that tie with it). The selection has no gradient,
    and dropped tokens still count in the denominator. It couples the batch: one forward and one backward, with the graphs of
    all micro-batches held together, or a second forward where memory does not allow that.

    The whole value is multiplied, including a KL term inside it; TRL's `top_entropy_quantile` leaves its KL alone, and takes
    the quantile over a micro-batch of all ranks. For that KL see `rollout_correction`.

    Metrics: `entropy`, the mean; `entropy_threshold`, the quantile; both in nats; `top_entropy_fraction`, the share of
    tokens that count, a little above entropy_share where entropies tie.

    When to use: In RL with verifiable rewards, when most tokens are certain and only the few forks in a chain of thought are to
    be learned. Watch `entropy`: it should stay higher than without. Raises LossContractError for a loss of one value per
    response.
    """
    return weighed(loss, {"entropy_share": entropy_share, **config}, SELECTION)


def _selected(given: Mapping[str, Any], settings: Mapping[str, Any], per: str) -> tuple[Tensor, dict[str, Stat]]:
    entropy = given["entropy"].detach()
    threshold = _quantile(entropy.reshape(-1), 1 - settings["entropy_share"])
    is_kept = entropy >= threshold
    metrics = {
        "entropy": stats.mean(entropy),
        "entropy_threshold": stats.max(threshold),
        "top_entropy_fraction": stats.mean(is_kept),
    }
    return is_kept.to(entropy.dtype), metrics


def _quantile(values: Tensor, share: float) -> Tensor:
    """[1], or [0] of nothing: interpolated between neighbours, as `torch.quantile`, which takes 16 million values at most."""
    if not values.numel():
        return values
    place = share * (values.numel() - 1)
    below = int(place)
    ordered = values.sort().values
    low, high = ordered[below : below + 1], ordered[min(below + 1, values.numel() - 1)]
    return low + (place - below) * (high - low)


SELECTION = Weighting(
    maker="top_entropy",
    suffix="top_entropy",
    source="",
    weights=_selected,
    settings={"entropy_share": (Share, 0.2)},
    inputs=(),
    couples="batch",
    outputs=("entropy",),
    needs_tokens="it has no tokens to choose from",
)
