"""What users give as a loss: modules, and functions of data and logprobs under any names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import get_loss
from lossbook.datums.errors import LossContractError
from lossbook.losses.registry import spec_of_function

from ..cases import datum


def two(rows: Any, numbers: Any) -> Any:
    return rows, numbers


def two_of_three(rows: Any, numbers: Any, factor: float = 1.0) -> Any:
    return rows, numbers


def all_have_defaults(rows: Any = None, numbers: Any = None) -> Any:
    return rows, numbers


def any_number(*both: Any) -> Any:
    return both


def one_and_any(rows: Any, *others: Any) -> Any:
    return (rows, *others)


def with_a_setting(rows: Any, numbers: Any, *, scale: float = 1.0) -> Any:
    return rows, numbers


def with_a_needed_setting(rows: Any, numbers: Any, *, scale: float) -> Any:
    return rows, numbers, scale


def named(data: Any, logprobs_list: Any, *, scale: float = 1.0) -> Any:
    return data, logprobs_list


def nothing() -> Any:
    return None


def only_one(rows: Any) -> Any:
    return rows


def three(rows: Any, numbers: Any, others: Any) -> Any:
    return rows, numbers, others


@pytest.mark.parametrize(
    "function",
    [two, two_of_three, all_have_defaults, any_number, one_and_any, with_a_setting, named],
    ids=lambda f: f.__name__,
)
def test_whatever_can_be_called_with_data_and_logprobs_is_a_custom_loss(function: Callable[..., Any]) -> None:
    spec = spec_of_function(function, output="logprobs")
    assert spec.is_batch_style
    assert spec.name == function.__name__
    assert spec.function("data", "rows") == ("data", "rows")


@pytest.mark.parametrize(
    ("function", "takes"),
    [
        (nothing, ""),
        (only_one, "rows"),
        (three, "rows, numbers, others"),
        (lambda a, b, c, d: a, "a, b, c, d"),
    ],
    ids=["none", "one", "three", "four"],
)
def test_whatever_cannot_is_refused_with_its_parameters(function: Callable[..., Any], takes: str) -> None:
    with pytest.raises(LossContractError) as caught:
        spec_of_function(function, output="logprobs")
    assert str(caught.value) == (
        f"a custom loss takes two arguments, fn(data, logprobs_list), but {function.__name__!r} takes ({takes}). "
        "Close over anything else, for instance with functools.partial"
    )


class Scaled(torch.nn.Module):
    """-factor x logprobs."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, logprobs: Tensor, *, shift: float = 0.0) -> Tensor:
        return -self.factor * logprobs + shift


def test_a_module_is_a_loss_of_its_forward() -> None:
    module = Scaled()
    value, _ = get_loss(module, shift=0.5)([datum(2)], [torch.tensor([-1.0, -2.0])])
    assert float(value.detach()) == 10
    value.backward()
    assert float(module.factor.grad) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("output", ["logprob", "logits", "", "topk_tokens"])
def test_an_output_that_no_function_is_handed_is_refused(output: str) -> None:
    def function(data: Any, logprobs_list: Any) -> Any:
        return logprobs_list[0].sum(), {}

    with pytest.raises(LossContractError, match=rf"function: output='{output}' is none of logprobs, embeddings,"):
        spec_of_function(function, output=output)
