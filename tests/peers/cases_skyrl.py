"""Losses against SkyRL's own policy losses and critic, after its trainer's division of advantages: see padded.py for the batches.

SkyRL takes exp in float32, so most of these agree to 1e-6 of their size and no further.
"""

from __future__ import annotations

from typing import Any

from lossbook import get_loss

from .padded import FINITE, SPREADS, differences
from .parity import Parity
from .skyrl_core import PACKAGE, policy, scaled

FLOAT32 = "SkyRL takes exp in float32"
UNCAPPED = "no draw with log-ratios of ±40: SkyRL does not cap them here"
#: Rows that are masked whole count in SkyRL's mean over sequences, so there is none.
SEQUENCES = {"loss_reduction": "sequence_mean"}


def case(
    loss: str,
    mode: str,
    note: str,
    options: dict[str, Any] | None = None,
    *,
    finite: bool = False,
    empty: bool = True,
    divided: bool = False,
    **settings: Any,
) -> Parity:
    """One loss of ours against SkyRL's `mode` with its options. divided: ours is given divided advantages too."""
    shown = ",".join(f"{key}={value}" for key, value in (options or {}).items())
    more: dict[str, Any] = {"data": scaled} if divided else {}
    return Parity(
        loss=loss,
        peer=f"ppo_utils.{mode}({shown})",
        package=PACKAGE,
        settings=settings,
        differences=lambda: differences(
            get_loss(loss, **settings),
            policy(mode, **(options or {})),
            spreads=FINITE if finite else SPREADS,
            empty=empty,
            **more,
        ),
        tolerance=1e-5,
        note=note,
    )


CASES: list[Parity] = [
    case("ppo", "regular", FLOAT32, reduction="token-mean"),
    case("dual_clip", "dual_clip", FLOAT32),
    case("ppo", "regular", f"{FLOAT32}; no row masked whole", SEQUENCES, empty=False, reduction="seq-mean-token-mean"),
    case(
        "dr_grpo",
        "regular",
        f"{FLOAT32}; no row masked whole",
        {"loss_reduction": "seq_mean_token_sum_norm", "max_seq_len": 9},
        empty=False,
        norm_length=9,
    ),
    case(
        "gspo_token",
        "gspo",
        f"no row masked whole; {UNCAPPED}, at 10",
        SEQUENCES,
        empty=False,
        finite=True,
        clip_low=0.8,
        clip_high=1.2,
        reduction="seq-mean-token-mean",
    ),
    case("sapo", "sapo", "no row masked whole", SEQUENCES, empty=False),
    case(
        "cispo",
        "cispo",
        f"bounds 1 and 6 are SkyRL's distances 0 and 5 from 1; {FLOAT32}",
        clip_low=1.0,
        clip_high=6.0,
        reduction="token-mean",
    ),
    case("rollout_is", "rollout_is", FLOAT32),
    case("dppo", "dppo", FLOAT32),
    case(
        "dppo",
        "dppo",
        FLOAT32,
        {"dppo_type": "binary_kl", "delta_low": 0.05, "delta_high": 0.05},
        divergence="binary_kl",
        delta_low=0.05,
        delta_high=0.05,
    ),
    case(
        "clip_cov",
        "clip_cov",
        f"divided advantages for both; every candidate is taken, since the draws differ; {UNCAPPED}",
        {"clip_ratio": 1.0, "clip_cov_lb": 0.0},
        divided=True,
        finite=True,
        share=1.0,
        covariance_low=0.0,
        reduction="sum",
    ),
    case(
        "kl_cov",
        "kl_cov",
        f"divided advantages for both; {UNCAPPED}",
        divided=True,
        finite=True,
        share=0.2,
        kl_coefficient=1.0,
        reduction="sum",
    ),
    case("importance_sampling", "importance_sampling", UNCAPPED, finite=True, reduction="token-mean"),
    case("cross_entropy", "cross_entropy", "a sum", reduction="sum"),
]
