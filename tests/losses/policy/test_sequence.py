"""What is particular to the losses over a whole response's ratio: what is averaged, what is summed, who gets the gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lossbook import get_loss
from lossbook.datums.errors import ShapeError

from ..cases import datum, evaluated

OPEN = {"clip_low": 0.0, "clip_high": 1e30}


def response(
    name: str, log_ratios: list[float], advantages: list[float], *, weights: list[float] | None = None, **config: Any
) -> tuple[float, list[float], dict[str, float]]:
    """Loss, slopes and metrics of one response whose tokens the sampler gave -4 nats (which may be -40)."""
    inputs = {key: config.pop(key) for key in ("sequence_ratio_mask",) if key in config}
    start = -40.0 if max(map(abs, log_ratios)) > 4 else -4.0
    data = [
        datum(
            len(log_ratios),
            sampling_logprobs=[start] * len(log_ratios),
            advantages=advantages,
            weights=weights or [1.0] * len(log_ratios),
            **inputs,
        )
    ]
    loss = get_loss(name, reduction="sum", **config)
    value, gradients, metrics = evaluated(loss, data, [[start + x for x in log_ratios]])
    return value, gradients[0].tolist(), metrics


@pytest.mark.parametrize(
    ("name", "weights", "factor", "slopes"),
    [
        # s = exp(mean) and A = mean: (0.2 - 0.1) / 2 and 2, or (0.2 - 3 * 0.1) / 4 and (1 + 3 * 3) / 4.
        pytest.param("gspo", [1.0, 1.0], (2.0, 0.05), (1.0, 1.0), id="gspo: a mean of log-ratios, of advantages"),
        pytest.param("gspo", [1.0, 3.0], (2.5, -0.025), (0.625, 1.875), id="gspo: means are weighted"),
        pytest.param("luspo", [1.0, 1.0], (4.0, 0.05), (2.0, 2.0), id="luspo: times 2 tokens"),
        pytest.param("luspo", [1.0, 3.0], (10.0, -0.025), (2.5, 7.5), id="luspo: times the sum of weights"),
        pytest.param("rloo", [1.0, 1.0], (2.0, 0.1), (2.0, 2.0), id="rloo: a sum of log-ratios"),
        pytest.param("rloo", [1.0, 3.0], (2.5, -0.1), (2.5, 7.5), id="rloo: a weighted sum"),
    ],
)
def test_one_ratio_a_response_weighs_one_advantage(
    name: str, weights: list[float], factor: tuple[float, float], slopes: tuple[float, float]
) -> None:
    value, gradients, metrics = response(name, [0.2, -0.1], [1.0, 3.0], weights=weights, **OPEN)
    scale, log_ratio = factor
    assert value == pytest.approx(-scale * math.exp(log_ratio))
    assert gradients == pytest.approx([-slope * math.exp(log_ratio) for slope in slopes])
    assert metrics["sequence_ratio_min"] == metrics["sequence_ratio_max"] == pytest.approx(math.exp(log_ratio))


@pytest.mark.parametrize(
    ("name", "log_ratio", "advantage", "bound"),
    [
        pytest.param("gspo", 5e-4, +2.0, 1 + 4e-4, id="gspo: risen by 5e-4, rewarded"),
        pytest.param("gspo", -4e-4, -2.0, 1 - 3e-4, id="gspo: fallen by 4e-4, punished"),
        pytest.param("gspo", 5e-4, -2.0, None, id="gspo: risen, punished"),
        pytest.param("gspo", 3e-4, +2.0, None, id="gspo: risen by 3e-4 only"),
        pytest.param("luspo", 5e-4, +2.0, 1 + 4e-4, id="luspo: risen by 5e-4, rewarded"),
        pytest.param("gspo_token", 5e-4, +2.0, 1 + 4e-4, id="gspo_token: risen by 5e-4, rewarded"),
        pytest.param("gspo_token", -4e-4, +2.0, None, id="gspo_token: fallen, rewarded"),
        pytest.param("rloo", 0.19, +2.0, 1.2, id="rloo: risen by 0.19, rewarded"),
        pytest.param("rloo", -0.23, -2.0, 0.8, id="rloo: fallen by 0.23, punished"),
        pytest.param("rloo", 0.19, -2.0, None, id="rloo: risen, punished"),
    ],
)
def test_a_response_is_clipped_on_the_side_its_advantage_pushes_to(
    name: str, log_ratio: float, advantage: float, bound: float | None
) -> None:
    value, (slope,), metrics = response(name, [log_ratio], [advantage])
    ratio = math.exp(log_ratio) if bound is None else bound
    assert value == pytest.approx(-ratio * advantage, rel=1e-9)
    assert slope == pytest.approx(0.0 if bound else -ratio * advantage, rel=1e-9)
    assert metrics["clip_fraction"] == (bound is not None)


@pytest.mark.parametrize("name", ["gspo", "gspo_token", "rloo"])
@pytest.mark.parametrize(
    ("log_ratio", "slope"),
    [
        pytest.param(20.0, math.exp(20), id="exactly at 20 nats: still a gradient"),
        pytest.param(30.0, 0.0, id="at 30 nats: held at 20, without a gradient"),
    ],
)
def test_a_responses_log_ratio_is_capped(name: str, log_ratio: float, slope: float) -> None:
    value, (gradient,), _ = response(name, [log_ratio], [-1.0], **OPEN)
    assert value == pytest.approx(math.exp(20))
    assert gradient == pytest.approx(slope)


@pytest.mark.parametrize(
    ("mask", "ratio"),
    [
        pytest.param(None, math.exp(0.05), id="without a mask the mean is over all tokens"),
        pytest.param([1, 0], math.exp(0.2), id="over the first alone"),
        pytest.param([0, 1], math.exp(-0.1), id="over the second alone"),
        pytest.param([0, 0], 1.0, id="over none: the ratio is 1"),
    ],
)
def test_gspo_token_takes_the_mean_where_it_is_told_and_gives_every_token_a_gradient(
    mask: list[float] | None, ratio: float
) -> None:
    inputs = {} if mask is None else {"sequence_ratio_mask": mask}
    value, gradients, _ = response("gspo_token", [0.2, -0.1], [1.0, 3.0], **OPEN, **inputs)
    assert value == pytest.approx(-4 * ratio)
    assert gradients == pytest.approx([-ratio, -3 * ratio])


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "slopes"),
    [
        pytest.param(+1.0, -0.1, (0, 1), id="rewarded: 0.6 is held at 0.4, -0.6 counts in full"),
        pytest.param(-1.0, +0.1, (1, 0), id="punished: -0.6 is held at -0.4, 0.6 counts in full"),
    ],
)
def test_gmpo_clips_tokens_in_log_space_on_the_side_the_advantage_pushes_to(
    advantage: float, log_ratio: float, slopes: tuple[float, float]
) -> None:
    value, gradients, metrics = response("gmpo", [0.6, -0.6], [advantage] * 2)
    assert value == pytest.approx(-advantage * math.exp(log_ratio))
    assert gradients == pytest.approx([-advantage * math.exp(log_ratio) * slope / 2 for slope in slopes])
    assert metrics["clip_fraction"] == 0.5


@pytest.mark.parametrize("advantage", [1.0, -1.0], ids=["rewarded", "punished"])
def test_exactly_at_its_bound_a_token_of_gmpo_keeps_its_gradient(advantage: float) -> None:
    value, (slope,), metrics = response("gmpo", [0.0], [advantage], log_clip_low=0.0, log_clip_high=0.0)
    assert (value, slope, metrics["clip_fraction"]) == (-advantage, -advantage, 0)


@pytest.mark.parametrize("log_ratios", [[0.6, 0.5], [-0.6, -0.5]], ids=["likelier", "less likely"])
def test_gmpo_clips_no_token_where_nothing_pushes(log_ratios: list[float]) -> None:
    value, slopes, metrics = response("gmpo", log_ratios, [0.0, 0.0])
    assert (value, slopes, metrics["clip_fraction"]) == (0, [0, 0], 0)


def test_gmpo_of_a_response_far_from_its_sampler_is_capped() -> None:
    value, gradients, _ = response("gmpo", [30.0], [-1.0])
    assert value == pytest.approx(math.exp(20))
    assert gradients == [0.0]


HALF_LOG_2 = math.log(2) / 2


@pytest.mark.parametrize(
    ("log_ratios", "advantage", "config", "weight"),
    [
        pytest.param([0.0, 0.0], 1.0, {}, 1.0, id="on policy: the plain policy gradient"),
        pytest.param([0.3, -0.3], -1.0, {}, 1.0, id="as likely as before, by other tokens: the same"),
        pytest.param([HALF_LOG_2] * 2, 1.0, {}, 4 * math.exp(-3), id="twice as likely, rewarded: 2² exp(-3)"),
        pytest.param([HALF_LOG_2] * 2, -1.0, {}, 8 * math.exp(-2), id="twice as likely, punished: 2³ exp(-2)"),
        pytest.param([HALF_LOG_2] * 2, 0.0, {}, 4 * math.exp(-3), id="no advantage: the weight of the rewarded"),
        pytest.param([-30.0, 20.0], 1.0, {}, 1.0, id="30 nats count as 20"),
        pytest.param([-15.0, -15.0], 1.0, {"k_positive": 0.5}, 1e-4 * math.exp(3), id="the ratio is at least 1e-8"),
        pytest.param([15.0, 15.0], 1.0, {"lambda_positive": 1e-9}, math.exp(40 - 0.4851651954), id="at most exp(20)"),
    ],
)
def test_vespo_weighs_a_response_by_its_ratio(
    log_ratios: list[float], advantage: float, config: dict[str, float], weight: float
) -> None:
    value, gradients, metrics = response("vespo", log_ratios, [advantage] * 2, **config)
    start = -40.0 if max(map(abs, log_ratios)) > 4 else -4.0
    assert metrics["response_weight"] == pytest.approx(weight, rel=1e-6)
    assert gradients == pytest.approx([-weight * advantage] * 2, rel=1e-6)
    assert value == pytest.approx(-weight * advantage * (2 * start + sum(log_ratios)), rel=1e-6)


@pytest.mark.parametrize(("alias", "name"), [("gspo-token", "gspo_token"), ("geo_mean", "gmpo")])
def test_other_names_of_the_same_loss(alias: str, name: str) -> None:
    assert get_loss(alias).name == name


@pytest.mark.parametrize("name", ["gspo", "gspo_token", "clip_cov"])
def test_several_targets_a_position_are_refused_where_tokens_are_coupled(name: str) -> None:
    wide = datum([[1, 2]], weights=[[1.0, 1.0]], sampling_logprobs=[[-1.0, -1.0]], advantages=[1.0])
    with pytest.raises(ShapeError) as caught:
        get_loss(name).check([wide])
    why = {"gspo": "has one value per datum", "clip_cov": "couples the tokens of a batch"}
    assert str(caught.value) == (
        f"{name} {why.get(name, 'couples the tokens of a datum')}, so it reads one token per position, but target_tokens of "
        "datum 0 of 1 is [N, K] with K = 2. Give target_tokens, and what goes with them, one number per position"
    )
