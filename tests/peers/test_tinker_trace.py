"""Losses as graphs that the tinker service can run: accepted by the SDK's own code, and the same numbers as ours.

No network: `trace_loss`, `encode_graph`, `check_loss_inputs` and `run_loss_handle` are what `create_custom_loss` and
`forward_backward_custom` call in the user's process before and instead of the service.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import Datum, get_loss, list_losses
from lossbook.datums.errors import TraceError
from lossbook.losses import Loss, PerDatum, TracedLoss, stats, trace_report
from lossbook.losses.testing import strategies

from ..losses.cases import NEEDED, loss_of, with_needed
from .portability import NOT_TRACEABLE, is_of_one_datum, losses

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # inside the SDK, not ours to mend
    tinker = pytest.importorskip("tinker", reason="the official SDK comes with lossbook[peers]")
    from tinker.lib.public_interfaces import custom_loss
    from tinker.lib.public_interfaces.training_client import TrainingClient

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
LOSSES = losses(reduction="sum")
TRACEABLE = [loss for loss in LOSSES if is_of_one_datum(loss) and loss.name not in NOT_TRACEABLE]
ELSE = [loss for loss in LOSSES if not is_of_one_datum(loss)]


@functools.cache
def traced(name: str, optional: tuple[str, ...], ranks: tuple[tuple[str, int], ...]) -> TracedLoss:
    loss = next(loss for loss in TRACEABLE if loss.name == name)
    return loss.trace(optional, dict(ranks))


def handle_of(traced: TracedLoss) -> Any:
    """What create_custom_loss makes of it, refused where it would be."""
    handle = custom_loss.trace_loss(traced.function, traced.ranks, "session")
    custom_loss.encode_graph(handle)
    return handle


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


def trace_of(loss: Loss, tensors: dict[str, Tensor], logprobs: Tensor) -> TracedLoss:
    """The trace that reads these tensors."""
    optional = tuple(one.name for one in loss.spec.inputs if not one.required and one.name in tensors)
    ranks = {name: value.ndim for name, value in {"logprobs": logprobs, **tensors}.items()}
    return traced(loss.name, optional, tuple(ranks.items()))


def evaluated(loss: Loss, datum: Datum, logprobs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One datum's value, gradient and metrics by the traced function."""
    tensors = tensors_of(loss, datum)
    traced = trace_of(loss, tensors, logprobs)
    leaf = logprobs.clone().requires_grad_()
    value, metrics = traced(leaf, *(tensors[name] for name in traced.inputs))
    return value.detach(), torch.autograd.grad(value, leaf)[0], metrics


@pytest.mark.parametrize("loss", TRACEABLE, ids=lambda loss: loss.name)
def test_a_loss_of_one_datums_logprobs_is_taken_by_the_sdk(loss: Loss) -> None:
    traced = loss.trace()
    handle = handle_of(traced)
    assert handle.name == loss.name.replace("-", "_").replace("/", "_")
    assert handle.input_names == traced.inputs
    every = [one.name for one in loss.spec.inputs if not one.required]
    handle_of(loss.trace(every))


@pytest.mark.parametrize("loss", TRACEABLE, ids=lambda loss: loss.name)
@given(data=st.data())
@settings(max_examples=8)
def test_a_traced_loss_has_the_losss_value_gradient_and_metrics(loss: Loss, data: st.DataObject) -> None:
    drawn = data.draw(strategies.datums(loss))
    rows = data.draw(strategies.outputs(loss, drawn))["logprobs"]
    leaves = [row.clone().requires_grad_() for row in rows]
    value, _ = loss(drawn, leaves)
    gradients = torch.autograd.grad(value, leaves)
    each = [evaluated(loss, datum, row) for datum, row in zip(drawn, rows, strict=True)]
    torch.testing.assert_close(torch.stack([one for one, _, _ in each]).sum(), value.detach(), **TOLERANCE)
    for (_, slope, _), gradient in zip(each, gradients, strict=True):
        torch.testing.assert_close(slope, gradient, **TOLERANCE)
    for datum, row, (_, _, metrics) in zip(drawn, rows, each, strict=True):
        assert_metrics_are_the_losss(loss, datum, row, metrics)


def assert_metrics_are_the_losss(loss: Loss, datum: Datum, row: Tensor, metrics: dict[str, Tensor]) -> None:
    if not (
        tensors_of(loss, datum)["weights"].any() or loss.spec.wants_weights
    ):  # the loss itself refuses such a datum
        assert all(float(metric) == 0 for metric in metrics.values())
        return
    _, expected = loss([datum], [row])
    for key, metric in metrics.items():
        name = key.removeprefix("custom/").rpartition(":")[0]
        assert float(metric) == pytest.approx(expected[name], rel=1e-6, abs=1e-9, nan_ok=True), key


@pytest.mark.parametrize("loss", TRACEABLE, ids=lambda loss: loss.name)
def test_masked_positions_may_hold_nan(loss: Loss) -> None:
    traced = loss.trace()
    generator = torch.Generator().manual_seed(0)

    def tensor(name: str, rank: int) -> Tensor:
        values = torch.rand((4, 2)[:rank], generator=generator, dtype=torch.float64)
        return (values * 0.4 + 0.1).log() if name.endswith("logprobs") else values

    tensors = {name: tensor(name, rank) for name, rank in traced.ranks.items()}
    tensors["weights"] = torch.tensor([0, 1, 0.5, 0], dtype=torch.float64)
    if loss.spec.wants_weights:
        pytest.skip("it sees every position")
    results = []
    for masked in (-0.5, math.nan, -math.inf, 1e30):
        rows = {name: value.clone() for name, value in tensors.items()}
        for name, value in rows.items():
            if name != "weights" and value.ndim:
                value[[0, 3]] = masked
        rows["logprobs"].requires_grad_()
        value, metrics = traced(*rows.values())
        (slope,) = torch.autograd.grad(value, rows["logprobs"])
        results.append([value.detach(), slope, *metrics.values()])
        assert not slope[[0, 3]].any()
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert torch.equal(one, same)


@pytest.mark.parametrize("loss", ELSE, ids=lambda loss: loss.name)
def test_another_loss_is_refused_with_the_reason(loss: Loss) -> None:
    other = [name for name in loss.spec.outputs if name != "logprobs"]
    reason = f"reads the model's {' and '.join(other)}" if other else "one datum at a time"
    with pytest.raises(TraceError, match=reason):
        loss.trace()


def test_the_report_says_of_every_loss_whether_it_can_be_traced_and_why_not() -> None:
    settings = {name: with_needed(name, reduction="sum").settings for name in NEEDED}
    report = trace_report({**settings, "ppo": {"clip_high": 1.625}})
    assert "1.625" in str(report["ppo"])
    assert list(report) == list_losses()
    without = {name for name, result in report.items() if isinstance(result, str)}
    assert without == {loss.name for loss in ELSE} | set(NOT_TRACEABLE)
    for name, reason in NOT_TRACEABLE.items():
        assert reason in str(report[name])
    assert all(str(report[name]).startswith(f"{name} cannot be traced") for name in without)


@pytest.mark.parametrize("loss", [one for one in TRACEABLE if one.spec.per == "token"][:3], ids=lambda loss: loss.name)
def test_another_reduction_is_refused_and_the_way_out_named(loss: Loss) -> None:
    with pytest.raises(TraceError, match=r"reduction 'token-mean' would be another loss.*reduction='sum'.*optim_step"):
        get_loss(loss, reduction="token-mean").trace()


def datums_for_ppo() -> list[Any]:
    columns = {
        "target_tokens": [[1, 2, 3], [4, 5]],
        "sampling_logprobs": [[-1.0, -2.0, -0.5], [-1.5, -0.25]],
        "advantages": [[1.0, -1.0, 0.5], [2.0, -2.0]],
        "weights": [[0.0, 1.0, 1.0], [0.5, 1.0]],
    }
    return [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints([0] * len(columns["weights"][i])),
            loss_fn_inputs={key: torch.tensor(values[i]) for key, values in columns.items()},
        )
        for i in range(2)
    ]


def test_the_sdk_runs_the_handle_as_it_runs_the_loss() -> None:
    loss = get_loss("ppo")
    handle = handle_of(loss.trace())
    data, logprobs = datums_for_ppo(), [torch.tensor([-1.0, -1.9, -0.8]), torch.tensor([-1.0, -0.3])]
    custom_loss.check_loss_inputs(handle, data)
    outputs = [{"logprobs": tinker.TensorData.from_torch(row)} for row in logprobs]
    forward = tinker.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", loss_fn_outputs=outputs, metrics={})
    by_handle = TrainingClient._compute_custom_loss(data, handle, forward)
    by_loss = TrainingClient._compute_custom_loss(data, loss, forward)
    assert by_handle.loss_sum == pytest.approx(by_loss.loss_sum, abs=1e-6)
    for one, other in zip(by_handle.data, by_loss.data, strict=True):
        torch.testing.assert_close(one.loss_fn_inputs["weights"].to_torch(), other.loss_fn_inputs["weights"].to_torch())
    # Over datums, each counting once: that is the service's mean.
    nll = (1.9 + 0.8) / 2, (1.0 + 0.3) / 2
    assert by_handle.metrics["custom/nll:mean"] == pytest.approx(sum(nll) / 2)
    assert by_loss.metrics["nll"] == pytest.approx((1.9 + 0.8 + 1.0 + 0.3) / 4)


def test_a_trace_shows_what_it_is() -> None:
    traced = get_loss("reinforce").trace()
    assert traced.ranks == {"logprobs": 1, "advantages": 1, "weights": 1}
    assert traced.inputs == ("advantages", "weights")
    assert str(traced).startswith("def reinforce(logprobs, advantages, weights):\n    ne = weights != 0\n")
    assert inspect.getsource(traced.function) == str(traced)
    # -A p over the two positions of any weight: -(2)(-0.5) 1 - (1)(-1) 0.5 = 1.5
    value, metrics = traced(
        torch.tensor([-0.5, -1.0, -9.0]), torch.tensor([2.0, 1.0, 7.0]), torch.tensor([1.0, 0.5, 0.0])
    )
    assert (float(value), float(metrics["custom/nll:mean"])) == (1.5, 0.75)


def test_metrics_that_the_service_cannot_merge_are_left_out_and_named() -> None:
    traced = get_loss("ppo").trace()
    assert "sums and means only, not the max" in traced.dropped["ratio_max"]
    assert "ratio_max" not in str(traced)

    def halves(logprobs: Tensor) -> Any:
        return -logprobs, {"low": stats.mean(logprobs[logprobs < -1]), "first": stats.sum(logprobs[:2])}

    dropped = loss_of(halves, per="token", reduction="sum").trace().dropped
    assert dropped["low"] == "it picks elements by a condition, so its shape depends on data"
    assert dropped["first"] == "it is of neither the tokens nor the datum: its shape is [2]"


def test_optional_inputs_are_read_where_a_setting_needs_them_or_where_asked_for() -> None:
    assert "ref_logprobs" not in get_loss("grpo", reduction="sum", kl_coefficient=0).trace().ranks
    assert "ref_logprobs" in get_loss("grpo", reduction="sum", kl_coefficient=0.1).trace().ranks
    assert "clip_low_threshold" not in get_loss("ppo").trace().ranks
    assert "clip_low_threshold" in get_loss("ppo").trace(["clip_low_threshold"]).ranks
    with pytest.raises(TraceError, match=r"no optional input 'clip_low'. Did you mean 'clip_low_threshold'"):
        get_loss("ppo").trace(["clip_low"])
    with pytest.raises(TraceError, match=r"reads no 'weight'. Did you mean 'weights'"):
        get_loss("ppo").trace(ranks={"weight": 2})


def branching(logprobs: Tensor) -> Tensor:
    if logprobs.sum() > 0:
        return logprobs
    return -logprobs


def looping(logprobs: Tensor) -> Tensor:
    return torch.stack([-x for x in logprobs])


def counting(logprobs: Tensor) -> Tensor:
    return -logprobs / len(logprobs)


def to_python(logprobs: Tensor) -> Tensor:
    return -logprobs * float(logprobs.mean())


def on_host(logprobs: Tensor) -> Tensor:
    return -logprobs * logprobs.mean().item()


def in_place(logprobs: Tensor) -> Tensor:
    return (-logprobs).mul_(2.0)


def assigning(logprobs: Tensor) -> Tensor:
    losses = -logprobs
    losses[0] = 0.0
    return losses


def selecting(logprobs: Tensor) -> Tensor:
    return -logprobs + logprobs[logprobs < -0.1].sum()


def capturing(logprobs: Tensor) -> Tensor:
    return -logprobs * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])


def of_another_shape(logprobs: Tensor) -> Tensor:
    return -logprobs.sum()


def splitting(logprobs: Tensor, seqs: Any) -> Tensor:
    return -torch.cat(seqs.split(logprobs))


@pytest.mark.parametrize(
    ("function", "mend", "line"),
    [
        (branching, "Write torch.where", "if logprobs.sum() > 0:"),
        (looping, "one tensor operation", "torch.stack"),
        (counting, r"Use tensor.shape\[0\] or seqs", "len(logprobs)"),
        (to_python, "Keep it a tensor", "float(logprobs.mean())"),
        (on_host, r"calls .item\(\), which leaves torch", "in on_host"),
        (in_place, r"in place with .mul_\(\)", "in in_place"),
        (assigning, "torch.where or masked_fill", "losses[0] = 0.0"),
        (selecting, "its shape depends on data", "in selecting"),
        (capturing, "neither an input nor made from one", "torch.tensor([1.0"),
        (of_another_shape, r"returns losses of shape \[\], not \[5\]", ""),
        (splitting, "seqs.split has no form", "seqs.split(logprobs)"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_function_that_cannot_be_traced_is_named_with_its_line_and_the_mend(
    function: Callable[..., Any], mend: str, line: str
) -> None:
    loss = loss_of(function, per="token", reduction="sum")
    with pytest.raises(TraceError, match=mend) as caught:
        loss.trace()
    assert line in str(caught.value)
    assert not line or f"{__file__}:" in str(caught.value)


def test_constants_and_seqs_have_forms_for_one_datum() -> None:
    def everything(logprobs: Tensor, label: PerDatum, seqs: Any) -> Any:
        mean = seqs.mean(logprobs, mask=logprobs < -0.75)
        spread = torch.where(seqs.broadcast(mean) > logprobs, torch.tensor(2.0), 1.0)
        score = seqs.sum(spread * logprobs) + seqs.last(logprobs) * label
        return score / seqs.lengths, {
            "score": stats.mean(score),
            "lowest": stats.min(score),
            "all": stats.sum(logprobs),
        }

    loss = loss_of(everything, per="datum", reduction="sum")
    traced = loss.trace()
    handle_of(traced)
    assert traced.ranks == {"logprobs": 1, "label": 0, "weights": 1}
    data = [
        Datum([0, 1, 2, 3], {"target_tokens": [1, 2, 3, 4], "weights": [0.0, 1.0, 2.0, 0.0], "label": 1.0}),
        Datum([0, 1], {"target_tokens": [1, 2], "weights": [1.0, 1.0], "label": 0.0}),
    ]
    rows = [torch.tensor([-9.0, -1.0, -0.5, -8.0]).double(), torch.tensor([-0.25, -2.0]).double()]
    value, _ = loss(data, rows)
    # w x spread: (-1)(1) + 2 (-0.5)(1) = -2, last -0.5, over 2; then -0.25 - 2 (2) ... see seqs in packing.py for the rest
    total = 0.0
    for datum, row in zip(data, rows, strict=True):
        tensors = [datum.loss_fn_inputs[name].to_torch().double() for name in traced.inputs]
        total += float(traced(row, *tensors)[0])
    assert total == pytest.approx(float(value), abs=1e-12)
