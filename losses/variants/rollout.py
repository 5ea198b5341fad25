"""What corrections for another engine's logprobs share: inputs, metrics, and the losses that need none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...datums.errors import LossContractError
from .. import stats
from ..loss.loss import Loss
from ..math.ratios import kl_estimate
from ..spec.spec import Input
from ..stats import Stat

#: What every correction reads.
INPUTS = (Input("sampling_logprobs", True, "token"), Input("rollout_logprobs", True, "token"))
#: Losses whose ratio is against the engine's logprobs already: the same mismatch would count twice.
CORRECTED_ALREADY = {
    "vespo": "its own weight is made of the whole ratio to the rollout",
    "dppo": "its ratio and its mask are against the rollout",
    "prime_ipo": "its ratio and its mask are against the rollout",
    "rollout_is": "its ratio and its bounds are against the rollout",
}
#: The one value of a loss per datum has no tokens.
NO_TOKENS = "choose the level 'sequence' or 'geometric'"


def is_gate(suffix: str) -> bool:
    """Whether a correction keeps or drops values and gives those that it keeps no weight, so that it goes with a weight."""
    return suffix.startswith("reject_") or suffix.removesuffix("_normalized").endswith("_reject")


def is_weight(suffix: str) -> bool:
    """Whether a correction weighs values by the ratio of trainer and rollout."""
    return suffix not in ("off_policy_mask", "top_entropy") and not is_gate(suffix)


def check_counted_once(base: Loss, maker: str, suffix: str) -> None:
    """Raise LossContractError where the mismatch of trainer and rollout would count twice."""
    root, *done = base.name.split("+")
    reads = not done and "rollout_logprobs" in base.spec.parameters
    why = CORRECTED_ALREADY.get(root, "it reads rollout_logprobs itself" if reads else "")
    if why:
        raise LossContractError(
            f"{maker}: {root} is corrected already, for {why}: the mismatch would count twice. Give it the engine's "
            "logprobs as sampling_logprobs, and no correction"
        )
    weighed = [one for one in done if is_weight(one)]
    if weighed and is_weight(suffix):
        raise LossContractError(
            f"{maker}: {base.name} is weighed by {weighed[0]} already: the mismatch would count twice. Only a rejection "
            "goes with another rule"
        )


def log_ratio(given: Mapping[str, Any]) -> Tensor:
    """[T] nats, without a gradient: how much likelier each token is under the trainer than in the engine."""
    return (given["sampling_logprobs"] - given["rollout_logprobs"]).detach()


def distance_metrics(given: Mapping[str, Any]) -> dict[str, Stat]:
    """`rollout_kl_k1` and `rollout_kl_k3`, nats per token from rollout to trainer."""
    return {
        "rollout_kl_k1": stats.mean(-log_ratio(given)),
        "rollout_kl_k3": stats.mean(kl_estimate(given["rollout_logprobs"], given["sampling_logprobs"], "k3")),
    }
