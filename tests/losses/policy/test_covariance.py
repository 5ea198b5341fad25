"""What is particular to the losses that hold back tokens of high covariance: which these are, and that lots are fair."""

from __future__ import annotations

from typing import Any

import pytest

from lossbook import get_loss
from lossbook.datums.errors import LossConfigError

from ..cases import assert_rows_equal, datum, evaluated

#: Means -2 and 0, so that the covariances are A (p + 2): 2, 2, -2 and -2.
LOGPROBS = [-1.0, -3.0, -3.0, -1.0]
ADVANTAGES = [2.0, -2.0, 2.0, -2.0]
PLAIN = [-a for a in ADVANTAGES]


def slopes(
    name: str, *, behind: float = 0.0, logprobs: list[float] | None = None, **config: Any
) -> tuple[float, list[float], dict[str, float]]:
    """Of one response whose sampler was `behind` nats below the policy."""
    row = LOGPROBS if logprobs is None else logprobs
    data = [datum(4, sampling_logprobs=[p - behind for p in row], advantages=ADVANTAGES)]
    value, gradients, metrics = evaluated(get_loss(name, reduction="sum", **config), data, [row])
    return value, gradients[0].tolist(), metrics


def test_clip_cov_silences_one_of_the_candidates_whichever_the_seed_draws() -> None:
    seen = set()
    for seed in range(20):
        _, gradients, metrics = slopes("clip_cov", seed=seed)
        assert metrics["covariance_fraction"] == 0.25
        assert gradients[2:] == PLAIN[2:]
        assert sorted(gradients[:2]) in ([-2.0, 0.0], [0.0, 2.0])
        seen.add(tuple(gradients[:2]))
    assert seen == {(0.0, 2.0), (-2.0, 0.0)}


def test_without_a_seed_the_lots_are_those_of_seed_0() -> None:
    assert slopes("clip_cov")[1] == slopes("clip_cov", seed=0)[1]
    assert get_loss("clip_cov").settings["seed"] == 0


def test_every_token_is_drawn_about_as_often() -> None:
    # Of four candidates, over 400 seeds each is expected 100 times, with a deviation of 9.
    counts = [0] * 4
    for seed in range(400):
        _, gradients, _ = slopes("clip_cov", seed=seed, covariance_low=-3.0)
        counts[gradients.index(0.0)] += 1
    assert min(counts) > 60
    assert max(counts) < 140


@pytest.mark.parametrize(
    ("config", "silent"),
    [
        pytest.param({"covariance_low": 2.0}, 0, id="a covariance of exactly the lower bound is no candidate"),
        pytest.param({"covariance_high": 2.0}, 0, id="nor one of exactly the upper"),
        pytest.param({"covariance_low": 1.9, "covariance_high": 2.1}, 1, id="just between them it is"),
        pytest.param({"share": 0.5}, 2, id="half of four tokens are both candidates"),
        pytest.param({"share": 0.49}, 1, id="0.49 of four are 1.96 tokens, so one"),
        pytest.param({"share": 1.0}, 2, id="never more than there are candidates"),
        pytest.param({"share": 0.0}, 1, id="never fewer than one"),
    ],
)
def test_clip_cov_silences_the_share_of_tokens_between_its_bounds(config: dict[str, float], silent: int) -> None:
    _, gradients, metrics = slopes("clip_cov", **config)
    assert gradients.count(0.0) == silent
    assert metrics["covariance_fraction"] == silent / 4


def test_a_token_that_ppo_clips_is_no_candidate() -> None:
    # All have risen by half a nat: PPO clips the rewarded ones, so only the second is left to draw.
    for seed in range(5):
        _, gradients, metrics = slopes("clip_cov", behind=0.5, seed=seed)
        assert gradients[:3] == [0.0, 0.0, 0.0]
        assert gradients[3] > 2
        assert (metrics["clip_fraction"], metrics["covariance_fraction"]) == (0.5, 0.25)


def test_tokens_whose_numbers_agree_are_drawn_together() -> None:
    data = [datum(4, sampling_logprobs=LOGPROBS, advantages=ADVANTAGES)] * 2
    _, gradients, metrics = evaluated(get_loss("clip_cov", reduction="sum"), data, [LOGPROBS, LOGPROBS])
    assert_rows_equal(gradients[:1], gradients[1:], 0)
    assert metrics["covariance_fraction"] == 0.25


@pytest.mark.parametrize(
    ("logprobs", "config", "held"),
    [
        pytest.param([-1.0, -3.5, -2.5, -1.0], {}, [1], id="the one of highest covariance"),
        pytest.param(LOGPROBS, {}, [0, 1], id="both that tie for it"),
        pytest.param([-1.0, -3.5, -2.5, -1.0], {"share": 0.5}, [0, 1], id="half of four"),
        pytest.param([-1.0, -3.5, -2.5, -1.0], {"share": 0.49}, [1], id="0.49 of four are 1.96, so one"),
    ],
)
def test_kl_cov_holds_back_the_tokens_of_highest_covariance(
    logprobs: list[float], config: dict[str, float], held: list[int]
) -> None:
    # All have risen by half a nat, so the penalty adds 0.25 * 0.5 to the value and 0.25 to the slope.
    value, gradients, metrics = slopes("kl_cov", behind=0.5, logprobs=logprobs, kl_coefficient=0.25, **config)
    ratio = 1.6487212707001282  # exp(0.5)
    assert gradients == pytest.approx([-ratio * a + 0.25 * (i in held) for i, a in enumerate(ADVANTAGES)])
    assert value == pytest.approx(0.25 * 0.5 * len(held))  # the ratios' terms cancel
    assert metrics["covariance_fraction"] == len(held) / 4


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_one_token_alone_has_no_covariance(name: str) -> None:
    data = [datum(1, sampling_logprobs=[-1.0], advantages=[1.0])]
    value, gradients, _ = evaluated(get_loss(name, reduction="sum"), data, [[-1.0]])
    assert (value, float(gradients[0])) == (-1.0, -1.0)


def test_a_band_needs_a_width() -> None:
    with pytest.raises(
        LossConfigError, match="covariance_low=1 is not below covariance_high=1, so no token could be drawn"
    ):
        get_loss("clip_cov", covariance_low=1.0, covariance_high=1.0)


def test_zero_draws_the_same_lot_with_either_sign() -> None:
    def drawn(zero: float, seed: int) -> list[float]:
        data = [datum(4, sampling_logprobs=[zero, -1.0, zero, -2.0], advantages=[1.0, -1.0, 2.0, -2.0])]
        loss = get_loss("clip_cov", reduction="sum", seed=seed, covariance_low=-9.0, covariance_high=9.0)
        return evaluated(loss, data, [[zero, -1.0, zero, -2.0]])[1][0].tolist()

    assert [drawn(0.0, seed) for seed in range(12)] == [drawn(-0.0, seed) for seed in range(12)]
