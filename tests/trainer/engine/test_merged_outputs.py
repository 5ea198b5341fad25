"""Several calls' metrics merge to those of one call over all the data, however unevenly the data were divided."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.losses import stats
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.responses import ForwardBackwardOutput, merge_outputs

MakeDatums = Callable[..., list[lb.Datum]]


def of_all_kinds(logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor) -> Any:
    """A loss that reports a metric of each kind, none of whose names says which."""
    ratio = (logprobs - sampling_logprobs).exp()
    return -ratio * advantages, {
        "clip_max": stats.mean(ratio > 1.1),
        "least": stats.min(ratio),
        "most": stats.max(ratio),
        "added": stats.sum(advantages),
    }


def output_with(**metrics: stats.Stat) -> ForwardBackwardOutput:
    return ForwardBackwardOutput([], stats.values(metrics), stats=metrics)


def test_means_weigh_by_what_they_were_taken_over_sums_add_up_and_extremes_stay() -> None:
    small, large = torch.tensor([1.0]), torch.tensor([0.0, 0.0, -2.0, *[0.0] * 6])
    parts = [
        output_with(
            clip_fraction=stats.mean(x == 1), tokens=stats.sum(x * 0 + 1), least=stats.min(x), most=stats.max(x)
        )
        for x in (small, large)
    ]
    # One of ten values is 1, which the mean of the two means, 1 and 0, would call 0.5, and the mean of 1 and 9 tokens is 5.
    assert merge_outputs(parts).metrics == {"clip_fraction": 0.1, "tokens": 10.0, "least": -2.0, "most": 1.0}


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lb.get_loss(of_all_kinds), id="a metric of each kind, loss a sum"),
        pytest.param(lb.get_loss("ppo", reduction="token-mean"), id="token-mean"),
        pytest.param(lb.get_loss("ppo", reduction="seq-mean-token-mean"), id="seq-mean-token-mean"),
        pytest.param(lb.get_loss("dpo"), id="pair-mean"),
        pytest.param(
            lb.get_loss("ppo", reduction="token-mean") + 0.1 * lb.get_loss("reference_kl", reduction="token-mean"),
            id="a mixture of token-means",
        ),
    ],
)
def test_uneven_parts_merge_to_the_metrics_of_the_whole(
    loss: Any, training: TrainingClient, make_datums: MakeDatums
) -> None:
    datums = make_datums(8)
    whole = training.forward_backward(datums, loss).result()
    merged = merge_outputs([training.forward_backward(part, loss).result() for part in (datums[:2], datums[2:])])
    assert merged.metrics.keys() == whole.metrics.keys()
    assert len(merged.loss_fn_outputs) == len(datums)
    for name in whole.metrics.keys() - {"micro_batches"}:
        expected = pytest.approx(whole.metrics[name], rel=1e-5, abs=1e-6, nan_ok=True)
        assert merged.metrics[name] == expected, name
    assert merged.metrics["micro_batches"] == 2  # one each


def test_the_loss_of_a_mixture_with_several_denominators_is_the_mean_over_calls(
    training: TrainingClient, make_datums: MakeDatums
) -> None:
    loss = lb.get_loss("ppo", reduction="token-mean") + lb.get_loss("reference_kl", reduction="seq-mean-token-sum")
    parts = [training.forward_backward(part, loss).result() for part in (make_datums(2), make_datums(6, seed=1))]
    expected = math.fsum(part.metrics["loss:sum"] for part in parts) / 2
    assert merge_outputs(parts).metrics["loss:sum"] == pytest.approx(expected, rel=1e-12)


def test_the_output_of_a_single_call_is_handed_back_as_it_is(training: TrainingClient, make_datums: MakeDatums) -> None:
    output = training.forward_backward(make_datums(2), "ppo").result()
    assert merge_outputs([output]) is output
