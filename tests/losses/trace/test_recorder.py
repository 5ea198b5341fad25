"""Where a loss cannot be traced, the message points at the line of the user's function."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook.losses
from lossbook import get_loss, stats
from lossbook.datums.errors import TraceError
from lossbook.losses import kl_estimate
from lossbook.losses.trace.recorder import location

from ..cases import datum, loss_of

LOSSES = Path(lossbook.losses.__file__).parent


def sum_of_none(logprobs: Tensor, seqs: Any) -> Tensor:
    return -seqs.sum(None)


def mean_of_none(logprobs: Tensor, seqs: Any) -> Tensor:
    return -seqs.mean(None)


def unknown_estimator(logprobs: Tensor, ref_logprobs: Tensor, seqs: Any) -> Tensor:
    return seqs.sum(kl_estimate(None, ref_logprobs, "k3"))


@pytest.mark.parametrize(
    ("function", "line"),
    [
        pytest.param(sum_of_none, "return -seqs.sum(None)", id="inside seqs.sum"),
        pytest.param(mean_of_none, "return -seqs.mean(None)", id="inside seqs.mean"),
        pytest.param(unknown_estimator, "kl_estimate(None", id="inside lossbook's maths"),
    ],
)
def test_an_error_inside_lossbook_points_at_the_users_line(function: Callable[..., Any], line: str) -> None:
    loss = loss_of(function, per="datum", reduction="sum")
    with pytest.raises(TraceError) as caught:
        loss.trace()
    assert f"{function.__name__} cannot be traced at {__file__}:" in str(caught.value)
    assert line in str(caught.value)


@pytest.mark.parametrize("folder", ["", "batch", "loss", "math", "spec", "trace"])
def test_no_file_of_lossbooks_machinery_counts_as_the_users(folder: str) -> None:
    files = sorted((LOSSES / folder).glob("*.py"))
    assert files
    for file in files:
        error = _raised_in(str(file))
        assert f"{__file__}:" in location(error)


def _raised_in(filename: str) -> Exception:
    try:
        exec(compile("raise ValueError", filename, "exec"))
    except ValueError as error:
        return error
    raise AssertionError(filename)


def counts(logprobs: Tensor, hits: Tensor, seqs: Any) -> Any:
    is_likely = logprobs > -1.5
    return seqs.sum(logprobs) * seqs.mean(is_likely) + seqs.sum(hits) * seqs.mean(hits * logprobs, hits), {
        "likely": stats.mean(seqs.mean(is_likely)),
        "hits": stats.sum(seqs.sum(hits > 0)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_a_graph_counts_booleans_and_integers_as_the_direct_call_does(dtype: torch.dtype) -> None:
    loss = loss_of(counts, per="datum", reduction="sum")
    weights, hits = torch.tensor([0.0, 0.5, 1.0, 2.0]), torch.tensor([1, 0, 1, 1]).to(dtype)
    logprobs = torch.tensor([-3.0, -1.0, -2.0, -0.25])
    value, metrics = loss([datum(4, weights=weights, hits=hits)], [logprobs])
    # Weighted sums: logprobs -3; above -1.5 2.5 of 3.5; hits 3, whose logprobs add up to -2.5.
    right = -3.0 * (2.5 / 3.5) + 3.0 * (-2.5 / 3.0)
    assert float(value) == pytest.approx(right)
    traced, reported = loss.trace()(logprobs, hits, weights)
    assert float(traced) == pytest.approx(right)
    assert float(reported["custom/likely:mean"]) == pytest.approx(metrics["likely"])
    assert float(reported["custom/hits:sum"]) == metrics["hits"] == 3.0


def weighs_itself(logprobs: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    return -advantages * logprobs * weights


def test_a_graph_is_not_reached_by_nan_at_weight_0() -> None:
    loss = loss_of(weighs_itself, per="token", reduction="sum")
    logprobs = torch.tensor([-math.inf, -2.0, -3.0], requires_grad=True)
    value, _ = loss.trace()(logprobs, torch.tensor([math.nan, 1.0, 1.0]), torch.tensor([0.0, 1.0, 1.0]))
    value.backward()
    assert float(value.detach()) == 5.0
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0, -1, -1]


def test_a_mixture_is_traced_part_by_part() -> None:
    with pytest.raises(TraceError, match=r"1 \* ppo \+ 0\.5 \* cross_entropy cannot be traced: trace its parts"):
        (get_loss("ppo") + 0.5 * get_loss("cross_entropy")).trace()
