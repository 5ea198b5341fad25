"""Losses against OpenRLHF's and AReaL's own functions, verl's and SkyRL's critics and KL estimators: see padded.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossbook import get_loss

from . import skyrl_core, verl_core
from .packages import imported
from .padded import FINITE, SPREADS, Batch, batch, differences, relative
from .parity import Parity
from .verl_core import Peer

TINY = "OpenRLHF adds 1e-8 to each length"
UNCAPPED = "no draw with log-ratios of ±40: they are not capped there"


def openrlhf(name: str, **settings: Any) -> Callable[..., Any]:
    """One of the loss modules of openrlhf.models.loss."""
    return getattr(imported("openrlhf.models.loss", ("deepspeed",), ("openrlhf.models",)), name)(**settings)


def openrlhf_policy(**settings: Any) -> Peer:
    def compute(logprobs: Tensor, sampling: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        return openrlhf("PolicyLoss", **settings)(logprobs, sampling, advantages, mask)[0]

    return compute


#: What AReaL imports, and its losses do without.
AREAL_ABSENT = ("uvloop", "hydra", "omegaconf", "tensordict", "numba", "lark", "torchdata", "aiofiles", "areal.infra")
AREAL_ABSENT += ("areal.experimental", "areal.utils.constants", "areal.utils.data", "areal.utils.logging")
AREAL_ABSENT += ("areal.utils.perf_tracer", "areal.utils.seqpack", "areal.utils.stats_tracker")


def areal() -> Any:
    """The module areal.utils.functional.functional."""
    return imported("areal.utils.functional.functional", AREAL_ABSENT, ("areal", "areal.utils"))


def areal_policy(**settings: Any) -> Peer:
    def compute(logprobs: Tensor, sampling: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        own = {"eps_clip": 0.2, **settings}
        return areal().ppo_actor_loss_fn(logprobs, sampling, sampling, advantages, loss_mask=mask.bool(), **own)[0]

    return compute


def areal_m2po(logprobs: Tensor, sampling: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    """AReaL's mask at 0.04 and its loss without a clip, over all tokens instead of those that are left."""
    losses = areal()
    actor = imported("areal.trainer.ppo.actor", AREAL_ABSENT, ("areal.trainer", "areal.trainer.ppo"))
    left = actor._apply_m2po_masking(sampling, logprobs.detach(), mask.bool(), 0.04)
    loss, _ = losses.ppo_actor_loss_fn(logprobs, sampling, sampling, advantages, eps_clip=1e9, loss_mask=left)
    return loss * left.sum() / mask.sum()


def areal_sapo(logprobs: Tensor, sampling: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    return areal().sapo_loss_fn(logprobs, sampling, advantages, 1.0, 1.05, mask.bool())[0]


def verl_kl(estimator: str) -> Peer:
    """A KL term of verl's actor: its estimator, aggregated as a token-mean."""

    def compute(logprobs: Tensor, sampling: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        core = verl_core.core()
        return core.agg_loss(core.kl_penalty(logprobs, reference, estimator), mask, "token-mean")

    return compute


def skyrl_kl(estimator: str) -> Peer:
    """A KL term of SkyRL's trainer: the mean over sequences of token means."""

    def compute(logprobs: Tensor, sampling: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        core = skyrl_core.core()
        kl = core.compute_approx_kl(logprobs, reference, mask, kl_estimator_type=estimator)
        return core.masked_mean(kl, mask, dim=-1).mean()

    return compute


def critics(
    peer: Callable[[Tensor, Batch], Tensor], loss: Any, *, double: bool = True, **kind: bool
) -> tuple[float, float]:
    """Value losses: predictions in place of logprobs, old values of sampling's, returns of the reference's."""
    value = gradient = 0.0
    for seed, spread in enumerate(FINITE):
        rows = batch(seed, spread, **kind)
        here, there = (rows.logprobs.to(torch.float64 if double else torch.float32).requires_grad_() for _ in range(2))
        data = rows.data(old_values=rows.sampling, returns=rows.reference)
        mine, _ = loss(data, {"values": list(here)})
        theirs = peer(there, rows)
        (slope,) = torch.autograd.grad(mine, here)
        (expected,) = torch.autograd.grad(theirs, there)
        value = max(value, relative(mine.detach(), theirs.detach()))
        gradient = max(gradient, relative(slope, expected))
    return value, gradient


def verl_critic(values: Tensor, rows: Batch) -> Tensor:
    return verl_core.core().compute_value_loss(values, rows.reference, rows.sampling, rows.mask, cliprange_value=0.5)[0]


def skyrl_critic(values: Tensor, rows: Batch) -> Tensor:
    return skyrl_core.critic(values, rows.sampling, rows.reference, rows.mask)


def openrlhf_critic(values: Tensor, rows: Batch) -> Tensor:
    return openrlhf("ValueLoss", clip_eps=0.2)(values, rows.sampling, rows.reference, rows.mask)


def areal_critic(values: Tensor, rows: Batch) -> Tensor:
    asked = (values, rows.sampling.float(), rows.reference.float())
    return areal().ppo_critic_loss_fn(*asked, value_eps_clip=0.2, loss_mask=rows.mask.bool())[0]


def case(loss: str, package: str, peer: str, theirs: Peer, note: str = "", **more: Any) -> Parity:
    """One loss of ours against a function of logprobs. `more`: finite, tolerance, empty, and settings of ours."""
    finite, tolerance = more.pop("finite", False), more.pop("tolerance", 1e-9)
    kind = {key: more.pop(key) for key in ("empty", "per_response") if key in more}
    return Parity(
        loss=loss,
        peer=peer,
        package=package,
        settings=more,
        differences=lambda: differences(get_loss(loss, **more), theirs, spreads=FINITE if finite else SPREADS, **kind),
        tolerance=tolerance,
        note=note,
    )


def critic(package: str, peer: str, theirs: Callable[[Tensor, Batch], Tensor], note: str = "", **more: Any) -> Parity:
    """`value_clip` against a critic's loss."""
    kind = {key: more.pop(key) for key in ("empty", "double", "tolerance") if key in more}
    tolerance = kind.pop("tolerance", 1e-9)
    run = lambda: critics(theirs, get_loss("value_clip", **more), **kind)  # noqa: E731
    return Parity("value_clip", peer, package, run, more, tolerance, note)


_PER_SEQUENCE = {"reduction": "seq-mean-token-mean"}

CASES: list[Parity] = [
    case("ppo", "openrlhf", "PolicyLoss()", openrlhf_policy(), "the defaults of theirs", reduction="token-mean"),
    case("dual_clip", "openrlhf", "PolicyLoss(dual_clip=3.0)", openrlhf_policy(dual_clip=3.0), "off by default there"),
    case(
        "ppo",
        "openrlhf",
        "PolicyLoss(token_level_loss=False)",
        openrlhf_policy(token_level_loss=False),
        TINY,
        tolerance=1e-6,
        **_PER_SEQUENCE,
    ),
    case(
        "gspo",
        "openrlhf",
        "PolicyLoss(policy_loss_type=gspo)",
        openrlhf_policy(policy_loss_type="gspo"),
        f"one advantage per response, since the gradient goes through the mean; {TINY}; {UNCAPPED}",
        finite=True,
        tolerance=1e-6,
        per_response=True,
        clip_low=0.8,
        clip_high=1.2,
    ),
    case(
        "ppo", "areal", "ppo_actor_loss_fn(eps_clip=0.2)", areal_policy(), UNCAPPED, finite=True, reduction="token-mean"
    ),
    case(
        "dapo",
        "areal",
        "ppo_actor_loss_fn(eps_clip=0.2,eps_clip_higher=0.28)",
        areal_policy(eps_clip_higher=0.28),
        UNCAPPED,
        finite=True,
    ),
    case(
        "dual_clip",
        "areal",
        "ppo_actor_loss_fn(eps_clip=0.2,c_clip=3.0)",
        areal_policy(c_clip=3.0),
        UNCAPPED,
        finite=True,
    ),
    case(
        "m2po",
        "areal",
        "_apply_m2po_masking(m2_threshold=0.04)",
        areal_m2po,
        f"over all tokens, without AReaL's clip, and of the policy itself; {UNCAPPED}",
        finite=True,
    ),
    case(
        "sapo",
        "areal",
        "sapo_loss_fn(tau_pos=1.0,tau_neg=1.05)",
        areal_sapo,
        f"a token-mean there; {UNCAPPED}",
        finite=True,
        reduction="token-mean",
    ),
    *(
        case(
            "reference_kl",
            "verl",
            f"kl_penalty({theirs}) with agg_loss(token-mean)",
            verl_kl(theirs),
            note,
            finite=True,
            reduction="token-mean",
            estimator=ours,
        )
        for ours, theirs, note in (
            ("k1", "k1", ""),
            ("k2", "mse", ""),
            ("k3", "low_var_kl", "no draw beyond its cap at ±10"),
            ("abs", "abs", ""),
            ("k1+", "k1+", ""),
            ("k3+", "k3+", "no draw beyond its cap at ±10"),
        )
    ),
    *(
        case(
            "reference_kl",
            "skyrl",
            f"ppo_utils.compute_approx_kl({name}), a mean over sequences",
            skyrl_kl(name),
            "no row masked whole, which SkyRL counts",
            finite=True,
            empty=False,
            estimator=name,
            **_PER_SEQUENCE,
        )
        for name in ("k1", "k2", "k3", "abs")
    ),
    critic("verl", "compute_value_loss(cliprange_value=0.5)", verl_critic, "verl's default clip", clip=0.5),
    critic(
        "skyrl",
        "ppo_utils.ppo_critic_loss()",
        skyrl_critic,
        "no row masked whole, which SkyRL counts",
        empty=False,
        **_PER_SEQUENCE,
    ),
    critic("openrlhf", "ValueLoss(clip_eps=0.2)", openrlhf_critic, "no clip by default there"),
    critic(
        "areal",
        "ppo_critic_loss_fn(value_eps_clip=0.2)",
        areal_critic,
        "float32 throughout",
        double=False,
        tolerance=1e-5,
    ),
]
