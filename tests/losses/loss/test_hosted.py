"""Functions with the hosted APIs' signature, fn(data, logprobs_list): what they are given, and what is held against them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossbook import Datum, ModelInput, get_loss, stats
from lossbook.datums.errors import (
    LengthMismatchError,
    LossConfigError,
    LossContractError,
    NonDifferentiableLossError,
    NonFiniteLossInput,
)

from ..cases import assert_rows_equal, datum, evaluated, leaves, loss_of

ROWS = [[-0.5, -1.0, -2.0], [-0.2, -3.0]]


def two_datums() -> list[Datum]:
    return [datum(3, weights=[0, 1, 1]), datum(2, weights=[0, 0])]


def weighted_nll(data: Sequence[Datum], logprobs_list: Sequence[Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """What a hosted service's documentation would show: a loop over datums."""
    total = torch.zeros((), dtype=torch.float64)
    for one, logprobs in zip(data, logprobs_list, strict=True):
        total = total - (one.loss_fn_inputs["weights"].to_torch() * logprobs).sum()
    return total, {"nll": float(total.detach())}


def test_a_plain_function_sees_every_datum_and_every_position_and_reduces_itself() -> None:
    value, gradients, metrics = evaluated(get_loss(weighted_nll), two_datums(), ROWS)
    assert value == 3.0
    assert metrics == {"nll": 3.0}
    assert_rows_equal(gradients, [[0, -1, -1], [0, 0]], 0)


def test_it_equals_the_built_in_that_it_spells_out() -> None:
    value, gradients, _ = evaluated(get_loss(weighted_nll), two_datums(), ROWS)
    expected, slopes, _ = evaluated(get_loss("cross_entropy"), two_datums(), ROWS)
    assert value == expected
    assert_rows_equal(gradients, slopes, 0)


def test_several_targets_arrive_in_the_shape_of_their_own_datum() -> None:
    seen = []

    def shapes(data: Any, logprobs_list: Any) -> Any:
        seen.extend(tuple(row.shape) for row in logprobs_list)
        return sum(row.sum() for row in logprobs_list), {}

    data = [datum([[1, 2], [3, 4]]), datum(3), datum([[1, 2, 3]])]
    rows = [[[-1.0, -2.0]] * 2, [-1.0] * 3, [[-1.0] * 3]]
    evaluated(get_loss(shapes), data, rows)
    # Also out of a mixture, where the outputs of all datums come as one tensor.
    mixture = get_loss(shapes) + get_loss("cross_entropy")
    evaluated(mixture, data, rows)
    assert seen == [(2, 2), (3,), (1, 3)] * 2


def test_embeddings_are_asked_for_by_name() -> None:
    def alignment(data: Any, embeddings: Any) -> Any:
        first, second = embeddings
        return -(first @ second), {}

    loss = loss_of(alignment, per="batch", output="embeddings")
    value, gradients, _ = evaluated(loss, [Datum(ModelInput.from_ints([1]))] * 2, [[1.0, 2.0], [3.0, 4.0]])
    assert loss.outputs == ("embeddings",)
    assert value == -11
    assert_rows_equal(gradients, [[-3, -4], [-1, -2]], 0)


def test_a_registered_one_may_have_settings() -> None:
    def scaled(data: Any, logprobs_list: Any, *, scale: float = 2.0) -> Any:
        return -scale * sum(row.sum() for row in logprobs_list), {}

    assert evaluated(loss_of(scaled, per="batch", config={"scale": 0.5}), two_datums(), ROWS)[0] == pytest.approx(3.35)
    with pytest.raises(LossConfigError, match=r"^scaled has no setting 'scal'\. Did you mean 'scale'?"):
        loss_of(scaled, per="batch", config={"scal": 0.5})


@pytest.mark.parametrize(
    "bound",
    [
        pytest.param(torch.zeros(2), id="a tensor"),
        pytest.param([torch.zeros(1)], id="a list of tensors"),
        pytest.param(np.zeros(2), id="an array"),
        pytest.param({"teacher": None}, id="a mapping"),
        pytest.param(object(), id="any object"),
        pytest.param(0.5, id="a number"),
    ],
)
def test_functools_partial_may_bind_anything(bound: Any) -> None:
    def remembers(data: Any, logprobs_list: Any, reference: Any) -> Any:
        assert reference is bound
        return sum(row.sum() for row in logprobs_list), {}

    loss = get_loss(functools.partial(remembers, reference=bound))
    assert evaluated(loss, two_datums(), ROWS)[0] == pytest.approx(-6.7)


def weighed_advantages(data: Sequence[Datum], logprobs_list: Sequence[Tensor]) -> tuple[Tensor, dict[str, Any]]:
    total = torch.zeros((), dtype=torch.float64)
    for one, logprobs in zip(data, logprobs_list, strict=True):
        read = one.loss_fn_inputs
        total = total - (read["advantages"].to_torch() * logprobs * read["weights"].to_torch()).sum()
    return total, {}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_at_weight_0_are_0_where_it_reads_every_position(odd: float) -> None:
    data = [datum(3, weights=[0, 1, 1], advantages=[odd, 1, 1]), datum(1, weights=[2], advantages=[1])]
    value, gradients, _ = evaluated(get_loss(weighed_advantages), data, [[odd, -2.0, -3.0], [-1.0]])
    assert value == 7.0
    assert_rows_equal(gradients, [[0, -1, -1], [-2]], 0)
    assert math.isnan(odd) == math.isnan(data[0].loss_fn_inputs["advantages"].data[0])  # the caller's are as they were


def test_nan_where_the_weight_is_not_0_names_datum_key_and_position() -> None:
    fine = datum(2, weights=[1, 1], advantages=[1, 1])
    odd = datum(2, weights=[0, 1], advantages=[math.nan, math.nan])
    with pytest.raises(NonFiniteLossInput) as caught:
        evaluated(get_loss(weighed_advantages), [fine, odd], [[-1.0, -1.0]] * 2)
    assert str(caught.value) == (
        "weighed_advantages: advantages of datum 1 of 2 is nan at position 1, where the weight is not 0"
    )
    with pytest.raises(
        NonFiniteLossInput, match=r"the model's logprobs of datum 1 are -inf at position 0, where the weight"
    ):
        evaluated(get_loss(weighed_advantages), [fine, fine], [[-1.0, -1.0], [-math.inf, -1.0]])


def test_its_metrics_may_be_numbers_of_any_make() -> None:
    def measures(data: Any, logprobs_list: Any) -> Any:
        total = sum(row.sum() for row in logprobs_list)
        return total, {
            "float": 1.5,
            "int": 2,
            "bool": True,
            "numpy": np.float32(0.5),
            "tensor": torch.tensor([4.0]),
            "graph": total,
            "stat": stats.max(logprobs_list[0]),
            "nan": math.nan,
        }

    _, _, metrics = evaluated(get_loss(measures), two_datums(), ROWS)
    assert metrics == pytest.approx(
        {
            "float": 1.5,
            "int": 2.0,
            "bool": 1.0,
            "numpy": 0.5,
            "tensor": 4.0,
            "graph": -6.7,
            "stat": -0.5,
            "nan": math.nan,
        },
        nan_ok=True,
    )
    assert all(type(value) is float for value in metrics.values())


def total(logprobs_list: Sequence[Tensor]) -> Any:
    return sum(row.sum() for row in logprobs_list)


def changes_a_key(data: Any, logprobs_list: Any) -> Any:
    data[1].loss_fn_inputs["weights"] = data[0].loss_fn_inputs["weights"]
    return total(logprobs_list), {}


def adds_a_key(data: Any, logprobs_list: Any) -> Any:
    data[1].loss_fn_inputs["note"] = 1
    return total(logprobs_list), {}


def changes_the_tokens(data: Any, logprobs_list: Any) -> Any:
    object.__setattr__(data[1], "model_input", data[0].model_input)
    return total(logprobs_list), {}


def changes_logprobs(data: Any, logprobs_list: Any) -> Any:
    with torch.no_grad():
        logprobs_list[1].mul_(2)
    return total(logprobs_list), {}


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        pytest.param(
            lambda data, logprobs: total(logprobs),
            LossContractError,
            "lambda must return (loss, metrics), a scalar tensor and a dict, not Tensor: end it with `return loss, {}`",
            id="no metrics",
        ),
        pytest.param(
            lambda data, logprobs: None,
            LossContractError,
            "lambda must return (loss, metrics), a scalar tensor and a dict, not NoneType: end it with "
            "`return loss, {}`",
            id="nothing returned",
        ),
        pytest.param(
            lambda data, logprobs: (total(logprobs), {}, 1),
            LossContractError,
            "lambda must return (loss, metrics), a scalar tensor and a dict, not tuple: end it with `return loss, {}`",
            id="three things returned",
        ),
        pytest.param(
            lambda data, logprobs: (logprobs[0], {}),
            LossContractError,
            "lambda must return a scalar tensor as its loss, not a tensor of shape [3]: sum or average it",
            id="a loss a token",
        ),
        pytest.param(
            lambda data, logprobs: (1.5, {}),
            LossContractError,
            "lambda must return a scalar tensor as its loss, not a float: sum or average it",
            id="a number instead of a tensor",
        ),
        pytest.param(
            lambda data, logprobs: (total(logprobs), [1.0]),
            LossContractError,
            "lambda must return its metrics as a dict, not list",
            id="metrics in a list",
        ),
        pytest.param(
            lambda data, logprobs: (total(logprobs), {"mode": "fast"}),
            LossContractError,
            "lambda: metric 'mode' must be a number, not 'fast'",
            id="a metric that is a word",
        ),
        pytest.param(
            lambda data, logprobs: (total(logprobs), {"rows": torch.zeros(2)}),
            LossContractError,
            "lambda: metric 'rows' must be a number, not tensor([0., 0.])",
            id="a metric that is several numbers",
        ),
        pytest.param(
            lambda data, logprobs: (total(logprobs).detach(), {}),
            NonDifferentiableLossError,
            "lambda: the loss does not depend on its logprobs, so nothing would be learned. Was it built with .item(), "
            ".detach(), torch.tensor(...) or float(...)?",
            id="a loss without a graph",
        ),
        pytest.param(
            changes_a_key,
            LossContractError,
            "changes_a_key changed loss_fn_inputs of datum 1; copy what you want to change",
            id="an input replaced",
        ),
        pytest.param(
            adds_a_key,
            LossContractError,
            "adds_a_key changed loss_fn_inputs of datum 1; copy what you want to change",
            id="an input added",
        ),
        pytest.param(
            changes_the_tokens,
            LossContractError,
            "changes_the_tokens changed model_input of datum 1",
            id="the tokens replaced",
        ),
        pytest.param(
            changes_logprobs,
            LossContractError,
            "changes_logprobs changed the logprobs of datum 1 in place; clone them first",
            id="logprobs changed in place",
        ),
    ],
)
def test_a_broken_contract_is_an_error_that_says_how_to_keep_it(
    function: Callable[..., Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        get_loss(function)(two_datums(), leaves(ROWS))
    assert str(caught.value) == message


def test_a_list_of_the_wrong_length_is_refused_before_the_function_runs() -> None:
    with pytest.raises(LengthMismatchError, match=r"^1 tensors of logprobs for 2 datums$"):
        get_loss(weighted_nll)(two_datums(), leaves(ROWS[:1]))


def test_its_own_exception_passes_unchanged() -> None:
    class OwnError(Exception):
        pass

    def fails(data: Any, logprobs_list: Any) -> Any:
        raise OwnError("mine")

    loss = get_loss(fails)
    for _ in range(2):  # and the loss stays usable
        with pytest.raises(OwnError, match=r"^mine$"):
            loss(two_datums(), leaves(ROWS))


def test_without_gradients_a_loss_without_a_graph_is_fine() -> None:
    value, _ = get_loss(weighted_nll)(two_datums(), [torch.tensor(row, dtype=torch.float64) for row in ROWS])
    assert float(value) == 3.0


@pytest.mark.parametrize("first", ["data", "datums", "batch"])
def test_the_first_parameters_name_marks_the_style(first: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def custom({first}, rows): return sum(row.sum() for row in rows), {{}}", namespace)
    loss = get_loss(namespace["custom"])
    assert (loss.spec.per, loss.couples, loss.outputs) == ("batch", "batch", ("logprobs",))
