"""How tensors of a loss may lie: what is one position, one row or one of K targets, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import PerDatum, get_loss
from lossbook.datums.errors import (
    DtypeError,
    EmptyLossError,
    InvalidLogprobError,
    MissingInput,
    NonFiniteLossInput,
    ShapeError,
    UnknownInput,
    WeightsError,
)
from lossbook.datums.inputs import MAX_LOGPROB
from lossbook.losses import VectorPerDatum
from lossbook.losses.embedding.adaptive_layer import adaptive_layer

from ..cases import loss_of

NAN, INF = float("nan"), float("inf")
ONES = torch.ones(2, 3)
LOGPROBS = torch.tensor([[-0.5, -1.0, -1.5], [-2.0, -0.25, -0.75]])
MEAN = get_loss("cross_entropy", reduction="token-mean")


def surprised(logprobs: Tensor, entropy: Tensor) -> Tensor:
    return -logprobs * entropy


def labelled(logprobs: Tensor, label: PerDatum) -> Tensor:
    return -logprobs


def of_pairs(embeddings: Tensor) -> Tensor:
    return embeddings[::2].sum(1)


# Rows and positions.


def test_packed_tensors_of_several_numbers_a_position_may_lie_in_one_row() -> None:
    student, teacher = -1 - torch.rand(2, 5, 4, dtype=torch.float64)
    loss, ends = get_loss("topk_forward_kl"), [0, 2, 5]
    flat, _ = loss.on_tensors(student, mask=torch.ones(5), teacher_logprobs=teacher, cu_seqlens=ends)
    row, _ = loss.on_tensors(student[None], mask=torch.ones(1, 5), teacher_logprobs=teacher[None], cu_seqlens=ends)
    assert flat.item() == row.item()


def test_a_mask_of_one_number_says_that_several_are_candidates_of_one_position() -> None:
    student, teacher = -1 - torch.rand(2, 1, 4, dtype=torch.float64)
    loss = get_loss("topk_forward_kl")
    packed, _ = loss.on_tensors(student, mask=torch.ones(1), teacher_logprobs=teacher, cu_seqlens=[0, 1])
    padded, _ = loss.on_tensors(student[None], mask=torch.ones(1, 1), teacher_logprobs=teacher[None])
    assert packed.item() == padded.item()


def test_sequences_of_one_position_each_may_be_as_many_as_positions() -> None:
    value, _ = get_loss("ppo").on_tensors(
        logprobs=LOGPROBS.flatten(),
        sampling_logprobs=LOGPROBS.flatten(),
        advantages=torch.arange(6.0),
        mask=torch.ones(6),
        cu_seqlens=range(7),
    )
    assert value.item() == -15


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([0, 4, 3, 6], "cu_seqlens falls from 4 to 3 at sequence 1"),
        ([0, 4, 2, 3, 1, 6], "cu_seqlens falls from 4 to 2 at sequence 1"),
    ],
)
def test_the_first_fall_of_boundaries_is_named(ends: list[int], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        MEAN.on_tensors(LOGPROBS.flatten(), mask=torch.ones(6), cu_seqlens=ends)


@pytest.mark.parametrize(
    ("loss", "given", "message"),
    [
        (
            MEAN,
            {"logprobs": torch.ones(2, 3, 4, 5)},
            "logprobs is [2, 3, 4, 5]: it must be padded [B, T], or packed [P]",
        ),
        (
            "entropy_bonus",
            {"entropy": torch.ones(2, 3, 4)},
            "entropy is [2, 3, 4]: it must be padded [B, T], or packed",
        ),
        (
            MEAN,
            {"logprobs": torch.ones(1, 6, 4, 5), "cu_seqlens": [0, 6]},
            "logprobs is [1, 6, 4, 5] beside cu_seqlens: packed tensors are [P] or [1, P]",
        ),
        (
            "entropy_bonus",
            {"entropy": torch.ones(6, 4), "cu_seqlens": [0, 6]},
            "entropy is [6, 4] beside cu_seqlens: packed tensors are [P] or [1, P]",
        ),
        (
            MEAN,
            {"logprobs": LOGPROBS, "mask": torch.ones(2, 3, 1, 1)},
            "mask is [2, 3, 1, 1], but logprobs has the pos",
        ),
        (
            surprised,
            {"logprobs": LOGPROBS, "entropy": torch.ones(2, 3, 4), "mask": ONES},
            "entropy is [2, 3, 4]: one number per position, [2, 3]",
        ),
        (
            "full_forward_kl",
            {"vocab_logprobs": -ONES, "teacher_vocab_logprobs": -torch.ones(2, 3, 4), "mask": ONES},
            "vocab_logprobs is [2, 3]: one number per token of the vocabulary, [2, 3, V]",
        ),
        (
            "eaft",
            {"logprobs": LOGPROBS, "topk_logprobs": LOGPROBS, "mask": ONES},
            "topk_logprobs is [2, 3]: one number per likeliest token, [2, 3, k]",
        ),
        (
            "maxsim",
            {"token_embeddings": ONES, "mask": ONES},
            "token_embeddings is [2, 3]: one vector per position, [2, 3, D]",
        ),
    ],
)
def test_a_shape_that_cannot_be_meant_is_refused(loss: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        get_loss(loss).on_tensors(**given)
    assert message in str(caught.value)


def test_vectors_of_layers_are_one_of_each_row_and_layer() -> None:
    for wrong in (torch.ones(4, 3, 2), torch.ones(4, 2)):
        with pytest.raises(ShapeError, match=r"one vector per row and layer, \[4, 1, D\]"):
            adaptive_layer("info_nce", layers=(2,)).on_tensors(
                embeddings=torch.ones(4, 2), layer_embeddings=wrong, document_id=range(4)
            )


def test_an_odd_row_of_pairs_of_vectors_is_refused() -> None:
    pairs = loss_of(of_pairs, per="pair")
    assert pairs.on_tensors(embeddings=torch.ones(4, 2))[0].item() == 2
    for rows in (3, 5):
        with pytest.raises(ShapeError, match=f"pairs are rows 2i and 2i\\+1, but their number is {rows}"):
            pairs.on_tensors(embeddings=torch.ones(rows, 2))


def test_an_output_with_one_number_in_its_last_dimension_says_the_positions() -> None:
    def likeliest(topk_logprobs: Tensor, *, top_k: int = 1) -> Tensor:
        return -topk_logprobs[:, 0]

    value, _ = loss_of(likeliest).on_tensors(topk_logprobs=LOGPROBS[..., None], mask=ONES)
    assert value.item() == 6


def test_no_positions_and_no_numbers_of_each_are_told_apart() -> None:
    loss = get_loss("maxsim")
    value, _ = loss.on_tensors(token_embeddings=torch.ones(2, 0, 4), mask=torch.ones(2, 0), denominator=1)
    assert value.item() == 0
    with pytest.raises(ShapeError, match=r"token_embeddings is \[2, 3, 0\]"):
        loss.on_tensors(token_embeddings=torch.ones(2, 3, 0))


# Inputs.


def test_candidates_have_one_number_each_of_the_loss_and_of_the_teacher() -> None:
    loss, wide = get_loss("topk_forward_kl"), torch.full((2, 3, 4), -2.0)
    message = r"teacher_logprobs must hold one number for each of the 4 candidates of a position, \[2, 3, 4\]"
    for narrow in (LOGPROBS, torch.zeros(2)):
        with pytest.raises(ShapeError, match=message):
            loss.on_tensors(wide, mask=ONES, teacher_logprobs=narrow)
    with pytest.raises(ShapeError, match=r"compares K candidate tokens per position, so logprobs is \[2, 3, K\], not"):
        loss.on_tensors(LOGPROBS, mask=ONES, teacher_logprobs=wide)


def test_each_part_checks_the_inputs_that_it_reads_in_any_order() -> None:
    both = get_loss("dpo") + get_loss("reinforce")
    for order in (("advantages", "ref_logprobs"), ("ref_logprobs", "advantages")):
        given = {"advantages": ONES, "ref_logprobs": torch.zeros(2, 3, 1)}
        with pytest.raises(ShapeError, match="dpo: ref_logprobs must be one number per position"):
            both.on_tensors(LOGPROBS, mask=ONES, **{key: given[key] for key in order})


def test_an_input_may_be_another_parts_mask() -> None:
    def bonus(logprobs: Tensor, mine: Tensor) -> Tensor:
        return -logprobs * mine

    weights = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    alone = get_loss("cross_entropy", weights="mine")
    mixture = alone + get_loss(bonus, reduction="sum")
    assert alone.on_tensors(LOGPROBS, mine=weights)[0].item() == 0.5 + 2 * 1.5
    assert mixture.on_tensors(LOGPROBS, mask=ONES, mine=weights)[0].item() == 2 * (0.5 + 2 * 1.5)
    assert alone.count_tensors(mine=weights).item() == 0
    with pytest.raises(UnknownInput, match="does not read 'theirs'"):
        alone.on_tensors(LOGPROBS, mine=weights, theirs=weights)


def test_float64_inputs_keep_their_digits_and_shorter_floats_and_integers_are_taken() -> None:
    third = torch.full((2, 3), 1 / 3, dtype=torch.float64)
    loss, doubles = get_loss("reinforce"), torch.full((2, 3), -1.0, dtype=torch.float64)
    assert loss.on_tensors(doubles, mask=ONES, advantages=third)[0].item() == pytest.approx(2.0, abs=1e-15)
    for dtype in (torch.bfloat16, torch.float16, torch.int32):
        per_row = torch.tensor([1, 3], dtype=dtype)
        assert loss.on_tensors(doubles, mask=ONES, advantages=per_row)[0].item() == 12
    distill = get_loss("embedding_distill", distance="l2")
    value, _ = distill.on_tensors(embeddings=third, teacher_embedding=torch.zeros(2, 3, dtype=torch.float64))
    assert value.item() == pytest.approx(3**-0.5, abs=1e-15)
    assert distill.on_tensors(embeddings=ONES, teacher_embedding=[[1, 1, 0], [0, 1, 1]])[0].item() == 1


@pytest.mark.parametrize(
    "odd",
    [torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2, 3).to_sparse()],
    ids=["complex", "sparse"],
)
def test_numbers_are_real_and_dense(odd: Tensor) -> None:
    with pytest.raises(DtypeError, match="a loss reads dense tensors of real numbers"):
        MEAN.on_tensors(odd, mask=ONES)


def test_a_number_of_a_row_with_one_position_is_read() -> None:
    mask = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    with pytest.raises(NonFiniteLossInput, match="reinforce: advantages of row 1 is nan"):
        get_loss("reinforce").on_tensors(LOGPROBS, mask=mask, advantages=[1.0, float("nan")])


def test_a_number_a_position_or_a_row_holds_for_all_of_its_targets() -> None:
    loss, wide = get_loss("reinforce"), -1 - torch.rand(2, 3, 4, dtype=torch.float64)
    mask, advantages = torch.ones(2, 3, 4), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    each = loss.on_tensors(wide, mask=mask, advantages=advantages[..., None].expand(2, 3, 4))[0].item()
    assert loss.on_tensors(wide, mask=mask, advantages=advantages)[0].item() == each
    per_row = loss.on_tensors(wide, mask=mask, advantages=[2.0, -1.0])[0].item()
    assert per_row == pytest.approx(-2 * wide[0].sum().item() + wide[1].sum().item())


def test_what_an_absent_candidate_has_is_not_read() -> None:
    loss = get_loss("topk_forward_kl")
    teacher = torch.tensor([[[-0.5, -1.0, -INF]]], dtype=torch.float64)
    student = torch.tensor([[[-1.0, -2.0, NAN]]], dtype=torch.float64)
    value, _ = loss.on_tensors(student, mask=torch.ones(1, 1), teacher_logprobs=teacher)
    without, _ = loss.on_tensors(student[..., :2], mask=torch.ones(1, 1), teacher_logprobs=teacher[..., :2])
    assert value.item() == pytest.approx(without.item())
    with pytest.raises(NonFiniteLossInput, match="logprobs of row 0 is nan at position 0, candidate 2"):
        loss.on_tensors(student, mask=torch.ones(1, 1), teacher_logprobs=teacher.nan_to_num(neginf=-3.0))


def test_a_table_may_rule_tokens_out_and_holds_no_other_infinity() -> None:
    def first_token(vocab_logprobs: Tensor) -> Tensor:
        return -vocab_logprobs[:, 0]

    loss = loss_of(first_token, reduction="sum")
    good = [[[-0.5, -INF, -1.0], [-2.0, -1.0, -INF]]]
    assert loss.on_tensors(vocab_logprobs=good, mask=[[1.0, 1.0]])[0].item() == 2.5
    for odd in (NAN, INF):
        wrong = torch.tensor(good)
        wrong[0, 1, 2] = odd
        with pytest.raises(NonFiniteLossInput, match=f"vocab_logprobs of row 0 is {odd} at position 1, candidate 2"):
            loss.on_tensors(vocab_logprobs=wrong, mask=[[1.0, 1.0]])


def test_a_loss_of_lossbooks_own_may_read_a_vector_beside_tokens() -> None:
    def steered(logprobs: Tensor, guide_embedding: VectorPerDatum, seqs: Any) -> Tensor:
        return -logprobs * seqs.broadcast(guide_embedding.sum(1))

    steered.__module__ = "lossbook.losses.policy.steered"
    guides = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    value, _ = loss_of(steered, reduction="sum").on_tensors(LOGPROBS, mask=ONES, guide_embedding=guides)
    assert value.item() == 3 * 3 - 1 * 3


# Which number is named.


def of_a_guide(embeddings: Tensor, guide_embedding: VectorPerDatum) -> Tensor:
    return embeddings.sum(1) * guide_embedding.sum(1)


def with_nan(shape: tuple[int, ...], *places: tuple[int, ...]) -> Tensor:
    tensor = torch.full(shape, -1.0)
    for place in places:
        tensor[place] = NAN
    return tensor


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MEAN.on_tensors(LOGPROBS, mask=with_nan((2, 3), (0, 1), (1, 0))),
            "mask of row 0 is nan at position 1",
        ),
        (
            lambda: MEAN.on_tensors(-torch.ones(2, 3, 4), mask=with_nan((2, 3, 4), (1, 2, 0))),
            "mask of row 1 is nan at position 2",
        ),
        (
            lambda: get_loss("reinforce").on_tensors(
                -torch.ones(3, 1), mask=torch.ones(3, 1), advantages=[1.0, NAN, INF]
            ),
            "advantages of row 1 is nan",
        ),
        (
            lambda: loss_of(of_a_guide, per="datum").on_tensors(
                embeddings=torch.ones(3, 2), guide_embedding=with_nan((3, 2), (2, 0))
            ),
            "guide_embedding of row 2 is nan",
        ),
        (
            lambda: get_loss("info_nce").on_tensors(embeddings=with_nan((4, 3), (1, 2), (3, 0))),
            "embeddings of row 1 is nan at 2",
        ),
        (
            lambda: adaptive_layer("info_nce", layers=(2,)).on_tensors(
                embeddings=torch.ones(4, 3), layer_embeddings=with_nan((4, 1, 3), (1, 0, 2))
            ),
            "layer_embeddings of row 1 is nan at 2",
        ),
        (
            lambda: MEAN.on_tensors(with_nan((2, 3, 4), (1, 2, 0), (1, 2, 3)), mask=torch.ones(2, 3, 4)),
            "logprobs of row 1 is nan at position 2, candidate 0",
        ),
        (
            lambda: get_loss("topk_forward_kl").on_tensors(
                -torch.ones(2, 3, 2),
                mask=ONES,
                teacher_logprobs=torch.tensor([[[-1.0] * 2] * 3, [[-1.0] * 2, [-INF] * 2, [-INF] * 2]]),
            ),
            "teacher_logprobs of row 1 is -inf for all 2 candidates at position 1",
        ),
    ],
)
def test_the_first_number_that_is_wrong_is_named_by_its_place(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(NonFiniteLossInput, match=message):
        call()


def test_one_log_probability_of_a_row_is_at_most_what_rounding_explains() -> None:
    loss, ones = get_loss("importance_sampling"), torch.ones(2, 3)
    for fine in (-1.0, 0.0, MAX_LOGPROB):
        for number in (torch.tensor([-1.0, fine], dtype=torch.float64), torch.full((2, 3), fine, dtype=torch.float64)):
            loss.on_tensors(LOGPROBS, mask=ones, advantages=ones, sampling_logprobs=number)
    with pytest.raises(
        InvalidLogprobError, match=r"sampling_logprobs of row 1 is 0\.5: a log-probability is at most 0"
    ):
        loss.on_tensors(LOGPROBS, mask=ones, advantages=ones, sampling_logprobs=[-1.0, 0.5])


# Denominators and counts.


def test_a_count_is_a_float64_number_and_needs_no_output_of_the_model() -> None:
    count = MEAN.count_tensors(mask=ONES)
    assert (count.item(), count.shape, count.dtype) == (6, (), torch.float64)
    assert (MEAN + get_loss("reinforce")).count_tensors(mask=ONES, advantages=ONES).tolist() == [6, 0]
    assert MEAN.count_tensors(mask=ONES, entropy=ONES).item() == 6, "an output that it does not read is left alone"
    with pytest.raises(UnknownInput, match="does not read 'advantage'"):
        get_loss("reinforce").count_tensors(mask=ONES, advantage=ONES)


def test_a_count_of_tokens_needs_no_input_and_one_of_groups_does() -> None:
    assert loss_of(labelled, reduction="token-mean").count_tensors(mask=ONES).item() == 6
    by_candidates = get_loss("topk_forward_kl", reduction="token-mean")
    assert by_candidates.count_tensors(mask=ONES).item() == 6
    assert by_candidates.count_tensors(mask=ONES, teacher_logprobs=torch.full((2, 3, 4), -2.0)).item() == 6
    assert get_loss("cross_entropy", reduction="token-mean").count_tensors(mask=torch.ones(2, 3, 4)).item() == 24
    assert get_loss("batch_hard_triplet").count_tensors(class_id=[0, 0, 1, 1, 2]).item() == 4
    assert get_loss("info_nce").count_tensors(cu_seqlens=[0, 3, 4, 7, 9]).item() == 4
    with pytest.raises(MissingInput, match="listnet reads 'label'"):
        get_loss("listnet").count_tensors(mask=ONES)


def test_vectors_say_how_many_rows_there_are_whatever_was_given_first() -> None:
    with pytest.raises(ShapeError, match=r"document_id is \[3\], but by embeddings it is one per row, \[4\]"):
        get_loss("info_nce").on_tensors(document_id=[0, 1, 0], embeddings=torch.ones(4, 2))


def test_a_part_with_nothing_to_divide_by_is_named() -> None:
    mixture = get_loss("info_nce") + get_loss("batch_hard_triplet")
    with pytest.raises(EmptyLossError, match=r"^batch_hard_triplet: its reduction has nothing to divide by"):
        mixture.on_tensors(embeddings=torch.eye(4), class_id=[0, 1, 2, 3])


def test_a_denominator_is_any_number_above_0() -> None:
    for divisor in (0.25, 1, 3):
        value, _ = MEAN.on_tensors(LOGPROBS, mask=ONES, denominator=divisor)
        assert value.item() == pytest.approx(6 / divisor)
    with pytest.raises(WeightsError, match="denominator is inf"):
        MEAN.on_tensors(LOGPROBS, mask=ONES, denominator=float("inf"))


def test_a_mixture_of_one_part_is_that_part_times_its_factor() -> None:
    value, metrics = (0.5 * MEAN).on_tensors(LOGPROBS, mask=ONES)
    assert (value.item(), value.shape) == (0.5, ())
    assert metrics == {"cross_entropy/nll": 1.0}
    assert (0.5 * MEAN).count_tensors(mask=ONES).tolist() == [6]


def test_only_metrics_are_added_to_metrics() -> None:
    _, metrics = MEAN.on_tensors(LOGPROBS, mask=ONES)
    assert 0 + metrics == metrics
    for other in (1, 0.0, {}):
        with pytest.raises(TypeError):
            metrics + other
