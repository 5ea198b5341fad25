"""A law of a family, once claimed, is held: each fails, by name, on a loss that breaks it, and is skipped where unclaimed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from lossbook.losses import PerDatum, safe_ratio, stats
from lossbook.losses.math.divergences import forward_kl, jsd, with_tail
from lossbook.losses.spec.layers import Layers
from lossbook.losses.testing import check_loss
from lossbook.losses.testing.laws import CHECKS

from ..cases import loss_of


def half_a_gradient(logprobs, sampling_logprobs, advantages):
    """A forgotten factor."""
    return -0.5 * safe_ratio(logprobs, sampling_logprobs) * advantages


def clipped_at_a_constant(logprobs, sampling_logprobs, advantages, *, clip_high: float = 1.2):
    """The bound that its setting opens is not the bound that it uses."""
    return -safe_ratio(logprobs, sampling_logprobs).clamp(max=1.2) * advantages + 0 * clip_high


def unclipped(logprobs, sampling_logprobs, advantages):
    """The first of two losses that it says it is, not the second."""
    return -safe_ratio(logprobs, sampling_logprobs) * advantages


def shifted_advantage(logprobs, advantages):
    """An advantage of 0 still pushes."""
    return -(advantages + 0.1) * logprobs


def scaled_preference(logprobs, ref_logprobs, seqs, *, beta: float = 0.1):
    """Twice the loss of a pair."""
    chosen, rejected = seqs.pairs(beta * seqs.sum(logprobs - ref_logprobs))
    return -2 * logsigmoid(chosen - rejected)


def longer_is_dearer(embeddings):
    """Forgets to normalise."""
    return embeddings.square().sum(1)


def prefers_the_first_axis(embeddings):
    """Looks at one coordinate by itself."""
    return embeddings[:, 0] / torch.linalg.vector_norm(embeddings, dim=1)


def drops_at_random(embeddings):
    """Draws anew each time it is called."""
    return embeddings.sum(1) * torch.rand(len(embeddings), dtype=embeddings.dtype)


def unsigned_margin(logprobs, ref_logprobs, seqs):
    """A margin that is the same whichever response is the chosen one."""
    chosen, rejected = seqs.pairs(seqs.sum(logprobs - ref_logprobs))
    return -logsigmoid(chosen - rejected), {"margin": stats.mean((chosen - rejected).abs())}


def capped_margin(logprobs, ref_logprobs, seqs):
    """The slope ends where the loss is cut off."""
    chosen, rejected = seqs.pairs(seqs.sum(logprobs - ref_logprobs))
    return (-logsigmoid(chosen - rejected)).clamp(max=0.5), {"margin": stats.mean(chosen - rejected)}


def preference_of_means(logprobs, ref_logprobs, seqs):
    """Means where the law is one of sums: a common first token thins out the shorter response more."""
    chosen, rejected = seqs.pairs(seqs.mean(logprobs - ref_logprobs))
    return -logsigmoid(chosen - rejected)


def forgotten_reference(logprobs, ref_logprobs, seqs):
    """Half of the reference is left out."""
    chosen, rejected = seqs.pairs(seqs.sum(logprobs - 0.5 * ref_logprobs))
    return -logsigmoid(chosen - rejected)


def preference_of_sums(logprobs, ref_logprobs, seqs):
    """Sums where the law is one of means."""
    chosen, rejected = seqs.pairs(seqs.sum(logprobs - ref_logprobs))
    return -logsigmoid(chosen - rejected)


def cross_entropy_of_candidates(logprobs, teacher_logprobs):
    """Lacks the teacher's entropy, so it is not 0 where both agree."""
    present = teacher_logprobs > -math.inf
    return -torch.where(present, teacher_logprobs.exp() * logprobs, 0.0).sum(-1)


def without_mass(logprobs, teacher_logprobs, *, tail: str = "drop"):
    """Some terms of a sum, which may be below 0; or nothing at all."""
    student, teacher = (with_tail(x, teacher_logprobs > -math.inf, "drop") for x in (logprobs, teacher_logprobs))
    return forward_kl(student, teacher) * (tail == "drop")


def ranked_candidates(logprobs, teacher_logprobs):
    """The first candidate counts for more."""
    ranks = torch.arange(1, 1 + logprobs.shape[-1]).to(logprobs)
    present = teacher_logprobs > -math.inf
    return -torch.where(present, teacher_logprobs.exp() * logprobs / ranks, 0.0).sum(-1)


def half_of_it(logprobs, teacher_logprobs):
    """A forgotten factor."""
    student, teacher = (with_tail(x, teacher_logprobs > -math.inf, "drop") for x in (logprobs, teacher_logprobs))
    return 0.5 * forward_kl(student, teacher)


def with_a_weak_end(logprobs, teacher_logprobs, *, beta: float = 0.5):
    """beta is clamped, as is in the wild, and at 1 next to nothing is left."""
    student, teacher = (with_tail(x, teacher_logprobs > -math.inf, "bin") for x in (logprobs, teacher_logprobs))
    return forward_kl(student, teacher) if beta == 0 else jsd(student, teacher, min(beta, 0.999))


def cross_entropy_of_all(vocab_logprobs, teacher_vocab_logprobs):
    """Lacks the teacher's entropy, so it is not 0 where both agree."""
    is_possible = teacher_vocab_logprobs > -math.inf
    return -torch.where(is_possible, teacher_vocab_logprobs.exp() * vocab_logprobs, 0.0).sum(-1)


def blind_to_the_teacher(vocab_logprobs, teacher_vocab_logprobs):
    """0 however far apart the two are."""
    return 0 * vocab_logprobs.exp().sum(-1)


def ranked_tokens(vocab_logprobs, teacher_vocab_logprobs):
    """The first token of the vocabulary counts for more."""
    ranks = torch.arange(1, 1 + vocab_logprobs.shape[-1]).to(vocab_logprobs)
    return ((vocab_logprobs.exp() - teacher_vocab_logprobs.exp()).square() / ranks).sum(-1)


def half_of_all(vocab_logprobs, teacher_vocab_logprobs):
    """A forgotten factor."""
    return 0.5 * forward_kl(vocab_logprobs, teacher_vocab_logprobs)


def by_place_of_the_layer(layer_embeddings, *, layers: Layers = (1, 2)):
    """Takes the place of a layer for its depth."""
    depth = torch.arange(1, 1 + layer_embeddings.shape[1]).to(layer_embeddings)
    return (layer_embeddings.square().sum(-1) * depth).sum(-1)


def regression_of_scores(values, label: PerDatum, seqs):
    """Looks at each score by itself."""
    return seqs.groups.sum((seqs.last(values) - label).square())


def best_last(values, label: PerDatum, seqs):
    """A forgotten sign: the higher the label, the lower the score should be."""
    return seqs.groups.sum(seqs.last(values) * (label - seqs.groups.broadcast(seqs.groups.mean(label.to(values)))))


#: Loss, how it is registered, the law that it is registered with and breaks, what the message must say.
BROKEN: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
    (half_a_gradient, {"per": "token"}, {"on_policy_is_reinforce": {}}, "that of REINFORCE is"),
    (
        clipped_at_a_constant,
        {"per": "token"},
        {"is_another_loss": {"own": {"clip_high": 1e30}, "loss": "importance_sampling"}},
        "when computed as importance_sampling",
    ),
    (
        unclipped,
        {"per": "token"},
        {"is_another_loss": [{"loss": "importance_sampling"}, {"loss": "ppo", "uniform": True, "max_length": 2}]},
        "when computed as ppo",
    ),
    (shifted_advantage, {"per": "token"}, {"zero_advantage_is_silent": {}}, "not 0, when every advantage is 0"),
    (
        clipped_at_a_constant,
        {"per": "token"},
        {"beyond_the_clip_no_gradient": {"nats": 0.25}},
        "not 0, when all its tokens have moved by 0.25 nats the way A pushes",
    ),
    (
        scaled_preference,
        {"per": "pair"},
        {"value_at_reference": {"value": math.log(2)}},
        "while policy and reference agree",
    ),
    (longer_is_dearer, {"per": "datum"}, {"scale_invariance": {}}, "when the embeddings were multiplied by"),
    (prefers_the_first_axis, {"per": "datum"}, {"rotation_invariance": {}}, "when all embeddings were rotated"),
    (drops_at_random, {"per": "datum"}, {"grad_cache_is_full_batch": {}}, "in two passes"),
    (unsigned_margin, {"per": "pair"}, {"swap_symmetry": {}}, "with chosen and rejected exchanged"),
    (capped_margin, {"per": "pair"}, {"swap_symmetry": {"slope": 1.0}}, "exchanging chosen and rejected costs"),
    (preference_of_means, {"per": "pair"}, {"shared_prefix_cancels": {}}, "got the same first token"),
    (forgotten_reference, {"per": "pair"}, {"agreeing_tokens_are_silent": {}}, "one more token"),
    (preference_of_sums, {"per": "pair"}, {"repetition_changes_nothing": {}}, "when every token was repeated"),
]

BROKEN += [
    (
        function,
        {"per": "token", "candidates": "teacher_logprobs", "reduction": "token-mean"},
        {law: law_settings},
        message,
    )
    for function, law, law_settings, message in (
        (cross_entropy_of_candidates, "divergence_is_zero_only_when_equal", {}, "student and teacher agree, but"),
        (without_mass, "divergence_is_zero_only_when_equal", {"under": [{"tail": "drop"}]}, "below 0, with"),
        (
            without_mass,
            "divergence_is_zero_only_when_equal",
            {"under": [{"tail": "none"}]},
            "though student and teacher",
        ),
        (ranked_candidates, "order_of_candidates_changes_nothing", {}, "were put in another order"),
        (half_of_it, "one_candidate_is_cross_entropy", {}, "when computed as cross_entropy of the one candidate"),
        (half_of_it, "all_candidates_is_dense", {"divergence": "forward_kl", "under": [{}]}, "the dense divergence is"),
        (with_a_weak_end, "ends_are_kl", {"betas": (0.0, 1.0), "scaled": False}, "at beta 1 it is"),
    )
]


BROKEN += [
    (function, {"per": "token", "reduction": "token-mean"}, {law: law_settings}, message)
    for function, law, law_settings, message in (
        (cross_entropy_of_all, "whole_divergence_is_zero_only_when_equal", {}, "student and teacher agree, but"),
        (blind_to_the_teacher, "whole_divergence_is_zero_only_when_equal", {}, "and student and teacher differ by"),
        (ranked_tokens, "order_of_tokens_changes_nothing", {}, "of the vocabulary were put in another order"),
        (half_of_all, "is_topk_with_all_candidates", {"loss": "topk_forward_kl"}, "over all tokens gives"),
    )
]

BROKEN += [
    (by_place_of_the_layer, {"per": "datum"}, {"layers_in_any_order": {}}, "were named the other way round"),
    (regression_of_scores, {"per": "group"}, {"shift_invariance": {}}, "was added to the scores of groups"),
    (best_last, {"per": "group"}, {"right_order_is_cheapest": {}}, "scores in the order of the labels cost"),
    (best_last, {"per": "group"}, {"right_order_is_cheapest": {"than": "reversed"}}, "order of the labels cost"),
]


@pytest.mark.parametrize(
    ("function", "registration", "laws", "message"),
    BROKEN,
    ids=[f"{b[0].__name__}-{next(iter(b[2]))}" for b in BROKEN],
)
def test_a_family_law_that_is_broken_is_named(
    function: Any, registration: dict[str, Any], laws: dict[str, Any], message: str
) -> None:
    loss = loss_of(function, laws=laws, **registration)
    (law,) = laws
    report = check_loss(loss, checks=[law], on_fail="report")
    assert report[law].status == "failed"
    assert message in report[law].message
    assert f"run_check(\n    {law!r}" in report[law].reproducer


def test_every_law_of_a_family_has_a_loss_that_breaks_it() -> None:
    assert {law for _, _, laws, _ in BROKEN for law in laws} == {check.name for check in CHECKS}


def test_a_law_that_the_loss_is_not_registered_with_is_skipped() -> None:
    report = check_loss(half_a_gradient, checks=["on_policy_is_reinforce"])
    assert report["on_policy_is_reinforce"].status == "skipped"


def test_a_bare_function_is_checked_against_the_laws_that_the_caller_names() -> None:
    report = check_loss(
        half_a_gradient, checks=["on_policy_is_reinforce"], laws={"on_policy_is_reinforce": {}}, on_fail="report"
    )
    assert report["on_policy_is_reinforce"].status == "failed"
    assert "law={}" in report["on_policy_is_reinforce"].reproducer


def test_a_law_that_holds_under_some_settings_is_skipped_under_others() -> None:
    (result,) = check_loss("ipo", length_normalized=False, checks=["repetition_changes_nothing"])
    assert (result.status, result.message) == ("skipped", "the loss obeys it only with length_normalized=True")
    assert check_loss("ipo", checks=["repetition_changes_nothing"]).passed
