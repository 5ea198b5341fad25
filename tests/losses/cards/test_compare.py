"""Two losses side by side: where they differ, and what both give on the same small data."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import describe_loss, get_loss, list_losses
from lossbook.datums.errors import UnknownLossError
from lossbook.losses import compare_losses
from lossbook.losses.cards.examples import kind_of
from lossbook.losses.cards.sample_inputs import usable

from ..cases import loss_of

ALL = [name for name in list_losses() if describe_loss(name).defined_in.startswith("lossbook.")]


def test_the_axes_that_differ_are_told_apart_from_those_that_do_not() -> None:
    comparison = compare_losses("importance_sampling", "ppo")
    axes = {axis: (one, other) for axis, one, other in comparison.differences}
    assert axes["clip"][1].startswith("r within [clip_low, clip_high]")
    assert axes["setting clip_high"] == ("does not exist", "1.2")
    assert axes["setting ratio_log_cap"] == ("20.0", "does not exist")
    assert (
        dict(comparison.alike).items()
        >= {"one loss per": "token", "reduction": "sum", "from the model": "logprobs"}.items()
    )


def test_numbers_are_those_of_two_sampled_sequences_that_can_be_redone_on_paper() -> None:
    comparison = compare_losses("importance_sampling", "ppo")
    places = [(row["datum"], row["token"]) for row in comparison.rows]
    assert places == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2"), ("1", "3")]  # prompts' tokens are left out
    # r = exp(0.1), exp(-0.5), exp(-1), exp(0.3), exp(-0.2); A = 1, 1, -0.5, -0.5, -0.5; bounds 0.8 and 1.2
    assert [row["loss A"] for row in comparison.rows] == pytest.approx(
        [-1.105171, -0.606531, 0.18394, 0.674929, 0.409365], abs=1e-6
    )
    assert [row["gradient B"] for row in comparison.rows] == pytest.approx(
        [-1.105171, -0.606531, 0, 0.674929, 0.409365], abs=1e-6
    )
    assert comparison.rows[0]["advantages"] == 1.0
    assert comparison.rows[0]["logprobs"] == -1.0
    assert comparison.reduced == (("sum", pytest.approx(-0.443467, abs=1e-6), pytest.approx(-0.227407, abs=1e-6)),)


def test_other_reductions_are_shown_beside_the_sum() -> None:
    comparison = compare_losses(
        get_loss("ppo", reduction="token-mean"), get_loss("ppo", reduction="seq-mean-token-sum-norm", norm_length=4)
    )
    (_, one, other), (label, mean, norm) = comparison.reduced
    assert one == other == pytest.approx(-0.227407, abs=1e-6)
    assert label == "their own, token-mean and seq-mean-token-sum-norm"
    assert (mean, norm) == (pytest.approx(-0.045481, abs=1e-6), pytest.approx(-0.028426, abs=1e-6))
    assert comparison.differences == (
        ("couples", "token", "datum"),
        ("reduction", "token-mean", "seq-mean-token-sum-norm, norm_length 4"),
    )


def test_a_pairs_loss_stands_at_its_first_token_only() -> None:
    comparison = compare_losses("ppo", "dpo")
    assert [row["loss B"] for row in comparison.rows[1:]] == [None] * 4
    # Δ = (0.2 - 0.2) - (-0.5 + 0.1 - 0.1) = 0.5, and -log σ(0.05) = 0.6684596
    assert comparison.rows[0]["loss B"] == pytest.approx(0.6684596, abs=1e-6)


def test_losses_about_different_kinds_of_data_have_no_numbers_and_say_why() -> None:
    comparison = compare_losses("info_nce", "dpo")
    assert comparison.rows == comparison.reduced == ()
    assert comparison.note == "info_nce reads embeddings, dpo reads tokens: there is no data for both"
    assert str(comparison).endswith(comparison.note)


def test_vectors_and_candidates_are_rows_too() -> None:
    def forward_kl(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        return (teacher_logprobs.exp() * (teacher_logprobs - logprobs)).sum(1)

    def reverse_kl(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        return (logprobs.exp() * (logprobs - teacher_logprobs)).sum(1)

    candidates = {"candidates": "teacher_logprobs"}
    comparison = compare_losses(loss_of(forward_kl, **candidates), loss_of(reverse_kl, **candidates))
    # 0.7 ln(0.7 / 0.5) + 0.2 ln(0.2 / 0.3), and the gradient is minus the teacher's probabilities
    assert comparison.rows[0]["loss A"] == pytest.approx(0.1544375, abs=1e-6)
    assert comparison.rows[0]["gradient A"] == "-0.700 -0.200"
    vectors = compare_losses("info_nce", get_loss("info_nce", temperature=1.0))
    assert len(vectors.rows) == 4
    assert vectors.rows[0]["embeddings"] == "1.000 0.200 0.000"


def test_values_are_compared_on_returns() -> None:
    def squared(values: Tensor, returns: Tensor) -> Tensor:
        return 0.5 * (values - returns) ** 2

    def absolute(values: Tensor, returns: Tensor) -> Tensor:
        return (values - returns).abs()

    comparison = compare_losses(squared, absolute)
    assert comparison.first == "squared"
    assert comparison.rows[0]["loss A"] == pytest.approx(0.125)  # value 0.5, return 1
    assert comparison.rows[0]["gradient B"] == -1.0


def test_mixtures_and_functions_of_the_hosted_signature_are_compared_by_their_own_value() -> None:
    def hosted(data: Any, logprobs_list: Any) -> Any:
        return -sum(t.sum() for t in logprobs_list), {}

    mixed = 1.0 * get_loss("ppo") + 0.5 * get_loss("cross_entropy")
    comparison = compare_losses(mixed, hosted)
    assert comparison.reduced[-1] == (
        "their own, each part's own and sum",
        pytest.approx(-0.227407 + 3.65, abs=1e-6),
        8.0,
    )
    assert [row["loss A"] for row in comparison.rows] == [None] * 5


def test_a_loss_that_refuses_the_data_says_why() -> None:
    def picky(logprobs: Tensor) -> Tensor:
        raise ValueError("not today")

    assert compare_losses("cross_entropy", picky).note == "no numbers: ValueError: not today"

    def five(embeddings: Tensor) -> Tensor:
        return embeddings.reshape(5, -1).sum(1)

    comparison = compare_losses("info_nce", loss_of(five, per="datum", couples="batch"))
    assert comparison.note == "no numbers: neither 2, 3, 4 nor 6 vectors are a batch for both"


def test_an_unknown_id_is_an_error() -> None:
    with pytest.raises(UnknownLossError, match="Did you mean 'ppo'"):
        compare_losses("ppo", "ppoo")


def test_a_comparison_is_json_and_reads_in_columns() -> None:
    comparison = compare_losses("ppo", "grpo")
    assert json.loads(json.dumps(comparison.as_dict()))["first"] == "ppo"
    shown = str(comparison).splitlines()
    assert shown[:2] == ["A  ppo", "B  grpo"]
    assert (
        "  datum  token  logprobs  sampling_logprobs  advantages  ref_logprobs   loss A   loss B  gradient A  gradient B"
        in shown
    )
    assert "their declarations do not differ" in str(compare_losses("ppo", "ppo"))


@pytest.mark.parametrize("name", ALL)
def test_every_shipped_loss_can_be_compared_with_itself(name: str) -> None:
    comparison = compare_losses(name, name)
    assert comparison.note == ""
    assert comparison.differences == ()
    assert comparison.reduced
    assert all(row["loss A"] == row["loss B"] and row["gradient A"] == row["gradient B"] for row in comparison.rows)
    assert any(str(row["gradient A"]).strip("-0. ") for row in comparison.rows)
    kinds = ("tokens", "values", "embeddings", "candidate tokens", "whole distributions", "vectors of tokens")
    assert kind_of(usable(name)) in kinds
    assert torch.isfinite(torch.tensor([value for _, *both in comparison.reduced for value in both])).all()
