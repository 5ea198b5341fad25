"""Where a loss cannot be traced, the message points at the line of the user's function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import lossbook.losses
from lossbook import get_loss
from lossbook.datums.errors import TraceError
from lossbook.losses import kl_estimate
from lossbook.losses.trace.recorder import location

from ..cases import loss_of

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


def test_a_mixture_is_traced_part_by_part() -> None:
    with pytest.raises(TraceError, match=r"1 \* ppo \+ 0\.5 \* cross_entropy cannot be traced: trace its parts"):
        (get_loss("ppo") + 0.5 * get_loss("cross_entropy")).trace()
