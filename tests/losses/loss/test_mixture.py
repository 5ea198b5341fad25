"""Weighted sums of losses: each part keeps its own denominator, its own keys and its own metrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import Datum, get_loss, stats
from lossbook.datums.errors import EmptyLossError, LengthMismatchError, LossContractError, UnknownInput
from lossbook.losses import Count, LossLike, Mixture

from ..cases import assert_rows_equal, datum, evaluated

ROWS = [[-0.5, -1.0, -2.0], [-0.2, -3.0]]


def rollouts() -> list[Datum]:
    common = {"sampling_logprobs": [-1.0, -1.5, -1.0], "ref_logprobs": [-1.0, -1.0, -1.0], "advantages": [1, -1, 2]}
    return [
        datum(3, weights=[0, 1, 1], **common),
        datum(2, weights=[1, 1], **{key: row[:2] for key, row in common.items()}),
    ]


@given(first=st.floats(-3, 3), second=st.floats(-3, 3))
@settings(max_examples=20)
def test_a_mixture_is_the_weighted_sum_of_its_parts_in_value_and_gradient(first: float, second: float) -> None:
    grpo, cross_entropy = get_loss("grpo"), get_loss("cross_entropy")
    mixed = evaluated(first * grpo + second * cross_entropy, rollouts(), ROWS)
    one, other = evaluated(grpo, rollouts(), ROWS), evaluated(cross_entropy, rollouts(), ROWS)
    # grpo divides by its 4 tokens, cross_entropy by nothing.
    assert mixed[0] == pytest.approx(first * one[0] + second * other[0])
    assert_rows_equal(mixed[1], [first * a + second * b for a, b in zip(one[1], other[1], strict=True)], 1e-12)


def test_metrics_are_named_after_their_part_and_hold_its_own_value() -> None:
    mixture = 0.25 * get_loss("ppo") + get_loss("cross_entropy")
    _, _, metrics = evaluated(mixture, rollouts(), ROWS)
    _, _, ppo = evaluated(get_loss("ppo"), rollouts(), ROWS)
    assert {key: value for key, value in metrics.items() if key.startswith("ppo/")} == {
        f"ppo/{key}": value for key, value in ppo.items()
    }
    assert "cross_entropy/nll" in metrics


def test_a_mixture_keeps_one_denominator_a_part() -> None:
    mixture = get_loss("grpo") + get_loss("cross_entropy") + get_loss("ppo", reduction="seq-mean-token-sum")
    assert mixture.check(rollouts()) == Count((4.0, None, 2.0))
    assert mixture.count(rollouts()[:1]) + mixture.count(rollouts()[1:]) == mixture.count(rollouts())


def test_totals_and_metrics_of_parts_of_the_data_add_up() -> None:
    mixture = 0.5 * get_loss("grpo") + 2 * get_loss("cross_entropy", reduction="seq-mean-token-mean")
    data, outputs = rollouts(), [torch.tensor(row, dtype=torch.float64) for row in ROWS]
    whole, metrics = mixture.terms(data, outputs)
    totals, parts = zip(*(mixture.terms(data[i : i + 1], outputs[i : i + 1]) for i in range(2)), strict=True)
    torch.testing.assert_close(sum(totals), whole)
    assert stats.values(stats.merge(parts)) == pytest.approx(stats.values(metrics))


def test_a_mixture_couples_what_its_coarsest_part_couples() -> None:
    ppo, cross_entropy, dpo, info_nce = (get_loss(name) for name in ("ppo", "cross_entropy", "dpo", "info_nce"))
    assert (ppo + cross_entropy).couples == "token"
    assert (ppo + get_loss("cross_entropy", reduction="seq-mean-token-mean")).couples == "datum"
    assert (dpo + ppo).couples == "pair"
    assert (dpo + info_nce).couples == "batch"
    assert (dpo + info_nce).outputs == ("logprobs", "embeddings")


def test_a_mixture_needs_the_model_wherever_a_part_does() -> None:
    mixture = get_loss("cross_entropy") + get_loss("dpo")
    data = [datum(2, weights=[0, 1], ref_logprobs=[-1.0] * 2), datum(2, weights=[1, 0], ref_logprobs=[-1.0] * 2)]
    assert mixture.active(data).tolist() == [False, True, True, False]


def test_factors_multiply_through_and_terms_add_on_either_side() -> None:
    ppo, cross_entropy = get_loss("ppo"), get_loss("cross_entropy")
    mixture = 2 * (cross_entropy * 0.5 + ppo) + 0.5 * get_loss("grpo")
    assert mixture.name == "1 * cross_entropy + 2 * ppo + 0.5 * grpo"
    assert repr(0.5 * cross_entropy) == "0.5 * cross_entropy(reduction='sum')"
    assert get_loss(mixture) is mixture


def test_one_scaled_loss_is_a_mixture_of_one() -> None:
    value, gradients, _ = evaluated(0.5 * get_loss("cross_entropy"), [datum(2)], [[-1.0, -3.0]])
    assert value == 2
    assert_rows_equal(gradients, [[-0.5, -0.5]], 0)


def test_a_custom_function_in_the_hosted_style_mixes_with_registered_losses() -> None:
    def squares(data: list[Datum], logprobs_list: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        assert [len(row) for row in logprobs_list] == [3, 2]
        return sum((row**2).sum() for row in logprobs_list), {"rows": len(data)}  # type: ignore[return-value]

    value, _, metrics = evaluated(get_loss("cross_entropy") + 0.5 * get_loss(squares), rollouts(), ROWS)
    assert value == pytest.approx(6.2 + 0.5 * (0.25 + 1 + 4 + 0.04 + 9))
    assert metrics["squares/rows"] == 2


def test_a_part_does_not_take_another_parts_key_for_a_misspelling() -> None:
    def critic(logprobs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return logprobs * weight

    data = [datum(2, weight=[1.0, 2.0])]
    with pytest.raises(UnknownInput, match=r"^cross_entropy does not read 'weight'.*Did you mean 'weights'\?"):
        get_loss("cross_entropy").check(data)
    (get_loss("cross_entropy") + get_loss(critic)).check(data, strict=True)


def test_a_key_that_no_part_reads_is_refused_when_strict() -> None:
    data = [Datum(d.model_input, {**d.loss_fn_inputs, "rewards": [1.0]}) for d in rollouts()]
    mixture = get_loss("grpo") + get_loss("cross_entropy")
    mixture.check(data)
    mixture.prepare(data).check()
    with pytest.raises(UnknownInput, match=r"^grpo does not read 'rewards', which datum 0 of 2 carries"):
        mixture.check(data, strict=True)


def test_a_part_with_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(EmptyLossError, match=r"^cross_entropy: every weight"):
        (get_loss("info_nce") + get_loss("cross_entropy")).check([datum(2, weights=[0, 0])] * 2)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        pytest.param(
            lambda ppo: ppo + get_loss("ppo", clip_high=2.0),
            "a mixture cannot hold one loss twice: ppo, ppo",
            id="one loss twice",
        ),
        pytest.param(
            lambda ppo: get_loss(ppo + get_loss("cross_entropy"), clip_high=2.0),
            "configure the parts of a mixture, not the mixture",
            id="configured as a whole",
        ),
    ],
)
def test_mixtures_that_mean_nothing_are_refused(mix: Any, message: str) -> None:
    with pytest.raises(LossContractError) as caught:
        mix(get_loss("ppo"))
    assert str(caught.value) == message


@pytest.mark.parametrize("term", [get_loss("ppo"), 1.0 * get_loss("ppo")], ids=["a loss", "a mixture"])
def test_only_losses_can_be_added_to_a_loss(term: Any) -> None:
    with pytest.raises(TypeError):
        term + 1.0


def test_a_bound_mixture_reads_the_full_datums_whatever_it_is_handed() -> None:
    mixture = get_loss("ppo") + 0.5 * get_loss("cross_entropy")
    assert isinstance(mixture, Mixture)
    outputs = [torch.tensor(row, dtype=torch.float64) for row in ROWS]
    bare = [datum(3), datum(2)]
    assert mixture.bind(rollouts())(bare, outputs) == mixture(rollouts(), outputs)
    with pytest.raises(LengthMismatchError) as caught:
        mixture.bind(rollouts())(bare[:1], outputs[:1])
    assert str(caught.value) == "1 * ppo + 0.5 * cross_entropy is bound to 2 datums but was handed 1"


def test_a_loss_is_its_own_only_part_and_a_mixture_lists_its_parts_with_their_factors() -> None:
    ppo, entropy = get_loss("ppo"), get_loss("cross_entropy")
    assert ppo.parts == [(1.0, ppo)]
    assert (2.0 * (ppo + 0.5 * entropy)).parts == [(2.0, ppo), (1.0, entropy)]
    assert all(isinstance(loss, LossLike) for loss in (ppo, ppo + entropy))


def test_covers_is_the_older_word_for_active() -> None:
    data = [datum(3, weights=[0, 1, 1]), datum(2, weights=[1, 0])]
    for loss in (get_loss("cross_entropy"), get_loss("cross_entropy") + get_loss("unlikelihood")):
        assert loss.covers(data).tolist() == loss.active(data).tolist() == [False, True, True, True, False]


def test_a_mixture_has_no_values_of_its_own() -> None:
    mixture = get_loss("ppo") + get_loss("cross_entropy")
    with pytest.raises(LossContractError, match=r"1 \* ppo \+ 1 \* cross_entropy returns no values .*; ask its parts"):
        mixture.values(rollouts(), [torch.tensor(row) for row in ROWS])


def test_positions_count_by_the_keys_of_the_parts_that_read_them() -> None:
    vectors, tokens = get_loss("info_nce"), get_loss("cross_entropy", weights="mine")
    data = [datum(2, mine=[1.0, 0.0]), datum(1, mine=[1.0])]
    assert (vectors + tokens).prepare(data).weight_keys == ("mine",)
    assert (tokens + get_loss("z_loss", reduction="sum")).prepare(data).weight_keys == ("mine", "weights")
    for alone in (vectors, 0.5 * vectors, vectors + get_loss("gor")):
        assert alone.prepare(data).weight_keys == ("weights",)
