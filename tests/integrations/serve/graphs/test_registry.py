"""Every loss of lossbook that can be traced per datum is the same loss as an uploaded graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import Datum
from lossbook.integrations.serve.graphs import dry_run, run_graph
from lossbook.losses import Loss
from lossbook.losses.testing import strategies

from ....peers.portability import NOT_TRACEABLE, is_of_one_datum, losses
from .encoding import gradient, read

TOLERANCE: Any = {"rtol": 1e-9, "atol": 1e-9}
TRACEABLE = [loss for loss in losses(reduction="sum") if is_of_one_datum(loss) and loss.name not in NOT_TRACEABLE]
#: Those that run in the fast suite.
FEW = ("ppo", "gspo", "dro", "topk_jsd", "focal")


def tensors_of(loss: Loss, datum: Datum) -> dict[str, Tensor]:
    """What the loss reads of a datum, and its weights, in float64."""
    carried = datum.loss_fn_inputs
    inputs = {one.name: carried[key] for one in loss.spec.inputs for key in one.keys if key in carried}
    tensors = {name: value.to_torch().clone() for name, value in inputs.items()}
    targets = carried["target_tokens"]
    shape = targets.shape[:1] if loss.spec.candidates else targets.shape
    weights = carried["weights"].to_torch().clone() if "weights" in carried else torch.ones(shape)
    tensors["weights"] = weights.reshape(list(shape))
    return {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}


def assert_the_graph_is_the_loss(loss: Loss, datum: Datum, row: Tensor) -> None:
    tensors = tensors_of(loss, datum)
    optional = tuple(one.name for one in loss.spec.inputs if not one.required and one.name in tensors)
    traced = loss.trace(optional, {name: value.ndim for name, value in {"logprobs": row, **tensors}.items()})
    graph = read(traced.function, traced.ranks)
    dry_run(graph)
    leaf, plain = row.clone().requires_grad_(), row.clone().requires_grad_()
    value, metrics = run_graph(graph, leaf, [tensors[name] for name in traced.inputs])
    if not (tensors["weights"].any() or loss.spec.wants_weights):  # the loss itself refuses such a datum
        assert float(value.detach()) == 0
        return
    expected, reported = loss([datum], [plain])
    torch.testing.assert_close(value.detach(), expected.detach(), **TOLERANCE)
    torch.testing.assert_close(gradient(value, leaf), gradient(expected, plain), **TOLERANCE)
    for key, metric in metrics.items():
        name = key.removeprefix("custom/").rpartition(":")[0]
        assert float(metric.detach()) == pytest.approx(reported[name], rel=1e-6, abs=1e-9, nan_ok=True), key


@pytest.mark.parametrize("loss", [one for one in TRACEABLE if one.name in FEW], ids=lambda loss: loss.name)
@given(data=st.data())
@settings(max_examples=1)
def test_a_loss_is_the_same_loss_as_a_graph(loss: Loss, data: st.DataObject) -> None:
    drawn = data.draw(strategies.datums(loss))
    rows = data.draw(strategies.outputs(loss, drawn))["logprobs"]
    assert_the_graph_is_the_loss(loss, drawn[0], rows[0])


@pytest.mark.slow
@pytest.mark.parametrize("loss", TRACEABLE, ids=lambda loss: loss.name)
@given(data=st.data())
@settings(max_examples=4)
def test_every_traceable_loss_is_the_same_loss_as_a_graph(loss: Loss, data: st.DataObject) -> None:
    drawn = data.draw(strategies.datums(loss))
    rows = data.draw(strategies.outputs(loss, drawn))["logprobs"]
    for datum, row in zip(drawn, rows, strict=True):
        assert_the_graph_is_the_loss(loss, datum, row)
