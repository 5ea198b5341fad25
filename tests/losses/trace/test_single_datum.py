"""A traced loss of one datum gives what the direct call gives: masked positions, several targets, candidates, metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from lossbook import get_loss, stats
from lossbook.datums.errors import TraceError
from lossbook.losses import Loss, PerDatum, Seqs

from ..cases import datum, loss_of

NAN, INF = math.nan, math.inf


def by_both(loss: Loss, logprobs: Any, **inputs: Any) -> tuple[float, dict[str, float]]:
    """The value and metrics of the traced function, whose value is that of the direct call."""
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in inputs.items()}
    row = torch.tensor(logprobs, dtype=torch.float64)
    optional = [one.name for one in loss.spec.inputs if not one.required and one.name in inputs]
    traced = loss.trace(optional, {"logprobs": row.ndim, **{name: one.ndim for name, one in tensors.items()}})
    value, metrics = traced(row, *(tensors[name] for name in traced.inputs))
    targets = torch.zeros(row.shape, dtype=torch.int64).tolist()
    if tensors["weights"].any():
        direct, _ = loss([datum(targets, **inputs)], [row])
        assert float(value) == pytest.approx(float(direct))
    return float(value), {key.removeprefix("custom/"): float(one) for key, one in metrics.items()}


def of_the_rows_it_sees(logprobs: Tensor, advantages: Tensor, seqs: Seqs) -> Any:
    return (logprobs.sum() * 2 + advantages.exp().sum() * 0).reshape(1) / seqs.count


def test_masked_positions_hold_0_before_the_formula_sees_them() -> None:
    loss = loss_of(of_the_rows_it_sees, per="datum", reduction="sum")
    assert by_both(loss, [NAN, -1.0, -2.0, INF], advantages=[NAN, 1, 1, INF], weights=[0, 1, 0.5, 0])[0] == -6


@pytest.mark.parametrize("per", ["token", "datum"])
def test_a_datum_without_any_weight_adds_nothing(per: Any) -> None:
    def per_datum(logprobs: Tensor, label: PerDatum, seqs: Seqs) -> Any:
        return seqs.mean(logprobs) + label, {"score": stats.mean(seqs.mean(logprobs) + label)}

    def per_token(logprobs: Tensor, label: PerDatum) -> Any:
        return label - logprobs, {"score": stats.mean(label - logprobs)}

    loss = loss_of(per_datum if per == "datum" else per_token, per=per, reduction="sum")
    value, metrics = by_both(loss, [-1.0, NAN], label=7.0, weights=[0.0, 0.0])
    assert value == 0
    assert metrics["score:mean"] == metrics["nll:mean"] == 0


def test_one_number_may_stand_for_all_positions_and_all_targets() -> None:
    row, weights = [[-1.0, -2.0], [-4.0, NAN], [-8.0, -16.0]], [[1, 1], [1, 0], [0.5, 0.25]]
    loss = get_loss("reinforce")
    # -A w p: by target 1 + 2, 4, 4 + 4.
    assert by_both(loss, row, advantages=2.0, weights=weights)[0] == 2 * (3 + 4 + 8)
    assert by_both(loss, row, advantages=[1.0, 2.0, 3.0], weights=weights)[0] == 3 + 8 + 24
    assert by_both(loss, [-1.0, -2.0], advantages=2.0, weights=[1.0, 0.5])[0] == 4


def of_candidates(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    return -logprobs.sum(1)


def test_an_absent_candidate_is_0_for_the_formula() -> None:
    loss = loss_of(of_candidates, per="token", candidates="teacher_logprobs", reduction="sum")
    row, teacher = [[-1.0, NAN, -2.0], [-INF, -4.0, -8.0]], [[-1.0, -INF, -1.0], [-INF, -1.0, -1.0]]
    assert by_both(loss, row, teacher_logprobs=teacher, weights=[1.0, 0.5])[0] == 3 + 6


def weighs_candidates(logprobs: Tensor, teacher_logprobs: Tensor, weights: Tensor) -> Tensor:
    present = teacher_logprobs > -torch.inf
    return -weights * torch.where(present, torch.where(present, logprobs, 0), 0).sum(1)


def test_a_loss_over_candidates_that_reads_weights_masks_them_itself() -> None:
    loss = loss_of(weighs_candidates, per="token", candidates="teacher_logprobs", reduction="sum")
    row, teacher = [[-1.0, -INF], [-3.0, -4.0]], [[-1.0, -INF], [-1.0, -1.0]]
    assert by_both(loss, row, teacher_logprobs=teacher, weights=[2.0, 0.5])[0] == 2 + 3.5


def with_metrics(logprobs: Tensor, advantages: Tensor, bonus: Tensor | None = None) -> Any:
    metrics = {
        "mean": stats.mean(advantages),
        "sum": stats.sum(advantages),
        "columns": stats.mean(torch.stack([advantages.reshape(-1), 3 * advantages.reshape(-1)], 1))
        if advantages.ndim == 1
        else stats.sum(advantages),
        "of_datum": stats.mean(advantages.sum()),
        "highest": stats.max(advantages),
    }
    return -logprobs * advantages, metrics if bonus is None else {**metrics, "bonus": stats.mean(bonus)}


def test_metrics_are_of_the_positions_that_count() -> None:
    loss = loss_of(with_metrics, reduction="sum")
    value, metrics = by_both(loss, [-1.0, -2.0, NAN], advantages=[1.0, 3.0, NAN], weights=[1, 0.5, 0])
    assert value == 1 + 3
    assert metrics == {"mean:mean": 2, "sum:sum": 4, "columns:mean": 4, "of_datum:mean": 4, "nll:mean": 1.5}
    row, advantages = [[-1.0, -2.0], [NAN, -4.0]], [[1.0, 2.0], [NAN, 6.0]]
    _, metrics = by_both(loss, row, advantages=advantages, weights=[[1, 1], [0, 0.5]])
    assert metrics == {"mean:mean": 3, "sum:sum": 9, "columns:sum": 9, "of_datum:mean": 9, "nll:mean": 7 / 3}


def test_a_metric_that_the_service_cannot_have_is_left_out_with_the_reason() -> None:
    def odd(logprobs: Tensor, advantages: Tensor) -> Any:
        return -logprobs, {
            "none": stats.mean(advantages[:0]),
            "two": stats.sum(advantages[:2]),
            "low": stats.mean(advantages[advantages < 0]),
            "chosen": stats.mean(advantages[(advantages < 0,)]),
            "some": stats.sum(advantages.masked_select(advantages > 0)),
            "by_place": stats.sum(advantages[(advantages * 0).long()]),
            "fine": stats.mean(advantages[[0, 0, 0, 0, 0]] * advantages[:, None][:, 0]),
        }

    traced = loss_of(odd, reduction="sum").trace()
    selects = "it picks elements by a condition, so its shape depends on data"
    assert traced.dropped == {
        "none": "it is of an optional input that is not read",
        "two": "it is of neither the tokens nor the datum: its shape is [2]",
        "low": selects,
        "chosen": selects,
        "some": selects,
    }


def of_features(logprobs: Tensor, features: Tensor, seqs: Seqs) -> Tensor:
    one = logprobs.sum() * 0 + 1
    sums = (seqs.sum(features) * torch.stack([one, 10 * one, 0 * one])).sum(1)
    return sums + 100 * seqs.last(features)[:, 1] + 1000 * seqs.broadcast(seqs.last(logprobs)).sum().reshape(1)


def test_sums_over_one_datum_keep_columns_apart_and_leave_masked_positions_out() -> None:
    loss = loss_of(of_features, per="datum", reduction="sum")
    features = [[9.0, 9.0, 9.0], [1.0, 2.0, 9.0], [3.0, 4.0, 9.0], [9.0, 9.0, 9.0]]
    # Two positions count: 1 + 3, 10 (2 + 4), 100 x 4, and twice -2.
    assert by_both(loss, [NAN, -1.0, -2.0, NAN], features=features, weights=[0, 1, 1, 0])[0] == 4 + 60 + 400 - 4000


# What a graph may call, and where it may not.


def doubled(tensor: Any) -> Any:
    """A function of another package that takes part in torch's dispatch."""
    return handle_torch_function(doubled, (tensor,), tensor) if not isinstance(tensor, Tensor) else tensor * 2


def calls_another_package(logprobs: Tensor) -> Tensor:
    return -doubled(logprobs)


def calls_torch(logprobs: Tensor, advantages: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-logprobs) + torch.nn.functional.relu(advantages) * math.pi


def test_a_graph_calls_torch_only() -> None:
    with pytest.raises(TraceError) as caught:
        loss_of(calls_another_package, reduction="sum").trace()
    assert f"calls doubled of {__name__.partition('.')[0]}; torch only" in str(caught.value)
    loss = loss_of(calls_torch, reduction="sum")
    assert by_both(loss, [0.0], advantages=[2.0], weights=[1.0])[0] == pytest.approx(math.log(2) + 2 * math.pi)


def deeper(logprobs: Tensor) -> Tensor:
    return logprobs * float(logprobs.sum())


def nested(logprobs: Tensor) -> Tensor:
    return -deeper(logprobs)


def test_the_deepest_line_of_ones_own_is_named() -> None:
    with pytest.raises(TraceError) as caught:
        loss_of(nested, reduction="sum").trace()
    assert ", in deeper, `return logprobs * float(logprobs.sum())`: a tensor is made a Python number" in str(
        caught.value
    )


class _Plain:
    """An error that torch.fx does not know of."""


def raises_trace_error(logprobs: Tensor) -> Tensor:
    raise TraceError("it has a reason of its own")


def raises_value_error(logprobs: Tensor) -> Tensor:
    raise ValueError("something else")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (raises_trace_error, '`raise TraceError("it has a reason of its own")`: it has a reason of its own'),
        (raises_value_error, '`raise ValueError("something else")`: ValueError: something else'),
    ],
)
def test_an_error_of_ones_own_is_told_as_it_is(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(TraceError) as caught:
        loss_of(function, reduction="sum").trace()
    assert str(caught.value).endswith(said)


def pairwise(logprobs: Tensor, seqs: Seqs) -> Tensor:
    chosen, rejected = seqs.pairs(seqs.sum(logprobs))
    return rejected - chosen


def by_the_batch(logprobs: Tensor, advantages: Tensor) -> Tensor:
    return -logprobs * (advantages - advantages.mean())


@pytest.mark.parametrize(
    ("function", "registration", "what"),
    [
        (pairwise, {"per": "pair", "reduction": "sum"}, "pairs of datums"),
        (by_the_batch, {"couples": "pair"}, "pairs of datums"),
        (by_the_batch, {"couples": "batch"}, "all datums of a batch together"),
    ],
)
def test_a_loss_of_several_datums_says_of_which(
    function: Callable[..., Any], registration: Mapping[str, Any], what: str
) -> None:
    with pytest.raises(
        TraceError, match=f"cannot be traced: it looks at {what}, and the service calls the function with"
    ):
        loss_of(function, **registration).trace()


def of_many(count: int) -> Callable[..., Any]:
    """A loss function of logprobs and so many inputs."""
    names = [f"own_{i}" for i in range(count)]
    namespace: dict[str, Any] = {"Tensor": Tensor}
    exec(
        f"def many(logprobs: Tensor, {', '.join(f'{name}: Tensor' for name in names)}) -> Tensor:\n"
        f"    return -logprobs * ({' + '.join(names)})",
        namespace,
    )
    return namespace["many"]


def test_a_service_takes_sixteen_tensors() -> None:
    assert len(loss_of(of_many(14), reduction="sum").trace().ranks) == 16
    with pytest.raises(TraceError, match="reads 17 tensors, and the service takes at most 16"):
        loss_of(of_many(15), reduction="sum").trace()


def test_beside_candidates_probabilities_have_columns_and_other_numbers_have_none() -> None:
    def over_k(logprobs: Tensor, teacher_logprobs: Tensor, own_probs: Tensor, bonus: Tensor, label: PerDatum) -> Tensor:
        return -(logprobs * own_probs).sum(1) * bonus * label

    traced = loss_of(over_k, candidates="teacher_logprobs", reduction="sum").trace()
    assert traced.ranks == {
        "logprobs": 2,
        "teacher_logprobs": 2,
        "own_probs": 2,
        "bonus": 1,
        "label": 0,
        "weights": 1,
    }
