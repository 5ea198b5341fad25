"""Our advantages against verl's and SkyRL's own estimators: groups of several sizes, equal rewards, masks with holes."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossbook.losses import advantages, returns

from . import skyrl_core, verl_core
from .padded import WIDTH

pytestmark = pytest.mark.slow  # both take seconds to import

#: Two groups of unequal rewards, one of equal ones; no group of one: verl keeps its raw reward, SkyRL too, ours is 0.
GROUPS = np.array([0, 0, 1, 1, 1, 2, 2, 0])
REWARDS = torch.tensor([1.0, 0.0, 0.5, 2.0, -1.0, 0.75, 0.75, 0.25], dtype=torch.float64)
#: Of each row, without gaps, for what counts tokens; and with them.
LENGTHS = torch.tensor([5, 1, 9, 4, 7, 2, 6, 3])
MASK = (torch.arange(WIDTH) < LENGTHS[:, None]).double()
HOLES = MASK.clone()
HOLES[2, 4] = HOLES[4, 0] = HOLES[6, 2:4] = 0


def at_the_end(mask: Tensor) -> Tensor:
    """The rewards as both systems hold them: at each row's last token."""
    tokens = torch.zeros_like(mask)
    tokens[torch.arange(len(mask)), (mask * torch.arange(WIDTH)).argmax(1)] = REWARDS
    return tokens


def per_row(theirs: Tensor, mask: Tensor) -> Tensor:
    """One number per response, which it is at every token."""
    rows = theirs.sum(1) / mask.sum(1)
    torch.testing.assert_close(theirs, rows[:, None] * mask)
    return rows


def of_verl(name: str, mask: Tensor = MASK, **more: Any) -> Tensor:
    return verl_core.advantage(name)(token_level_rewards=at_the_end(mask), response_mask=mask, **more)[0]


def of_skyrl(name: str, mask: Tensor = MASK, **more: Any) -> Any:
    return skyrl_core.advantage(name)(token_level_rewards=at_the_end(mask), response_mask=mask, **more)


BY_GROUP = [
    ("grpo", {}, lambda: advantages.group_advantages(REWARDS, GROUPS)),
    ("grpo", {"norm_adv_by_std_in_grpo": False}, lambda: advantages.centred(REWARDS, GROUPS)),
    ("grpo_vectorized", {}, lambda: advantages.group_advantages(REWARDS, GROUPS)),
    ("rloo", {}, lambda: advantages.rloo(REWARDS, GROUPS)),
    ("rloo_vectorized", {}, lambda: advantages.rloo(REWARDS, GROUPS)),
    ("opo", {}, lambda: advantages.opo(REWARDS, LENGTHS, GROUPS)),
    (
        "reinforce_plus_plus_baseline",
        {},
        lambda: advantages.reinforce_plus_plus(REWARDS, GROUPS, lengths=LENGTHS),
    ),
    (
        "grpo_passk",
        {"config": {"norm_adv_by_std_in_grpo": False}},
        lambda: advantages.pass_at_k(REWARDS, GROUPS),
    ),
]


@pytest.mark.parametrize(("name", "options", "ours"), BY_GROUP, ids=[f"{one[0]}{i}" for i, one in enumerate(BY_GROUP)])
def test_advantages_of_groups_are_verls(name: str, options: dict[str, Any], ours: Any) -> None:
    theirs = per_row(of_verl(name, index=GROUPS, **options), MASK)
    torch.testing.assert_close(ours(), theirs, rtol=1e-6, atol=1e-6)


def test_gpg_s_alpha_and_normalisation_are_in_verls_advantages() -> None:
    theirs = per_row(of_verl("gpg", index=GROUPS), MASK)
    alpha = len(REWARDS) / int((REWARDS != 0).sum())
    torch.testing.assert_close(alpha * advantages.centred(REWARDS, GROUPS), theirs, rtol=1e-6, atol=1e-6)


def test_remax_is_verls_where_a_reward_is_at_the_end() -> None:
    baselines = REWARDS.flip(0)
    theirs = of_verl("remax", reward_baselines=baselines)
    torch.testing.assert_close(advantages.remax(REWARDS, baselines), per_row(theirs, MASK))


@pytest.mark.parametrize("mask", [MASK, HOLES], ids=["whole", "with holes"])
@pytest.mark.parametrize(("discount", "decay"), [(1.0, 1.0), (0.9, 0.95)])
def test_gae_is_verls_before_its_whitening(mask: Tensor, discount: float, decay: float) -> None:
    values = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, theirs = verl_core.advantage("gae")(at_the_end(mask), values, mask, discount, decay)
    for row, (rewards, own, active) in enumerate(zip(at_the_end(mask), values, mask, strict=True)):
        _, mine = returns.gae(rewards, own, mask=active, discount=discount, decay=decay)
        torch.testing.assert_close(mine * active, theirs[row] * active, msg=f"row {row}")


def test_gae_of_verl_and_skyrl_is_whitened_over_the_batchs_tokens() -> None:
    values = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, _ = verl_core.advantage("gae")(at_the_end(MASK), values, MASK, 1.0, 1.0)
    theirs, _ = of_skyrl("gae", values=values, gamma=1.0, lambd=1.0)
    ours = [returns.gae(r, v, mask=m, decay=1.0)[0] for r, v, m in zip(at_the_end(MASK), values, MASK, strict=True)]
    active = torch.cat([one[m > 0] for one, m in zip(ours, MASK, strict=True)])
    white = (active - active.mean()) / (active.var() + 1e-8).sqrt()
    torch.testing.assert_close(white, whole[MASK > 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(white, theirs[MASK > 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_reinforce_plus_plus_of_tokens_is_verls(discount: float) -> None:
    theirs = of_verl("reinforce_plus_plus", HOLES, config=SimpleNamespace(gamma=discount))
    ours = returns.reinforce_plus_plus_tokens(list(at_the_end(HOLES)), list(HOLES), discount=discount)
    torch.testing.assert_close(torch.stack(ours) * HOLES, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "ours"),
    [
        ("grpo", {}, lambda: advantages.group_advantages(REWARDS, GROUPS)),
        ("grpo", {"grpo_norm_by_std": False}, lambda: advantages.centred(REWARDS, GROUPS)),
        ("rloo", {}, lambda: advantages.rloo(REWARDS, GROUPS)),
        ("maxrl", {}, lambda: advantages.maxrl(REWARDS.abs(), GROUPS)),
    ],
    ids=["grpo", "grpo without a scale", "rloo", "maxrl"],
)
def test_advantages_of_groups_are_skyrls(
    name: str, options: dict[str, Any], ours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "loguru", SimpleNamespace(logger=logging.getLogger())
    )  # imported when it is called
    rewards = at_the_end(MASK).abs() if name == "maxrl" else at_the_end(MASK)
    theirs, _ = skyrl_core.advantage(name)(token_level_rewards=rewards, response_mask=MASK, index=GROUPS, **options)
    torch.testing.assert_close(ours(), per_row(theirs, MASK), rtol=1e-5, atol=1e-5)


def test_a_group_of_one_keeps_its_reward_in_verl_and_has_no_advantage_here() -> None:
    groups = np.arange(len(REWARDS))
    theirs = per_row(of_verl("grpo", index=groups, norm_adv_by_std_in_grpo=False), MASK)
    torch.testing.assert_close(theirs, REWARDS)
    assert not advantages.centred(REWARDS, groups).any()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("name", "mask"), [("optimal_token_baseline", MASK), ("tir_optimal_token_baseline", HOLES)], ids=["plain", "tir"]
)
def test_the_optimal_token_baseline_is_verls(name: str, mask: Tensor, weighted: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(*mask.shape, 11, generator=draw, dtype=torch.float64)
    of_all = logits.log_softmax(-1)
    logprobs, squares = of_all[..., 3], (2 * of_all).logsumexp(-1).exp()
    weights = (2 * torch.rand(mask.shape, generator=draw)).double() if weighted else None
    groups = np.where(np.arange(len(mask)) == 7, 9, GROUPS)  # and a group of one
    theirs = of_verl(
        name, mask, index=groups, old_log_probs=logprobs, sum_pi_squared=squares, rollout_is_weights=weights
    )
    ours = returns.optimal_token_baseline(at_the_end(mask), logprobs, squares, groups, masks=mask, weights=weights)
    torch.testing.assert_close(torch.stack(ours), theirs, rtol=1e-6, atol=1e-6)
