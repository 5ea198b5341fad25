"""Every loss that lossbook ships keeps every law, and one of each kind under each of its reductions.

That every loss has the value and gradient it should under every reduction is shown in test_numpy_twins.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from lossbook.datums.types import Datum
from lossbook.losses import REDUCTIONS, Loss, describe_loss, get_loss
from lossbook.losses.testing import check_loss, parametrize_with_checks, run_check

from .cases import shipped, with_needed

#: Reasons why a shipped loss may break a check, by loss and check.
EXCUSES: dict[str, dict[str, str]] = {}
#: What a reduction can get wrong.
REDUCTION_CHECKS = ("law_micro_batches", "law_ranks", "order", "masked_positions", "appended_zero_weight_datum")


def one_of_each_kind() -> list[str]:
    """The first loss of each kind that packing and reductions treat alike: they know nothing else about a loss."""
    kinds: dict[Any, str] = {}
    for name in shipped():
        spec = with_needed(name).spec
        kind = (spec.per, spec.couples, spec.outputs, spec.candidates, "seqs" in spec.parameters, spec.groups is None)
        kinds.setdefault(kind, name)
    return [*kinds.values(), "ppo"]


def under_other_reductions() -> list[Loss]:
    return [
        with_needed(name, reduction=reduction)
        for name in one_of_each_kind()
        for reduction in REDUCTIONS[describe_loss(name).per]
        if reduction != describe_loss(name).reduction
    ]


MIXTURES = [
    0.9 * get_loss("grpo") + 0.1 * get_loss("cross_entropy", reduction="token-mean"),
    0.5 * get_loss("dpo") + 2.0 * get_loss("cross_entropy"),
    1.0 * get_loss("ppo", reduction="seq-mean-token-mean") + -0.5 * get_loss("cross_entropy"),
    get_loss("z_loss") + get_loss("cross_entropy", reduction="token-mean"),
]


@parametrize_with_checks(map(with_needed, shipped()), max_examples=1, expected_failed_checks=EXCUSES)
def test_a_shipped_loss_keeps_the_laws(loss: Any, check: Any) -> None:
    check(loss)


@parametrize_with_checks(under_other_reductions(), max_examples=1, checks=REDUCTION_CHECKS)
def test_a_shipped_loss_keeps_the_laws_under_its_other_reductions(loss: Any, check: Any) -> None:
    check(loss)


@parametrize_with_checks(
    [loss for loss in under_other_reductions() if loss.name in ("cross_entropy", "ppo")],
    max_examples=1,
    checks=["weight_linearity"],
)
def test_weights_multiply_under_every_reduction(loss: Any, check: Any) -> None:
    check(loss)


@parametrize_with_checks(MIXTURES, max_examples=1)
def test_a_mixture_keeps_the_laws(loss: Any, check: Any) -> None:
    check(loss)


#: Losses that divide a batch in different ways, or put different limits on one input.
UNLIKE = [
    get_loss("info_nce") + 0.5 * get_loss("ntxent"),
    with_needed("batch_hard_soft_margin_triplet") + 0.5 * with_needed("bnpo"),
    with_needed("dpo") + 0.5 * with_needed("batch_all_triplet"),
    with_needed("cosent") + 0.5 * with_needed("info_nce"),
    with_needed("lambda_loss") + 0.5 * with_needed("rank_bce"),
    with_needed("apo_zero_unpaired") + 0.5 * with_needed("lambda_loss"),
    get_loss("gkd", weights="teacher_weights") + 0.5 * get_loss("cross_entropy"),
]


@pytest.mark.slow
@parametrize_with_checks(UNLIKE, max_examples=3)
def test_a_mixture_of_unlike_losses_keeps_the_laws(loss: Any, check: Any) -> None:
    check(loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_a_shipped_loss_keeps_the_laws_on_many_examples(name: str) -> None:
    check_loss(with_needed(name), max_examples=3, expected_failed_checks=EXCUSES.get(name))


def test_datums_of_different_numbers_of_targets_may_be_cut_apart() -> None:
    data = [
        Datum([0], {"target_tokens": [[3, 1, 2]], "weights": [[0.5, 0.0, 0.25]]}),
        Datum([0, 1], {"target_tokens": [[3], [1]], "weights": [[1.0], [2.0]]}),
        Datum([0, 1], {"target_tokens": [[3, 2], [1, 4]], "weights": [[0.0, 0.0], [0.5, 0.5]]}),
    ]
    outputs = {"logprobs": [[[-1.0, -2.0, -3.0]], [[-0.5], [-0.25]], [[-4.0, -1.5], [-2.5, -0.75]]]}
    for cuts in ([1], [2, 3], [1, 2, 3, 4]):
        run_check("law_micro_batches", "cross_entropy", data=data, outputs=outputs, cuts=cuts)
    run_check("law_ranks", "cross_entropy", data=data, outputs=outputs, ranks=[2, 0, 0])
