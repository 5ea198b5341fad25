"""Losses over whole distributions on logits: tiles, gradients of all that they read, and what they cannot hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import get_loss
from lossbook.datums.errors import LossContractError
from lossbook.losses.batch.vocabulary import tiles


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def total(function: Any, logits: Tensor, tokens: Tensor, weights: Tensor, **more: Any) -> Tensor:
    return get_loss(function, reduction="sum").on_logits(logits, tokens, mask=weights, **more)[0]


def test_tiles_cover_all_positions_once_and_none_is_one_empty_tile() -> None:
    assert list(tiles(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(tiles(1, 1)) == list(tiles(1, 4)) == [slice(0, 1)]
    assert list(tiles(0, 4)) == [slice(0, 0)]


def test_a_loss_without_a_teacher_has_torch_s_gradient_to_the_last_digit() -> None:
    def negative_entropy(vocab_logprobs: Tensor) -> Tensor:
        return (vocab_logprobs.exp() * vocab_logprobs).sum(-1)

    logits, weights = normal(3, 5).requires_grad_(), torch.tensor([0.1, 0.0, 0.7], dtype=torch.float64)
    value = total(negative_entropy, logits, torch.zeros(3, dtype=torch.int64), weights)
    expected = (weights * negative_entropy(logits.log_softmax(-1))).sum()
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
    slopes = [torch.autograd.grad(one, logits)[0] for one in (value, expected)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-14)


def test_other_outputs_get_their_gradient_too_and_may_be_unused() -> None:
    def mixed(vocab_logprobs: Tensor, logprobs: Tensor, entropy: Tensor) -> Tensor:
        return vocab_logprobs[:, 0] * logprobs.square() + 0 * entropy.detach()

    logits, tokens = normal(3, 5).requires_grad_(), torch.tensor([1, 4, 0])
    value = total(mixed, logits, tokens, torch.ones(3))
    whole = logits.log_softmax(-1)
    own = whole.gather(1, tokens[:, None])[:, 0]
    expected = (whole[:, 0] * own.square()).sum()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], torch.autograd.grad(expected, logits)[0])


def test_a_parameter_of_the_loss_is_refused_wherever_it_stands_in_the_formula() -> None:
    scale = torch.ones(7, requires_grad=True)

    def scaled(vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor) -> Tensor:
        return (vocab_logprobs * teacher_vocab_logprobs).sum(-1).exp() * (2 * scale).sum()

    with pytest.raises(LossContractError, match=r"holds a parameter of shape \[7\]"):
        total(
            scaled,
            normal(2, 3).requires_grad_(),
            torch.zeros(2, dtype=torch.int64),
            torch.ones(2),
            teacher_logits=normal(2, 3),
        )
