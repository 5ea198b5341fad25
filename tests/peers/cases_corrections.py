"""Corrections for a sampler whose logprobs are not the trainer's, and high-entropy tokens, against the code of four trainers.

The batches are those of padded.py, its reference's logprobs as the engine's own.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lossbook import get_loss
from lossbook.losses import without_rejected

from . import skyrl_core, verl_core
from .cases_policy import trainer_class
from .cases_trainers import areal, openrlhf
from .packages import imported
from .padded import FINITE, Batch, batch, differences, relative
from .parity import Parity
from .verl_core import Peer


def rollouts(rows: Batch) -> Any:
    """Datums whose rollout_logprobs are the batch's reference."""
    return rows.data(rollout_logprobs=rows.reference)


def case(loss: str, package: str, peer: str, theirs: Peer, note: str = "", **more: Any) -> Parity:
    """One corrected loss against a function that reads the engine's logprobs where others read a reference's."""
    kind = {key: more.pop(key) for key in ("empty",) if key in more}
    tolerance = more.pop("tolerance", 1e-9)
    return Parity(
        loss=loss,
        peer=peer,
        package=package,
        differences=lambda: differences(get_loss(loss, **more), theirs, spreads=FINITE, data=rollouts, **kind),
        settings=more,
        tolerance=tolerance,
        note=note,
    )


def verl(**options: Any) -> Peer:
    """The sum of -A logprob, weighed and masked as verl's trainer does it before any loss."""

    def compute(logprobs: Tensor, sampling: Tensor, rollout: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        correct = verl_core.correction().compute_rollout_correction_and_rejection_mask
        weights, kept, _ = correct(sampling, rollout, mask, **options)
        weight = 1.0 if weights is None else weights.batch["rollout_is_weights"]
        return -(advantages * logprobs * weight * kept).sum()

    return compute


def of_verl(suffix: str, note: str = "", *, rs: str = "", bound: Any = None, **more: Any) -> Parity:
    """`reinforce` with a correction. rs, bound: verl's rollout_rs and its threshold; `is_*` in `more`: its weights."""
    options = {f"rollout_{key}": more.pop(key) for key in list(more) if key.startswith("is_") or key == "is"}
    options |= {"rollout_rs": rs, "rollout_rs_threshold": bound} if rs else {}
    peer = f"compute_rollout_correction_and_rejection_mask({','.join(f'{k[8:]}={v}' for k, v in options.items())})"
    return case(f"reinforce+{suffix}", "verl", peer, verl(**options), note, reduction="sum", **more)


def ratios(name: str, low: float, high: float) -> dict[str, float]:
    """Our bounds of k1, of verl's, which are ratios."""
    return {f"{name}_low": math.log(low), f"{name}_high": math.log(high)}


def out_of_the_denominator(option: str, bound: float, **ours: Any) -> Parity:
    """Data without what is rejected, under verl's mask and its token-mean."""

    def compute(logprobs: Tensor, sampling: Tensor, rollout: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        kept, _ = verl_core.correction().compute_rollout_rejection_mask(sampling - rollout, mask, option, bound)
        return verl_core.core().agg_loss(-advantages * logprobs, kept, "token-mean")

    shown = ", ".join(f"{key}={value!r}" for key, value in ours.items())
    return Parity(
        loss="reinforce",
        peer=f"compute_rollout_rejection_mask({option},{bound})",
        package="verl",
        differences=lambda: differences(
            get_loss("reinforce", reduction="token-mean"),
            compute,
            spreads=FINITE,
            data=lambda rows: without_rejected(rollouts(rows), **ours),
        ),
        settings={"reduction": "token-mean"},
        note=f"data of without_rejected({shown}): verl takes them out of the denominator",
    )


def openrlhf_corrected(**settings: Any) -> Peer:
    def compute(logprobs: Tensor, sampling: Tensor, rollout: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        own = {f"is_correction_{key}": value for key, value in settings.items()}
        return openrlhf("PolicyLoss", **own)(logprobs, sampling, advantages, mask, rollout_log_probs=rollout)[0]

    return compute


def of_openrlhf(loss: str, note: str = "", *, theirs: dict[str, Any], **settings: Any) -> Parity:
    shown = ",".join(f"{key}={value}" for key, value in theirs.items())
    peer = f"PolicyLoss(is_correction: {shown})"
    return case(loss, "openrlhf", peer, openrlhf_corrected(**theirs), note, reduction="token-mean", **settings)


def of_areal(loss: str, note: str = "", *, theirs: dict[str, Any], **settings: Any) -> Parity:
    def compute(logprobs: Tensor, sampling: Tensor, rollout: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        config = areal().RejectionSamplingConfig(**theirs)
        own = {"eps_clip": 0.2, "loss_mask": mask.bool(), "rejection_sampling": config}
        return areal().ppo_actor_loss_fn(logprobs, sampling, rollout, advantages, **own)[0]

    shown = ",".join(f"{key}={value}" for key, value in theirs.items())
    peer = f"ppo_actor_loss_fn(rejection_sampling: {shown})"
    own = {"reduction": "token-mean", "tolerance": 1e-6, **settings}
    return case(loss, "areal", peer, compute, note or IN_FLOAT32, **own)


def of_skyrl(suffix: str, *, note: str = "", theirs: dict[str, Any], **settings: Any) -> Parity:
    def compute(logprobs: Tensor, sampling: Tensor, rollout: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        name = "skyrl.backends.skyrl_train.utils.off_policy_correction_utils"
        module = imported(name, skyrl_core.ABSENT, skyrl_core.BARE)
        options = {**OFF_IN_SKYRL, **theirs}
        loss, kept, _ = module.apply_off_policy_correction(
            -advantages * logprobs, sampling, rollout, mask, SimpleNamespace(**options)
        )
        return (loss * kept).sum()

    shown = ",".join(f"{key}={value}" for key, value in theirs.items())
    peer = f"apply_off_policy_correction({shown})"
    return case(f"reinforce+{suffix}", "skyrl", peer, compute, note, reduction="sum", **settings)


OFF_IN_SKYRL = dict.fromkeys(
    (
        "tis_ratio_type",
        "sequence_mask_metric",
        "outlier_token_is_threshold_low",
        "outlier_token_is_threshold_high",
        "token_mask_is_threshold_low",
        "token_mask_is_threshold_high",
    )
)


def high_entropy(share: float) -> Parity:
    """`reinforce` at the tokens that TRL's own mask chooses; TRL multiplies its losses by it."""

    def compare() -> tuple[float, float]:
        loss = get_loss("reinforce+top_entropy", entropy_share=share, reduction="sum")
        value = gradient = 0.0
        for seed in range(6):
            rows = batch(seed, 0.3)
            entropy = (3 * torch.rand(rows.mask.shape, generator=torch.Generator().manual_seed(seed))).double()
            alone = SimpleNamespace(pad_across_processes=lambda x, **_: x, gather=lambda x: x)
            chosen = trainer_class("GRPOTrainer").get_high_entropy_mask(
                SimpleNamespace(accelerator=alone), entropy, rows.mask, 1 - share
            )
            here, there = (rows.logprobs.clone().requires_grad_() for _ in range(2))
            mine, _ = loss(rows.data(), {"logprobs": list(here), "entropy": list(entropy)})
            theirs = -(rows.advantages * there * chosen).sum()
            slopes = [torch.autograd.grad(one, own)[0] for one, own in ((mine, here), (theirs, there))]
            value = max(value, relative(mine.detach(), theirs.detach()))
            gradient = max(gradient, relative(*slopes))
        return value, gradient

    settings = {"entropy_share": share, "reduction": "sum"}
    peer = f"GRPOTrainer.get_high_entropy_mask({1 - share:g})"
    return Parity("reinforce+top_entropy", peer, "trl", compare, settings)


IN_FLOAT32 = "it computes ratios in float32"
IN_DENOMINATOR = "verl takes rejected tokens out of the denominator, which a sum has not"
SEQ_MASK_TIS = "seq-mask-tis: the geometric mean decides, tokens keep their own ratio"

CASES: list[Parity] = [
    of_verl("token_truncate", **{"is": "token"}, cap=2.0),
    of_verl("sequence_truncate", **{"is": "sequence"}, is_threshold=3.0, cap=3.0),
    of_verl("token_band", "verl's IcePop", **{"is": "token"}, is_threshold="0.5_2.0", low=0.5, high=2.0),
    of_verl("token_truncate_normalized", **{"is": "token"}, is_batch_normalize=True, cap=2.0),
    of_verl(
        "sequence_truncate_normalized",
        "verl adds 1e-8 to each length",
        **{"is": "sequence"},
        is_batch_normalize=True,
        cap=2.0,
        empty=False,
        tolerance=1e-7,
    ),
    *(
        of_verl(
            f"reject_{over}_k1", IN_DENOMINATOR, rs=theirs, bound=f"{low}_{high}", **ratios(f"{over}_k1", low, high)
        )
        for over, theirs, low, high in (
            ("token", "token_k1", 0.6, 1.5),
            ("sum", "seq_sum_k1", 0.5, 3.0),
            ("mean", "seq_mean_k1", 0.9, 1.2),
        )
    ),
    *(
        of_verl(f"reject_{over}_{one}", rs=f"{theirs}_{one}", bound=high, **{f"{over}_{one}_high": high})
        for one in ("k2", "k3")
        for over, theirs, high in (
            ("token", "token", 0.05),
            ("sum", "seq_sum", 0.6),
            ("mean", "seq_mean", 0.1),
            ("max", "seq_max", 0.25),
        )
    ),
    of_verl(
        "token_truncate+reject_mean_k3+reject_token_k1",
        rs="seq_mean_k3,token_k1",
        bound="0.12,0.5_2.0",
        **{"is": "token"},
        cap=2.0,
        mean_k3_high=0.12,
        **ratios("token_k1", 0.5, 2.0),
    ),
    out_of_the_denominator("seq_mean_k3", 0.1, divergence="k3", over="mean", high=0.1),
    out_of_the_denominator("token_k2", 0.05, divergence="k2", high=0.05),
    of_openrlhf("ppo+token_clamp", "TIS", theirs={"level": "token", "mode": "clip", "threshold": [0.5, 1.5]}, cap=1.5),
    of_openrlhf("ppo+token_band", "IcePop, the defaults of both", theirs={"level": "token"}),
    of_openrlhf(
        "ppo+token_uncapped+geometric_reject",
        SEQ_MASK_TIS,
        theirs={"level": "seq", "threshold": [0.9, 1.1]},
        low=0.9,
        high=1.1,
    ),
    *(
        of_openrlhf(
            f"ppo+token_uncapped+reject_{over}_{one}",
            theirs={"level": level, "gating": theirs, "threshold": [0.0, high]},
            **{f"{over}_{one}_high": high},
        )
        for one, theirs, high in (("binary_kl", "binary_kl", 0.01), ("tv", "tv", 0.05))
        for over, level in (("token", "token"), ("mean", "seq"))
    ),
    of_areal(
        "ppo+token_clamp",
        theirs={"action": "clamp", "lower": 0.7, "upper": 1.5},
        floor=0.7,
        cap=1.5,
    ),
    of_areal("ppo+token_band", theirs={"lower": 0.7, "upper": 1.5}, low=0.7, high=1.5),
    of_areal(
        "ppo+geometric_band",
        "its sequence level is the geometric mean",
        theirs={"level": "sequence", "lower": 0.9, "upper": 1.1},
        low=0.9,
        high=1.1,
    ),
    of_skyrl(
        "reject_max_k1",
        note="its outlier mask",
        theirs={"outlier_token_is_threshold_low": 0.5, "outlier_token_is_threshold_high": 2.0},
        max_k1_low=-math.log(2.0),
        max_k1_high=math.log(2.0),
    ),
    of_skyrl(
        "token_truncate+geometric_reject",
        theirs={
            "tis_ratio_type": "token",
            "token_tis_ratio_clip_high": 1.5,
            "sequence_mask_metric": "geometric",
            "geo_mask_low": 0.9,
            "geo_mask_high": 1.1,
        },
        note=IN_FLOAT32,
        cap=1.5,
        low=0.9,
        high=1.1,
        tolerance=1e-6,
    ),
    high_entropy(0.2),
    high_entropy(0.5),
]
