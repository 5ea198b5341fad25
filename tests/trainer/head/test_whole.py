"""Losses over whole distributions, evaluated in tiles: values, gradients and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lossbook
from lossbook.datums.errors import LossContractError, ShapeError
from lossbook.losses import stats
from lossbook.losses.batch.vocabulary import tiles
from lossbook.trainer.head import whole
from lossbook.trainer.head.logprobs import Head


def reverse(
    vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor, logprobs: Tensor, advantages: Tensor, *, power: float = 1.0
) -> Any:
    kl = (vocab_logprobs.exp() * (vocab_logprobs - teacher_vocab_logprobs)).sum(-1)
    return kl * advantages - power * logprobs, {"kl": stats.mean(kl), "most": stats.max(kl)}


def plain(vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor) -> Tensor:
    return (vocab_logprobs.exp() * (vocab_logprobs - teacher_vocab_logprobs)).sum(-1)


def other_vocabulary(vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor) -> Tensor:
    own, other = (x.exp().sort(-1, descending=True).values for x in (vocab_logprobs, teacher_vocab_logprobs))
    return (own[:, :3] - other[:, :3]).abs().sum(-1) + own[:, 3:].sum(-1)


def dense(hidden: Tensor, head: Head) -> Tensor:
    logits = hidden @ head.weight.t()
    logits = (logits if head.bias is None else logits + head.bias) * head.scale
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits, -1)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@given(
    st.integers(1, 9),
    st.integers(2, 40),
    st.booleans(),
    st.sampled_from([None, 0.8]),
    st.sampled_from([1.0, 0.3]),
    st.sampled_from(["sum", "token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]),
    st.integers(0, 99),
)
def test_a_loss_in_tiles_has_the_dense_value_metrics_and_gradients(
    rows: int, vocabulary: int, has_bias: bool, softcap: float | None, scale: float, reduction: str, seed: int
) -> None:
    hidden, other = normal(2, rows, 5, seed=seed).requires_grad_(), normal(2, rows, 3, seed=seed + 1)
    weight = normal(vocabulary, 5, seed=seed + 2).requires_grad_()
    bias = normal(vocabulary, seed=seed + 3).requires_grad_() if has_bias else None
    leaves = [hidden, weight, *([] if bias is None else [bias])]
    head, teacher_head = Head(weight, bias, softcap, scale), Head(normal(vocabulary, 3, seed=seed + 4))
    labels = torch.randint(0, vocabulary, (2, rows), generator=torch.Generator().manual_seed(seed))
    mask = (normal(2, rows, seed=seed + 5) > -0.5).double() * 1.5
    mask[0, 0] = 1
    advantages = normal(2, rows, seed=seed + 6)
    loss = lossbook.get_loss(reverse, reduction=reduction)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole, "WHOLE_BYTES", {"cpu": 2 * 4 * vocabulary, "other": 1})
        value, metrics = loss.on_hidden(
            hidden, head, labels, mask=mask, advantages=advantages, teacher_hidden=other, teacher_head=teacher_head
        )
    student, teacher = dense(hidden, head), dense(other, teacher_head)
    chosen = student.gather(-1, labels[..., None]).squeeze(-1)
    expected, expected_metrics = loss.on_tensors(
        chosen, mask=mask, advantages=advantages, vocab_logprobs=student, teacher_vocab_logprobs=teacher
    )
    torch.testing.assert_close(value, expected)
    assert dict(metrics) == pytest.approx(dict(expected_metrics))
    for one, wanted in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(one, wanted)


@given(st.integers(1, 6), st.integers(2, 20), st.floats(0.3, 2), st.integers(0, 99))
def test_logits_that_are_there_give_the_same(rows: int, vocabulary: int, temperature: float, seed: int) -> None:
    logits, teacher = (
        normal(1, rows, vocabulary, seed=seed).requires_grad_(),
        normal(1, rows, vocabulary, seed=seed + 1),
    )
    labels = torch.zeros(1, rows, dtype=torch.int64)
    labels[0, 1:] = -100 if rows > 3 else 0
    loss = lossbook.get_loss(reverse)
    advantages = normal(1, rows, seed=seed + 2)
    value, _ = loss.on_logits(logits, labels, advantages=advantages, temperature=temperature, teacher_logits=teacher)
    student = torch.log_softmax(logits / temperature, -1)
    expected, _ = loss.on_tensors(
        student[..., 0],
        mask=(labels == 0).double(),
        advantages=advantages,
        vocab_logprobs=student,
        teacher_vocab_logprobs=torch.log_softmax(teacher, -1),
    )
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(one, logits)[0] for one in (value, expected)]
    torch.testing.assert_close(*gradients)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("vocabulary", [512, 4096])
@pytest.mark.parametrize("positions", [64, 256])
def test_no_tensor_is_larger_than_a_tile_whatever_positions_and_vocabulary(
    vocabulary: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 64 * 1024
    monkeypatch.setattr(whole, "WHOLE_BYTES", {"cpu": limit, "other": limit})
    hidden = normal(positions, 4).float().requires_grad_()
    head, teacher = torch.randn(vocabulary, 4).requires_grad_(), torch.randn(vocabulary, 4)
    loss = lossbook.get_loss(plain)
    with Largest() as largest:
        value, _ = loss.on_hidden(
            hidden, head, torch.zeros(positions, dtype=torch.int64),
            teacher_hidden=torch.randn(positions, 4), teacher_head=teacher,
        )  # fmt: skip
        value.backward()
    assert positions * vocabulary * 4 >= 2 * limit
    assert largest.bytes <= max(limit, head.untyped_storage().nbytes())


def test_a_loss_may_read_the_students_distribution_alone_and_makes_no_gradient_under_no_grad() -> None:
    seen: list[bool] = []

    def negative_entropy(vocab_logprobs: Tensor) -> Tensor:
        seen.append(vocab_logprobs.requires_grad)
        return (vocab_logprobs.exp() * vocab_logprobs).sum(-1)

    hidden, weight = normal(3, 2).requires_grad_(), normal(5, 2, seed=1).requires_grad_()
    labels, loss = torch.zeros(3, dtype=torch.int64), lossbook.get_loss(negative_entropy)
    value, _ = loss.on_hidden(hidden, weight, labels)
    logprobs = torch.log_softmax(hidden @ weight.t(), -1)
    expected = (logprobs.exp() * logprobs).sum()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, hidden), torch.autograd.grad(expected, hidden))
    with torch.no_grad():
        assert loss.on_hidden(hidden, weight, labels)[0] == value.detach()
    assert seen == [True, False]


def test_an_output_that_a_loss_does_not_use_gets_no_gradient() -> None:
    def of_logprobs(vocab_logprobs: Tensor, logprobs: Tensor) -> Tensor:
        return -logprobs

    hidden, weight, labels = normal(3, 2).requires_grad_(), normal(5, 2, seed=1), torch.tensor([1, 0, 4])
    value, _ = lossbook.get_loss(of_logprobs).on_hidden(hidden, weight, labels)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    torch.testing.assert_close(torch.autograd.grad(value, hidden), torch.autograd.grad(expected, hidden))


def test_a_teacher_of_another_precision_is_read_in_the_students() -> None:
    hidden, weight, labels = normal(3, 2).requires_grad_(), normal(5, 2, seed=1), torch.zeros(3, dtype=torch.int64)
    states, head = normal(3, 4, seed=2).float(), normal(5, 4, seed=3).float()
    loss = lossbook.get_loss("full_forward_kl", reduction="sum")
    narrow, _ = loss.on_hidden(hidden, weight, labels, teacher_hidden=states, teacher_head=head)
    wide, _ = loss.on_hidden(hidden, weight, labels, teacher_hidden=states.double(), teacher_head=head.double())
    assert narrow.dtype == torch.float64
    torch.testing.assert_close(narrow, wide, rtol=1e-5, atol=1e-6)


def test_a_call_without_positions_has_metrics_and_no_gradient() -> None:
    hidden, weight = normal(3, 2).requires_grad_(), normal(5, 2, seed=1).requires_grad_()
    value, metrics = lossbook.get_loss("full_gkd").on_hidden(
        hidden, weight, torch.zeros(3, dtype=torch.int64), mask=torch.zeros(3), denominator=2.0,
        teacher_hidden=hidden.detach(), teacher_head=weight.detach(),
    )  # fmt: skip
    value.backward()
    assert value == 0
    assert {"agreement", "teacher_entropy"} <= set(metrics)
    assert bool((hidden.grad == 0).all())
    assert bool((weight.grad == 0).all())


@pytest.mark.parametrize(
    ("positions", "rows", "parts"), [(0, 3, [(0, 0)]), (1, 1, [(0, 1)]), (5, 2, [(0, 2), (2, 4), (4, 5)]), (4, 2, [(0, 2), (2, 4)])]
)  # fmt: skip
def test_tiles_hold_each_position_once(positions: int, rows: int, parts: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in tiles(positions, rows)] == parts


def test_a_teacher_may_have_another_vocabulary_where_the_loss_says_so() -> None:
    hidden, weight = normal(4, 3, seed=1).requires_grad_(), normal(6, 3, seed=2).requires_grad_()
    others = {"teacher_hidden": normal(4, 2, seed=3), "teacher_head": normal(9, 2, seed=4)}
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ShapeError, match="the student has 6 tokens and the teacher 9"):
        lossbook.get_loss(other_vocabulary).on_hidden(hidden, weight, labels, **others)
    lossbook.register_loss("other_vocabulary_of_this_test", vocabularies="any")(other_vocabulary)
    try:
        value, _ = lossbook.get_loss("other_vocabulary_of_this_test").on_hidden(hidden, weight, labels, **others)
    finally:
        lossbook.unregister_loss("other_vocabulary_of_this_test")
    student, teacher = (
        torch.log_softmax(hidden @ weight.t(), -1),
        torch.log_softmax(others["teacher_hidden"] @ others["teacher_head"].t(), -1),
    )
    expected = other_vocabulary(student, teacher).sum()
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(one, weight, retain_graph=one is expected)[0] for one in (value, expected)]
    torch.testing.assert_close(*gradients)
    with pytest.raises(LossContractError, match="do not go backward twice"):
        value.backward()


@pytest.mark.parametrize(
    ("declared", "function", "why"),
    [
        ({}, lambda vocab_logprobs, seqs: vocab_logprobs[:, 0], "cannot read seqs"),
        ({}, lambda teacher_vocab_logprobs, logprobs: logprobs, "reads vocab_logprobs and no embeddings"),
        ({"couples": "datum"}, lambda vocab_logprobs: vocab_logprobs[:, 0], "couples no tokens"),
        ({"per": "datum"}, lambda vocab_logprobs: vocab_logprobs[:, 0], "must be a loss per token"),
    ],
)
def test_a_loss_that_needs_all_positions_together_is_refused(declared: Any, function: Any, why: str) -> None:
    with pytest.raises(LossContractError, match=why):
        lossbook.register_loss("refused_by_this_test", **declared)(function)


def test_a_parameter_of_the_loss_itself_is_refused_since_it_would_get_no_gradient() -> None:
    scale = torch.ones(1, requires_grad=True)

    def scaled(vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor) -> Tensor:
        return (vocab_logprobs * teacher_vocab_logprobs).sum(-1) * scale

    with pytest.raises(LossContractError, match=r"holds a parameter of shape \[1\]"):
        lossbook.get_loss(scaled).on_logits(
            normal(2, 3).requires_grad_(), torch.zeros(2, dtype=torch.int64), teacher_logits=normal(2, 3)
        )
