"""Losses on logits beside labels: which positions are read, what is refused, and what a function of whole datums sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import get_loss
from lossbook.datums.errors import (
    DtypeError,
    LossContractError,
    NonFiniteLossInput,
    ShapeError,
    TokenRangeError,
    UnknownInput,
)
from lossbook.datums.lazy import hand_over
from lossbook.losses.loss.tensors.sources import SOURCES, sources

#: The logarithms of a distribution over 4 tokens, at 2 x 3 positions, and the tokens to be predicted.
LOGITS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log().expand(2, 3, 4)
LABELS = torch.tensor([[0, 3, -100], [1, -100, 2]])
SUM = get_loss("cross_entropy")
MEAN = get_loss("cross_entropy", reduction="token-mean")


def nats(*shares: float) -> float:
    """Minus the logarithm of their product."""
    return -float(torch.tensor(shares, dtype=torch.float64).log().sum())


def test_a_mask_of_booleans_leaves_the_labels_that_both_keep() -> None:
    mask = torch.tensor([[True, False, True], [True, True, True]])
    assert SUM.on_logits(LOGITS, LABELS, mask=mask)[0].item() == pytest.approx(nats(0.1, 0.2, 0.3))
    assert MEAN.count_tensors(labels=LABELS, mask=mask).item() == 3


def test_labels_of_k_candidates_count_where_any_is_there() -> None:
    labels = torch.tensor([[[0, 3], [1, -100], [-100, -100]], [[-100, 2], [-100, -100], [1, 0]]])
    count = get_loss("topk_forward_kl", reduction="token-mean").count_tensors
    assert count(labels=labels).item() == 4
    assert count(labels=labels, mask=torch.tensor([[1, 0, 1], [1, 1, 1]])).item() == 3
    mine = get_loss("topk_forward_kl", reduction="token-mean", weights="mine")
    assert mine.count_tensors(labels=labels, mine=torch.tensor([[1, 0, 1], [1, 1, 1]])).item() == 3
    assert MEAN.count_tensors(labels=labels).item() == 6
    assert SUM.on_logits(LOGITS, labels)[0].item() == pytest.approx(nats(0.1, 0.4, 0.2, 0.3, 0.2, 0.1))


def test_a_loss_over_candidates_stands_beside_one_over_targets_with_weights_of_its_own() -> None:
    labels = torch.tensor([[[0, 3], [1, -100], [-100, -100]], [[2, 1], [3, 0], [1, 0]]])
    over, each = get_loss("topk_forward_kl"), get_loss("cross_entropy", weights="mine")
    teacher = torch.where(labels == -100, -torch.inf, torch.full((2, 3, 2), 0.5, dtype=torch.float64).log())
    own: dict[str, Any] = {"mask": torch.tensor([[1, 1, 1], [0, 1, 1]]), "teacher_logprobs": teacher}
    other: dict[str, Any] = {"mine": torch.tensor([[[1.0, 2.0], [3.0, 9.0], [9.0, 9.0]], [[0.0, 1.0]] * 3])}
    value, _ = (over + each).on_logits(LOGITS, labels, **own, **other)
    apart = over.on_logits(LOGITS, labels, **own)[0] + each.on_logits(LOGITS, labels, **other)[0]
    torch.testing.assert_close(value, apart, rtol=0, atol=1e-12)
    assert each.on_logits(LOGITS, labels, **other)[0].item() == pytest.approx(
        nats(0.1, 0.4, 0.4, 0.2, 0.2, 0.2, 0.2, 0.1, 0.1)
    )


@pytest.mark.parametrize("labels", [LABELS.bool(), LABELS.double()], ids=["booleans", "floats"])
def test_labels_are_integers(labels: Tensor) -> None:
    with pytest.raises(DtypeError, match="they are token ids, integers"):
        MEAN.on_logits(LOGITS, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "ends", "is_shifted"),
    [
        ((3, 5, 7), (3, 4), None, True),
        ((3, 4, 7), (3, 3), None, True),
        ((3, 6, 7), (3, 4), None, False),
        ((5, 4, 7), (3, 4), None, False),
        ((3, 4), (3, 4), None, False),
        ((3, 4, 7, 1), (3, 4), None, False),
        ((3, 5, 7, 1), (3, 4), None, False),
        ((1, 6, 7), (1, 5), [0, 5], True),
        ((1, 6, 7), (5,), [0, 5], True),
        ((6, 7), (5,), [0, 5], False),
    ],
)
def test_logits_that_were_not_shifted_are_told_so_and_others_that_do_not_fit_are_not(
    logits: tuple[int, ...], labels: tuple[int, ...], ends: list[int] | None, is_shifted: bool
) -> None:
    with pytest.raises(ShapeError) as caught:
        MEAN.on_logits(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64), cu_seqlens=ends)
    plain = f"cross_entropy: logits is {list(logits)} beside labels {list(labels)}: one row of it per label"
    hint = ". Position t predicts labels[:, t]: give logits[:, :-1] with labels[:, 1:]"
    assert str(caught.value) == plain + (hint if is_shifted else "")


def test_one_label_a_position_where_k_are_compared_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"so labels is \[2, 3, K\], not \[2, 3\]"):
        get_loss("topk_forward_kl").on_logits(LOGITS, LABELS, teacher_logprobs=LOGITS)


def test_an_output_made_of_logits_is_not_given_and_another_that_is_not_read_has_no_such_hint() -> None:
    with pytest.raises(UnknownInput, match=r"does not read 'logprobs'\. It is computed here"):
        MEAN.on_logits(LOGITS, LABELS, logprobs=torch.zeros(2, 3))
    for key in ("entropy", "values", "advantages"):
        with pytest.raises(UnknownInput, match=f"does not read {key!r}") as caught:
            MEAN.on_logits(LOGITS, LABELS, **{key: torch.zeros(2, 3)})
        assert "computed here" not in str(caught.value)


def test_outputs_that_are_given_beside_logits_are_read_where_labels_count() -> None:
    values = torch.tensor([[1.0, 2.0, 8.0], [3.0, 9.0, 4.0]], dtype=torch.float64)
    mixture = SUM + get_loss("value_mse", reduction="sum")
    given: dict[str, Any] = {"values": values, "returns": torch.zeros(2, 3)}
    value, metrics = mixture.on_logits(LOGITS, LABELS, **given)
    alone, _ = get_loss("value_mse", reduction="sum").on_tensors(mask=LABELS != -100, **given)
    assert value.item() == pytest.approx(nats(0.1, 0.4, 0.2, 0.3) + alone.item())
    assert metrics["cross_entropy/nll"] == pytest.approx(nats(0.1, 0.4, 0.2, 0.3) / 4)


def test_vectors_beside_logits_are_one_a_row() -> None:
    mixture = SUM + get_loss("info_nce")
    vectors = torch.eye(4, dtype=torch.float64)[:, :2]
    logits, labels = LOGITS.repeat(2, 1, 1), LABELS.repeat(2, 1)
    value, _ = mixture.on_logits(logits, labels, embeddings=vectors)
    alone, _ = get_loss("info_nce").on_tensors(embeddings=vectors)
    assert value.item() == pytest.approx(2 * nats(0.1, 0.4, 0.2, 0.3) + alone.item())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_teachers_hidden_states_give_what_its_logits_give(temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 5, dtype=torch.float64, generator=draw)
    heads = torch.randn(2, 4, 5, dtype=torch.float64, generator=draw)
    loss = get_loss("full_reverse_kl")
    given: dict[str, Any] = {"temperature": temperature, "mask": torch.ones(2, 3)}
    by_hidden, _ = loss.on_hidden(student, heads[0], LABELS, teacher_hidden=teacher, teacher_head=heads[1], **given)
    logits, of_teacher = student @ heads[0].T, teacher @ heads[1].T
    by_logits, _ = loss.on_logits(logits, LABELS, teacher_logits=of_teacher, **given)
    own, other = (logits / temperature).log_softmax(-1), of_teacher.log_softmax(-1)
    kept = LABELS != -100
    expected = (own.exp() * (own - other)).sum(-1)[kept].mean()
    torch.testing.assert_close(by_hidden, by_logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_hidden, expected, rtol=0, atol=1e-12)


# Which number is named.


def test_the_first_label_outside_the_vocabulary_is_named_and_one_of_an_absent_candidate_is_not_read() -> None:
    labels = torch.tensor([[0, 3, -100], [1, 4, 5]])
    with pytest.raises(TokenRangeError, match="labels of row 1 is 4 at position 1"):
        MEAN.on_logits(LOGITS, labels)
    wide = torch.tensor([[[0, 3], [1, 2], [9, 0]], [[2, 1], [3, 0], [1, 0]]])
    with pytest.raises(TokenRangeError, match="labels of row 0 is 9 at position 2"):
        MEAN.on_logits(LOGITS, wide)
    loss, teacher = get_loss("topk_forward_kl"), torch.full((2, 3, 2), -1.0, dtype=torch.float64)
    with pytest.raises(TokenRangeError, match="labels of row 0 is 9 at position 2"):
        loss.on_logits(LOGITS, wide, teacher_logprobs=teacher)
    teacher[0, 2, 0] = -torch.inf
    absent, _ = loss.on_logits(LOGITS, wide, teacher_logprobs=teacher)
    wide[0, 2, 0] = 1
    assert absent.item() == loss.on_logits(LOGITS, wide, teacher_logprobs=teacher)[0].item()


def test_logits_that_are_not_finite_are_named_by_row_and_position() -> None:
    logits = LOGITS.clone()
    logits[1, 1:] = torch.nan
    with pytest.raises(NonFiniteLossInput, match="logprobs of row 1 is nan at position 1, candidate 0"):
        SUM.on_logits(logits, torch.ones(2, 3, 2, dtype=torch.int64))
    labels = torch.tensor([[-100, 3, 0], [-100, -100, 2]])
    with pytest.raises(NonFiniteLossInput, match="logprobs of row 1 is nan at position 2"):
        SUM.on_logits(logits, labels)
    with pytest.raises(NonFiniteLossInput, match="logprobs of row 1 is nan at position 2, candidate 0"):
        SUM.on_logits(logits, labels[..., None].repeat(1, 1, 2))


def test_without_the_trainers_arithmetic_logits_are_refused_with_the_mend() -> None:
    given = sources()

    def nothing() -> Any:
        raise KeyError(SOURCES)

    hand_over(SOURCES, nothing)
    try:
        with pytest.raises(LossContractError, match="on_logits and on_hidden need lossbook's trainer: import lossbook"):
            MEAN.on_logits(LOGITS, LABELS)
    finally:
        hand_over(SOURCES, lambda: given)


# Functions of whole datums.


def seen(*losses: Any, **changed: Any) -> list[Any]:
    """The (datum, logprobs) that a function of whole datums is handed on LOGITS, in a mixture with `losses`."""
    handed: list[Any] = []

    def look(data: Any, logprobs_list: Any) -> tuple[Tensor, dict[str, float]]:
        handed.extend(zip(data, logprobs_list, strict=True))
        return sum(logprobs.sum() for logprobs in logprobs_list), {}

    mixture = get_loss(look)
    for loss in losses:
        mixture = mixture + loss
    mixture.on_logits(**{"logits": LOGITS, "labels": LABELS, **changed})
    return handed


@pytest.mark.parametrize("losses", [(), (SUM,)], ids=["alone", "beside a loss that skips positions"])
def test_a_function_of_whole_datums_sees_every_position_of_its_labels(losses: tuple[Any, ...]) -> None:
    (first, of_first), (second, of_second) = seen(*losses)
    assert first.loss_fn_inputs["target_tokens"].tolist() == [0, 3, 0], "an ignored label is token 0"
    assert first.loss_fn_inputs["weights"].tolist() == [1, 1, 0]
    assert second.loss_fn_inputs["target_tokens"].tolist() == [1, 0, 2]
    assert of_first.exp().tolist() == pytest.approx([0.1, 0.4, 0.1])
    assert of_second.exp().tolist() == pytest.approx([0.2, 0.1, 0.3])
    outside = seen(labels=torch.tensor([[0, 3, 99], [1, 4, 2]]), mask=torch.tensor([[1, 1, 0], [1, 0, 1]]))
    last = [float(logprobs.exp()[at]) for (_, logprobs), at in zip(outside, (2, 1), strict=True)]
    assert last == pytest.approx([0.4, 0.4]), (
        "a label that does not count may be any number, and is read as the nearest"
    )


def test_its_datums_have_a_token_for_each_position_and_at_least_one() -> None:
    logits, labels = LOGITS.flatten(0, 1)[:4], torch.tensor([0, 1, 2, 3])
    datums = [one for one, _ in seen(logits=logits, labels=labels, cu_seqlens=[0, 1, 1, 4])]
    assert [one.model_input.to_ints() for one in datums] == [[0], [0], [0, 0, 0]]
    given = [one for one, _ in seen(logits=logits, labels=labels, cu_seqlens=[0, 1, 4], input_ids=[5, 6, 7, 8])]
    assert [one.model_input.to_ints() for one in given] == [[5], [6, 7, 8]]
