"""Losses against verl's own policy losses, value loss and KL estimators, in float64: see padded.py for the batches."""

from __future__ import annotations

from typing import Any

from lossbook import get_loss

from .padded import FINITE, SPREADS, differences
from .parity import Parity
from .verl_core import PACKAGE, policy

#: The term that verl adds to the length of a response before it divides.
TINY = "verl adds 1e-8 to each length"
UNCAPPED = "no draw with log-ratios of ±40: verl does not cap them here"


def case(
    loss: str,
    mode: str,
    note: str = "",
    options: dict[str, Any] | None = None,
    *,
    finite: bool = False,
    tolerance: float = 1e-9,
    kind: dict[str, bool] | None = None,
    **settings: Any,
) -> Parity:
    """One loss of ours with its settings against verl's `mode` with its options. kind: of the batch; finite: no spread of ±40."""
    shown = ",".join(f"{key}={value}" for key, value in (options or {}).items())
    return Parity(
        loss=loss,
        peer=f"compute_policy_loss_{mode}({shown})",
        package=PACKAGE,
        settings=settings,
        differences=lambda: differences(
            get_loss(loss, **settings),
            policy(mode, **(options or {})),
            spreads=FINITE if finite else SPREADS,
            **(kind or {}),
        ),
        tolerance=tolerance,
        note=note,
    )


#: verl's loss_agg_mode and what of ours is the same.
AGGREGATIONS: dict[str, dict[str, Any]] = {
    "token-mean": {"reduction": "token-mean"},
    "token-sum": {"reduction": "sum"},
    "seq-mean-token-sum": {"reduction": "seq-mean-token-sum"},
    "seq-mean-token-mean": {"reduction": "seq-mean-token-mean"},
}

CASES: list[Parity] = [
    case("dual_clip", "vanilla", "the defaults of both"),
    *(
        case(
            "dual_clip",
            "vanilla",
            TINY if mode == "seq-mean-token-mean" else "",
            {"loss_agg_mode": mode},
            tolerance=1e-6 if mode == "seq-mean-token-mean" else 1e-9,
            **ours,
        )
        for mode, ours in AGGREGATIONS.items()
        if mode != "token-mean"
    ),
    case(
        "ppo",
        "vanilla",
        "a bound of the dual clip that nothing reaches",
        {"clip_ratio_c": 1e12},
        reduction="token-mean",
    ),
    case("dual_clip", "bypass_mode", "its weights are metrics only unless loss_type is reinforce"),
    case("gspo_token", "gspo", UNCAPPED + ", at 10", finite=True, clip_low=0.8, clip_high=1.2, reduction="token-mean"),
    case("gpg", "gpg", "the defaults of both"),
    case("cispo", "cispo", "verl's bounds", clip_low=0.8, clip_high=1.2, reduction="token-mean"),
    case("sapo", "sapo", TINY, tolerance=1e-6),
    case(
        "gmpo",
        "geo_mean",
        f"one advantage per response and no row masked whole, which verl counts; {TINY}; {UNCAPPED}",
        {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4},
        finite=True,
        tolerance=1e-6,
        kind={"empty": False, "per_response": True},
    ),
    case("dppo", "dppo_tv", "the defaults of verl, which truncates r at 3", ratio_cap=3.0),
    case(
        "dppo",
        "dppo_kl",
        "a smaller bound than verl's 0.2",
        {"clip_ratio_low": 0.02, "clip_ratio_high": 0.05, "clip_ratio_c": 1.5},
        divergence="binary_kl",
        delta_low=0.02,
        delta_high=0.05,
        ratio_cap=1.5,
    ),
    *(
        case(
            "topr",
            "bypass_mode",
            "the same bounds for both signs",
            {"loss_type": "reinforce", "rollout_is": level},
            level=level,
            positive_low=0.0,
            positive_high=2.0,
            negative_high=2.0,
            reduction="token-mean",
        )
        for level in ("token", "sequence")
    ),
    case("dro", "dro", "beta has to be set in verl", {"dro_beta": 0.05}, beta=0.05, reduction="token-mean"),
    case(
        "clip_cov",
        "clip_cov",
        f"every candidate is taken, since the draws differ; {UNCAPPED}",
        {"clip_cov_ratio": 1.0},
        finite=True,
        share=1.0,
        reduction="token-mean",
    ),
    case(
        "kl_cov",
        "kl_cov",
        UNCAPPED,
        {"kl_cov_ratio": 0.2},
        finite=True,
        share=0.2,
        kl_coefficient=0.1,
        reduction="token-mean",
    ),
]
