"""Off-policy masking: a policy loss without the punished tokens of responses that the policy would no longer give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from .. import stats
from ..batch.seqs import Seqs
from ..ids import LossId, PresetId
from ..loss.loss import Loss
from ..spec.settings import Positive
from ..spec.spec import Input
from ..stats import Stat
from .wrapper import Weighting, mean_per_datum, weighed


def off_policy_mask(
    loss: LossId | PresetId | str | Loss | Callable[..., Any], *, threshold: float | None = None, **config: Any
) -> Loss:
    """`loss` with 0 for punished tokens of responses that the policy has left. DeepSeek-V3.2, arXiv:2512.02556 eq. 8 and 9.

        off_policy_mask("grpo", threshold=0.1)
        get_loss("grpo+off_policy_mask", threshold=0.1)

    A token is dropped if its advantage is below 0 and its response is far off policy: the mean of
    rollout_logprobs - logprobs over the response exceeds `threshold` nats per token, which has no default. Datums without
    `rollout_logprobs` are measured against sampling_logprobs. The mask has no gradient, and dropped tokens still count in the
    denominator.

    Metrics: `off_policy_max`, nats per token of the response farthest away; `off_policy_responses`, the share of responses
    beyond the threshold; `off_policy_masked`, the share of values dropped.
    """
    if threshold is not None:
        config = {"threshold": threshold, **config}
    return weighed(loss, config, replace(MASKING, source=f", threshold={threshold!r}"))


def _off_policy(given: Mapping[str, Any], settings: Mapping[str, Any], per: str) -> tuple[Tensor, dict[str, Stat]]:
    seqs: Seqs = given["seqs"]
    rollout = given["sampling_logprobs"] if given["rollout_logprobs"] is None else given["rollout_logprobs"]
    distance = mean_per_datum(rollout - given["logprobs"].detach(), seqs)
    is_far = distance > settings["threshold"]
    metrics = {"off_policy_max": stats.max(distance), "off_policy_responses": stats.mean(is_far)}
    advantages = given["advantages"] if per == "token" else mean_per_datum(given["advantages"], seqs)
    is_dropped = (seqs.broadcast(is_far) if per == "token" else is_far) & (advantages < 0)
    return (~is_dropped).to(advantages.dtype), {**metrics, "off_policy_masked": stats.mean(is_dropped)}


MASKING = Weighting(
    maker="off_policy_mask",
    suffix="off_policy_mask",
    source="",
    weights=_off_policy,
    settings={"threshold": (Positive, ...)},
    inputs=(
        Input("sampling_logprobs", True, "token"),
        Input("advantages", True, "token"),
        Input("rollout_logprobs", False, "token"),
    ),
    couples="datum",
)
