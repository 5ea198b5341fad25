"""`topk_logprobs` and `topk_tokens`: what a loss reads of the model's own likeliest tokens, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import get_loss
from lossbook.datums.errors import DtypeError, LossConfigError, LossContractError, MissingInput, ShapeError, TraceError
from lossbook.losses import describe_loss, register_loss, unregister_loss
from lossbook.losses.testing import check_loss

from ..cases import datum, loss_of
from .test_tensors import assert_same

RANKED = [[[0.5, 0.25], [0.4, 0.1]], [[0.6, 0.3]]]
TOKENS = [[[7, 3], [1, 2]], [[9, 4]]]


def of_top(logprobs: Tensor, topk_logprobs: Tensor, topk_tokens: Tensor, *, top_k: int = 2) -> Tensor:
    """-logprob times the mass of those of the likeliest tokens whose id is odd."""
    return -logprobs * (topk_logprobs.exp() * (topk_tokens % 2)).sum(-1)


def likeliest(topk_logprobs: Tensor, *, top_k: int = 1) -> Tensor:
    """The probability of the likeliest token."""
    return topk_logprobs[:, 0].exp()


LOSS = loss_of(of_top)


def outputs_() -> dict[str, list[Tensor]]:
    return {
        "logprobs": [torch.tensor([-1.0, -2.0], dtype=torch.float64), torch.tensor([-3.0], dtype=torch.float64)],
        "topk_logprobs": [torch.tensor(one, dtype=torch.float64).log() for one in RANKED],
        "topk_tokens": [torch.tensor(one) for one in TOKENS],
    }


def data() -> list[Any]:
    return [datum(2, weights=[1, 1]), datum(1, weights=[2])]


def test_a_loss_reads_as_many_as_its_setting_says() -> None:
    # 1 x (0.5 + 0.25) + 2 x 0.4 + 2 x 3 x 0.6 = 5.15; of the likeliest alone: 0.5 + 0.8 + 3.6
    value, _ = LOSS(data(), outputs_())
    assert float(value) == pytest.approx(5.15)
    one, _ = get_loss(LOSS, top_k=1)(data(), outputs_())
    assert float(one) == pytest.approx(4.9)
    with pytest.raises(
        ShapeError, match="of_top with top_k=3 reads as many topk_logprobs per position, but there are 2"
    ):
        get_loss(LOSS, top_k=3)(data(), outputs_())


def test_a_part_of_a_mixture_reads_its_own_number() -> None:
    mixture = LOSS + 10.0 * loss_of(likeliest)
    value, _ = mixture(data(), outputs_())
    assert float(value) == pytest.approx(5.15 + 10 * (0.5 + 0.4 + 2 * 0.6))
    assert mixture.outputs == ("logprobs", "topk_logprobs", "topk_tokens")


def test_the_gradient_goes_to_log_probabilities_and_not_to_ids() -> None:
    given = {name: [one.requires_grad_(one.is_floating_point()) for one in ones] for name, ones in outputs_().items()}
    value, _ = LOSS(data(), given)
    slopes = torch.autograd.grad(value, given["topk_logprobs"])
    torch.testing.assert_close(slopes[0], torch.tensor([[0.5, 0.25], [0.8, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_on_tensors(packed: bool) -> None:
    assert_same(LOSS, data(), outputs_(), packed=packed)


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_on_logits_and_on_hidden_have_the_gradient_of_autograd(count: int, temperature: float) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels, mask = torch.tensor([[1, 5, -100], [0, 2, 3]]), torch.tensor([[1.0, 2.0, 1.0], [0.0, 1.0, 1.0]])
    loss = get_loss(LOSS, top_k=count, reduction="token-mean")
    every = (hidden @ weight.T / temperature).log_softmax(-1)
    best = every.topk(count, dim=-1)
    chosen = every.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    kept = mask * (labels >= 0)
    values = of_top(chosen.flatten(), best.values.flatten(0, 1), best.indices.flatten(0, 1)).reshape(2, 3)
    expected = (kept * values).sum() / kept.sum()
    slopes = torch.autograd.grad(expected, [hidden, weight], retain_graph=True)
    given: dict[str, Any] = {"mask": mask, "temperature": temperature}
    for value, _ in (
        loss.on_logits(hidden @ weight.T, labels, **given),
        loss.on_hidden(hidden, weight, labels, **given),
    ):
        torch.testing.assert_close(value, expected)
        for slope, wanted in zip(torch.autograd.grad(value, [hidden, weight], retain_graph=True), slopes, strict=True):
            torch.testing.assert_close(slope, wanted)


def without_setting(topk_logprobs: Tensor) -> Tensor:
    return topk_logprobs.sum(-1)


def ids_alone(topk_tokens: Tensor, *, top_k: int = 2) -> Tensor:
    return topk_tokens.sum(-1)


def batch(**given: Any) -> Callable[[], Any]:
    return lambda: LOSS.on_tensors(**{"logprobs": torch.zeros(1, 2), "mask": torch.ones(1, 2), **given})


CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no setting": (
        lambda: register_loss("without_setting")(without_setting),
        LossContractError,
        "without_setting reads topk_logprobs, so it needs a keyword-only setting that says how many",
    ),
    "ids alone": (
        lambda: register_loss("ids_alone")(ids_alone),
        LossContractError,
        "ids_alone reads topk_tokens alone, which have no gradient",
    ),
    "none of them": (lambda: get_loss(LOSS, top_k=0), LossConfigError, "of_top: top_k=0: a whole number of tokens"),
    "a bare list": (
        lambda: loss_of(likeliest)(data(), [torch.zeros(2), torch.zeros(1)]),
        LossContractError,
        "reads topk_logprobs, and a bare list is taken for logprobs or embeddings",
    ),
    "of other widths": (
        lambda: LOSS(data(), {**outputs_(), "topk_tokens": [torch.zeros(2, 2).long(), torch.zeros(1, 3).long()]}),
        ShapeError,
        "datum 1 of 2: topk_tokens is [1, 3]: one number for each of the k likeliest tokens",
    ),
    "ids as floats": (
        lambda: LOSS(data(), {**outputs_(), "topk_tokens": [torch.zeros(2, 2), torch.zeros(1, 2)]}),
        DtypeError,
        "datum 0 of 2: topk_tokens is torch.float32",
    ),
    "several targets": (
        lambda: LOSS.check([datum([[1, 2]], weights=[[1, 1]])]),
        ShapeError,
        "so it reads one token per position",
    ),
    "a trace": (
        lambda: LOSS.trace(),
        TraceError,
        "it reads the model's topk_logprobs and topk_tokens, and the service hands out logprobs only",
    ),
    "tensors without them": (batch(), MissingInput, "reads 'topk_logprobs', which was not given"),
    "one number per position": (
        batch(topk_logprobs=torch.zeros(1, 2), topk_tokens=torch.zeros(1, 2, 2).long()),
        ShapeError,
        "topk_logprobs is [1, 2]",
    ),
    "more than there are": (
        lambda: get_loss(LOSS, top_k=4).on_logits(torch.zeros(1, 2, 3), torch.zeros(1, 2).long()),
        ShapeError,
        "with top_k=4 reads more tokens than there are: 3",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_that_says_where(case: str) -> None:
    call, error, message = CASES[case]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_a_card_says_what_they_are() -> None:
    register_loss("of_top_registered", source="these tests")(of_top)
    try:
        card = describe_loss("of_top_registered")
        assert (card.outputs["topk_logprobs"].shape, card.outputs["topk_logprobs"].unit) == ("[T, k]", "nats")
        assert card.outputs["topk_tokens"].meaning == "the policy's k likeliest tokens, likeliest first"
        assert card.settings["top_k"].default == 2
    finally:
        unregister_loss("of_top_registered")


@pytest.mark.slow
def test_the_laws_hold() -> None:
    two = get_loss(LOSS, top_k=1, reduction="token-mean") + 0.5 * get_loss(LOSS, top_k=3, weights="mine")
    for loss in (LOSS, two):
        check_loss(loss, max_examples=3)
