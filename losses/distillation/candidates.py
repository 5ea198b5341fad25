"""Distillation from a teacher's probabilities of K candidate tokens at each position.

`logprobs` [T, K] are the student's at the teacher's candidates, over the full vocabulary; `teacher_logprobs` [T, K] are
-inf where a position has fewer candidates. What is done about all other tokens is the setting `tail`, for student and
teacher alike:

    "bin"          they are one more token, of probability 1 - Σ_k p_k. Nothing is lost but what lies within it: 0 only
                   when student and teacher agree on every candidate, and never below 0. The tail is held at 1e-7 at
                   least; where that holds, no gradient flows through it.
    "renormalise"  both are divided by their Σ_k p_k: the candidates are compared among themselves, and the student's
                   probability elsewhere is free to grow. With one candidate both are 1, so nothing is learned.
    "drop"         their terms are left out of the sum. What is left may be negative, and its minimum is not where student
                   and teacher agree: at equality the reverse KL still pushes the student off the candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...datums.errors import LossConfigError
from .. import stats
from ..math.divergences import Tail, forward_kl, jsd, reverse_kl, with_tail
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import BetweenZeroAndOne, Positive, Share
from ..stats import Stat

Found = tuple[Tensor, dict[str, Stat]]


@register_loss(
    "topk_forward_kl",
    per="token",
    candidates="teacher_logprobs",
    reduction="token-mean",
    source="Hinton et al. 2015, arXiv:1503.02531 section 2, over K candidates and a tail",
    axes=Axes(kl="forward, KL(teacher || student), over K candidates"),
    differs={
        "TRL": "server distillation with beta 0: the same with tail 'bin' (loss_add_tail, its default) or 'renormalise'",
        "Tinker": "SDFT: the cross-entropy with a renormalised teacher, summed; that is `sdft`",
        "Fireworks": "SDFT: the cross-entropy with a renormalised teacher, summed; that is `sdft`",
    },
    claims={
        "divergence_is_zero_only_when_equal": {"under": [{"tail": "bin"}, {"tail": "renormalise"}]},
        "order_of_candidates_changes_nothing": {},
        "one_candidate_is_cross_entropy": {"own": {"tail": "drop"}},
        "all_candidates_is_dense": {"divergence": "forward_kl"},
    },
)
def topk_forward_kl(logprobs: Tensor, teacher_logprobs: Tensor, *, tail: Tail = "bin") -> Found:
    """Σ_k t_k (log t_k - log s_k): KL(teacher || student) over K candidates and what `tail` makes of the rest.

    logprobs           [T, K]  nats, of the teacher's candidates under the policy in training, over the full vocabulary
    teacher_logprobs   [T, K]  nats, under the teacher; -inf: a position has fewer than K candidates
    returns            [T]     nats

    It spreads the student over all that the teacher does. With tail "drop" and one candidate of probability 1 it is
    cross-entropy. `teacher_mass` is what the candidates hold of the teacher: with less than about 0.9 take a larger K.
    """
    student, teacher = _compared(logprobs, teacher_logprobs, tail)
    return forward_kl(student, teacher), candidate_stats(logprobs, teacher_logprobs)


@register_loss(
    "topk_reverse_kl",
    per="token",
    candidates="teacher_logprobs",
    reduction="token-mean",
    source="Gu et al. 2023, arXiv:2306.08543 eq. 1, over K candidates and a tail",
    axes=Axes(kl="reverse, KL(student || teacher), over K candidates"),
    differs={
        "TRL": "server distillation with beta 1: one sampled candidate instead of the teacher's K",
        "Tinker": "SDFT with reverse=True: tail 'renormalise', summed, logarithms detached (the same gradient)",
    },
    claims={
        "divergence_is_zero_only_when_equal": {"under": [{"tail": "bin"}, {"tail": "renormalise"}]},
        "order_of_candidates_changes_nothing": {},
        "all_candidates_is_dense": {"divergence": "reverse_kl"},
    },
)
def topk_reverse_kl(logprobs: Tensor, teacher_logprobs: Tensor, *, tail: Tail = "bin") -> Found:
    """Σ_k s_k (log s_k - log t_k): KL(student || teacher) over K candidates and what `tail` makes of the rest.

    logprobs           [T, K]  nats, of the teacher's candidates under the policy in training, over the full vocabulary
    teacher_logprobs   [T, K]  nats, under the teacher; -inf: a position has fewer than K candidates
    returns            [T]     nats

    It draws the student into the teacher's largest modes. A candidate that the student has all but ruled out gets next to
    no gradient. `student_mass` is what the candidates hold of the student: while it is small, most of what the student
    does lies in the tail, where only tail "bin" punishes it.
    """
    student, teacher = _compared(logprobs, teacher_logprobs, tail)
    return reverse_kl(student, teacher), candidate_stats(logprobs, teacher_logprobs)


@register_loss(
    "topk_jsd",
    per="token",
    candidates="teacher_logprobs",
    reduction="token-mean",
    source="Agarwal et al. 2023, arXiv:2306.13649 eq. 1 with M = (1 - beta) student + beta teacher, over K candidates",
    axes=Axes(kl="generalised Jensen-Shannon, over K candidates"),
    differs={
        "TRL": "GKD and distillation trainers turn into a KL, which is larger without bound, at beta 0 and 1: see `gkd`",
    },
    claims={
        "divergence_is_zero_only_when_equal": {"under": [{"tail": "bin"}, {"tail": "renormalise"}, {"tail": "drop"}]},
        "order_of_candidates_changes_nothing": {},
        "all_candidates_is_dense": {"divergence": "jsd", "own": {"beta": 0.5}},
        "ends_are_kl": {"betas": (1e-7, 1 - 1e-7), "scaled": True},
    },
)
def topk_jsd(logprobs: Tensor, teacher_logprobs: Tensor, *, beta: BetweenZeroAndOne = 0.5, tail: Tail = "bin") -> Found:
    """beta KL(t || m) + (1 - beta) KL(s || m), where m = (1 - beta) s + beta t: over K candidates and a tail.

    logprobs           [T, K]  nats, of the teacher's candidates under the policy in training, over the full vocabulary
    teacher_logprobs   [T, K]  nats, under the teacher; -inf: a position has fewer than K candidates
    returns            [T]     nats, at most ln 2

    It leans to the forward KL for small beta and to the reverse for large, but it also shrinks to 0 at both ends, where it
    is refused: beta is a learning rate as well. Bounded, so a token on which both differ utterly pulls little.
    """
    student, teacher = _compared(logprobs, teacher_logprobs, tail)
    return jsd(student, teacher, beta), candidate_stats(logprobs, teacher_logprobs)


@register_loss(
    "gkd",
    per="token",
    candidates="teacher_logprobs",
    reduction="token-mean",
    source="Agarwal et al. 2023, arXiv:2306.13649 eq. 1 and algorithm 1, over K candidates",
    axes=Axes(kl="forward (beta 0), generalised Jensen-Shannon, or reverse (beta 1), over K candidates"),
    differs={
        "TRL": "over the whole vocabulary; GKD trainer temperature 0.9, distillation trainer beta 1",
    },
    claims={
        "divergence_is_zero_only_when_equal": {"under": [{"tail": "bin"}, {"tail": "renormalise"}]},
        "order_of_candidates_changes_nothing": {},
        "all_candidates_is_dense": {"divergence": "jsd", "own": {"beta": 0.5}},
        "ends_are_kl": {"betas": (0.0, 1.0), "scaled": False},
    },
)
def gkd(
    logprobs: Tensor,
    teacher_logprobs: Tensor,
    *,
    beta: Share = 0.5,
    temperature: Positive = 1.0,
    tail: Tail = "bin",
) -> Found:
    """KL(t || s) at beta = 0, KL(s || t) at beta = 1, between them the generalised Jensen-Shannon divergence of `topk_jsd`.

    logprobs           [T, K]  nats, of the teacher's candidates under the policy in training, over the full vocabulary
    teacher_logprobs   [T, K]  nats, under the teacher; -inf: a position has fewer than K candidates
    returns            [T]     nats

    beta jumps at its ends: at 0.001 the loss is about a thousandth of the KL that it is at 0, so a sweep over beta sweeps
    the learning rate too. temperature divides logits; of K candidates that is known only up to a factor, so it needs
    tail "renormalise" (and is exact there). The loss is not multiplied by temperature².
    """
    if temperature != 1 and tail != "renormalise":
        raise LossConfigError(
            f"gkd: temperature={temperature:g} needs tail='renormalise', not {tail!r}: how much the tokens that are no "
            "candidates hold at another temperature cannot be known from K log-probabilities"
        )
    student, teacher = _compared(logprobs / temperature, teacher_logprobs / temperature, tail)
    found = candidate_stats(logprobs, teacher_logprobs)
    if beta in (0, 1):
        return (forward_kl if beta == 0 else reverse_kl)(student, teacher), found
    return jsd(student, teacher, beta), found


@register_loss(
    "sdft",
    per="token",
    candidates="teacher_logprobs",
    reduction="sum",
    source="Shenfeld et al. 2026, arXiv:2601.19897, with a forward KL to the teacher's top K",
    axes=Axes(kl="forward, as a cross-entropy, over K candidates"),
    differs={
        "Tinker": "K 20; weights hold the teacher's renormalised probabilities, and the first 3 response tokens have none",
        "Fireworks": "K at most 5; weights hold the teacher's renormalised probabilities",
        "TRL": "SDFT trainer: a divergence over the student's own top 100 (alpha 0.5), with a capped importance ratio",
    },
    claims={"order_of_candidates_changes_nothing": {}, "one_candidate_is_cross_entropy": {}},
)
def sdft(logprobs: Tensor, teacher_logprobs: Tensor) -> Found:
    """-Σ_k t_k log s_k, where t is the teacher renormalised over its K candidates and s is the student, not renormalised.

    logprobs           [T, K]  nats, of the teacher's candidates under the policy in training, over the full vocabulary
    teacher_logprobs   [T, K]  nats, under the teacher; -inf: a position has fewer than K candidates
    returns            [T]     nats, at least `teacher_entropy`

    Its gradient is that of KL(renormalised teacher || student), so the student learns to leave nothing to other tokens.
    It equals cross_entropy with [N, K] weights t. It does not go to 0: `teacher_entropy` is what it tends to.
    """
    present = teacher_logprobs > -torch.inf
    teacher = with_tail(teacher_logprobs, present, "renormalise")
    return _cross_entropy(logprobs, teacher, present), candidate_stats(logprobs, teacher_logprobs)


def candidate_stats(logprobs: Tensor, teacher_logprobs: Tensor) -> dict[str, Stat]:
    """What every loss over candidates reports.

    `teacher_mass`, `student_mass` (what the candidates hold of each, mean; and `teacher_mass_min`), `teacher_entropy` and
    `teacher_cross_entropy` (nats a token, of the teacher renormalised over its candidates).
    """
    present = teacher_logprobs > -torch.inf
    student = logprobs.detach()
    teacher = with_tail(teacher_logprobs, present, "renormalise")
    teacher_mass = teacher_logprobs.exp().sum(-1)
    return {
        "teacher_mass": stats.mean(teacher_mass),
        "teacher_mass_min": stats.min(teacher_mass),
        "student_mass": stats.mean(torch.where(present, student.exp(), 0.0).sum(-1)),
        "teacher_entropy": stats.mean(_cross_entropy(torch.where(present, teacher, 0.0), teacher, present)),
        "teacher_cross_entropy": stats.mean(_cross_entropy(student, teacher, present)),
    }


def _compared(logprobs: Tensor, teacher_logprobs: Tensor, tail: Tail) -> tuple[Tensor, Tensor]:
    present = teacher_logprobs > -torch.inf
    return with_tail(logprobs, present, tail), with_tail(teacher_logprobs, present, tail)


def _cross_entropy(logprobs: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
    """-Σ_k t_k log s_k over the candidates that are present."""
    return -torch.where(present, teacher.exp() * logprobs, 0.0).sum(-1)
