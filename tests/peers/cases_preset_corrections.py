"""Presets with their system's own correction for rollouts, `+correction`, against verl's and SkyRL's: see padded.py."""

from __future__ import annotations

from torch import Tensor

from lossbook import Datum, get_loss

from . import skyrl_core, verl_core
from .padded import FINITE, Batch, differences
from .parity import Parity
from .verl_core import Peer


def rollouts(rows: Batch) -> list[Datum]:
    """Datums whose rollout_logprobs are the batch's reference."""
    return rows.data(rollout_logprobs=rows.reference)


def verl(mode: str, level: str) -> Peer:
    """A policy loss of verl with the weights that its trainer hands it; the cap is its default."""

    def compute(logprobs: Tensor, sampling: Tensor, rollout: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        own = verl_core.config(**({"dro_beta": 0.05} if mode == "dro" else {}))
        correct = verl_core.correction().compute_rollout_correction_and_rejection_mask
        cap = own.policy_loss.rollout_correction.rollout_is_threshold
        weights, _, _ = correct(sampling, rollout, mask, rollout_is=level, rollout_is_threshold=cap)
        asked = {"old_log_prob": sampling, "log_prob": logprobs, "advantages": advantages, "response_mask": mask}
        asked |= {"rollout_is_weights": weights.batch["rollout_is_weights"], "config": own}
        return verl_core.core().get_policy_loss_fn(mode)(**asked, loss_agg_mode=own.loss_agg_mode)[0]

    return compute


def skyrl(mode: str, reduction: str) -> Peer:
    """A policy loss of SkyRL with its truncated ratio of tokens, which is off by default; the cap is its default."""

    def compute(logprobs: Tensor, sampling: Tensor, rollout: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        own = skyrl_core.config(policy_loss_type=mode, tis_ratio_type="token", loss_reduction=reduction)
        divided = skyrl_core.divided(advantages, mask, own)
        policy = getattr(skyrl_core.core(), skyrl_core.POLICIES[mode])
        return policy(logprobs, sampling, divided, own, loss_mask=mask, rollout_logprobs=rollout)[0]

    return compute


def case(preset: str, peer: str, theirs: Peer, note: str, tolerance: float, **kind: bool) -> Parity:
    loss = f"{preset}+correction"
    return Parity(
        loss=loss,
        peer=peer,
        package=preset.partition(":")[0],
        differences=lambda: differences(get_loss(loss), theirs, spreads=FINITE, data=rollouts, **kind),
        tolerance=tolerance,
        note=note,
    )


def of_verl(mode: str, level: str = "token", note: str = "", tolerance: float = 1e-9, **kind: bool) -> Parity:
    peer = f"compute_policy_loss_{mode} with rollout_is={level}"
    return case(f"verl:{mode}", peer, verl(mode, level), note, tolerance, **kind)


def of_skyrl(mode: str, reduction: str = "token_mean", note: str = "", **kind: bool) -> Parity:
    peer = f"ppo_utils.{mode} with tis_ratio_type=token, loss_reduction={reduction}"
    return case(f"skyrl:{mode}", peer, skyrl(mode, reduction), note or "SkyRL takes exp in float32", 1e-5, **kind)


CASES: list[Parity] = [
    *(of_verl(mode) for mode in ("vanilla", "gspo", "gpg", "cispo", "kl_cov", "dro")),
    of_verl("sapo", note="1e-8 is added to each length there", tolerance=1e-6),
    of_verl(
        "geo_mean", "sequence", "no row masked whole; one advantage per response", 1e-6, empty=False, per_response=True
    ),
    *(of_skyrl(mode) for mode in ("regular", "dual_clip", "cispo")),
    *(of_skyrl(mode, "sequence_mean", "no row masked whole", empty=False) for mode in ("gspo", "sapo")),
]
