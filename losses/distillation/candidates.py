"""Distillation from a teacher's probabilities of K candidate tokens at each position.

`logprobs` [T, K] are the student's at the teacher's candidates, over the full vocabulary; `teacher_logprobs` [T, K] are
-inf where a position has fewer candidates. The setting `tail` says how to treat all other tokens, of student and teacher:

    "bin"          they count as one more token, of probability 1 - Σ_k p_k. The loss is at least 0, and 0 only if student
                   and teacher agree on every candidate. The tail's probability is clamped to at least 1e-7; at the clamp
                   it has no gradient.
    "renormalise"  both are divided by their Σ_k p_k: the candidates are compared among themselves, and the student's
                   probability elsewhere is free to grow. With one candidate both are 1, so nothing is learned.
    "drop"         their terms are left out of the sum. The loss may be negative, and its minimum is not where student and
                   teacher agree: there the reverse KL still pushes the student off the candidates.
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

Returned = tuple[Tensor, dict[str, Stat]]


@register_loss(
    "topk_forward_kl",
    per="token",
    candidates="teacher_logprobs",
    reduction="token-mean",
    source="Hinton et al. 2015, arXiv:1503.02531 section 2, over K candidates and a tail",
    axes=Axes(kl="forward, KL(teacher || student), over K candidates"),
    differs={
        "TRL 1.16.0": "server distillation with beta 0: the same with tail 'bin' (loss_add_tail, its default) or 'renormalise'",
        "Tinker 0.38.0": "SDFT: the cross-entropy with a renormalised teacher, summed; that is `sdft`",
        "Fireworks 1.2.30": "SDFT: the cross-entropy with a renormalised teacher, summed; that is `sdft`",
    },
    laws={
        "divergence_is_zero_only_when_equal": {"under": [{"tail": "bin"}, {"tail": "renormalise"}]},
        "order_of_candidates_changes_nothing": {},
        "one_candidate_is_cross_entropy": {"own": {"tail": "drop"}},
        "all_candidates_is_dense": {"divergence": "forward_kl"},
    },
)
def topk_forward_kl(logprobs: Tensor, teacher_logprobs: Tensor, *, tail: Tail = "bin") -> Returned:
    """Σ_k t_k (log t_k - log s_k): KL(teacher || student) over K candidates and the `tail`.

    logprobs           [T, K]  nats, of the teacher's candidates under the policy in training, over the full vocabulary
    teacher_logprobs   [T, K]  nats, under the teacher; -inf: a position has fewer than K candidates
    returns            [T]     nats

    It makes the student cover all that the teacher does. With tail "drop" and one candidate of probability 1 it is
    cross-entropy. `teacher_mass` is the teacher's probability of all candidates: below about 0.9, use a larger K.

    When to use: Distillation of a teacher's most likely tokens on given text, when the student should keep the
    teacher's variety.
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
        "TRL 1.16.0": "server distillation with beta 1: one sampled candidate instead of the teacher's K",
        "Tinker 0.38.0": "SDFT with reverse=True: tail 'renormalise', summed, logarithms detached (the same gradient)",
    },
    laws={
        "divergence_is_zero_only_when_equal": {"under": [{"tail": "bin"}, {"tail": "renormalise"}]},
        "order_of_candidates_changes_nothing": {},
        "all_candidates_is_dense": {"divergence": "reverse_kl"},
    },
)
def topk_reverse_kl(logprobs: Tensor, teacher_logprobs: Tensor, *, tail: Tail = "bin") -> Returned:
    """Σ_k s_k (log s_k - log t_k): KL(student || teacher) over K candidates and the `tail`.

    logprobs           [T, K]  nats, of the teacher's candidates under the policy in training, over the full vocabulary
    teacher_logprobs   [T, K]  nats, under the teacher; -inf: a position has fewer than K candidates
    returns            [T]     nats

    It concentrates the student on the teacher's largest modes. A candidate that the student finds very unlikely has hardly a
    gradient. `student_mass` is the student's probability of all candidates: while it is small, most of the student's
    probability is in the tail, which only tail "bin" penalises.

    When to use: Distillation into a much smaller student, which should do its best modes well rather than cover all;
    best on the student's own samples.
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
        "TRL 1.16.0": "GKD and distillation trainers turn into a KL, which is larger without bound, at beta 0 and 1: see `gkd`",
    },
    laws={
        "divergence_is_zero_only_when_equal": {"under": [{"tail": "bin"}, {"tail": "renormalise"}, {"tail": "drop"}]},
        "order_of_candidates_changes_nothing": {},
        "all_candidates_is_dense": {"divergence": "jsd", "own": {"beta": 0.5}},
        "ends_are_kl": {"betas": (1e-7, 1 - 1e-7), "scaled": True},
    },
)
def topk_jsd(
    logprobs: Tensor, teacher_logprobs: Tensor, *, beta: BetweenZeroAndOne = 0.5, tail: Tail = "bin"
) -> Returned:
    """beta KL(t || m) + (1 - beta) KL(s || m), where m = (1 - beta) s + beta t: over K candidates and a tail.

    logprobs           [T, K]  nats, of the teacher's candidates under the policy in training, over the full vocabulary
    teacher_logprobs   [T, K]  nats, under the teacher; -inf: a position has fewer than K candidates
    returns            [T]     nats, at most ln 2

    It resembles the forward KL for small beta and the reverse KL for large beta, but also shrinks to 0 at both ends (which
    are not allowed), so beta scales the learning rate too. It is bounded: a token on which both differ entirely has a small
    gradient.

    When to use: Between forward and reverse KL: one number from covering the teacher to seeking its modes, and a
    bounded loss.
    """
    student, teacher = _compared(logprobs, teacher_logprobs, tail)
    return jsd(student, teacher, beta), candidate_stats(logprobs, teacher_logprobs)


@register_loss(
    "gkd",
    per="token",
    candidates="teacher_logprobs",
    reduction="token-mean",
    source="Agarwal et al. 2023, arXiv:2306.13649 eq. 1 and algorithm 1, over K candidates",
    conflict=lambda settings: tail_at(settings["temperature"], settings["tail"]),
    axes=Axes(kl="forward (beta 0), generalised Jensen-Shannon, or reverse (beta 1), over K candidates"),
    differs={
        "TRL 1.16.0": "over the whole vocabulary; GKD trainer temperature 0.9, distillation trainer beta 1",
    },
    laws={
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
) -> Returned:
    """KL(t || s) at beta = 0, KL(s || t) at beta = 1, and between them the generalised Jensen-Shannon divergence of `topk_jsd`.

    logprobs           [T, K]  nats, of the teacher's candidates under the policy in training, over the full vocabulary
    teacher_logprobs   [T, K]  nats, under the teacher; -inf: a position has fewer than K candidates
    returns            [T]     nats

    The loss jumps at the ends of beta: at 0.001 it is about a thousandth of the KL that it is at 0, so a sweep over beta
    also sweeps the learning rate. temperature divides the logits. K log-probabilities determine the result only up to a
    factor, so it needs tail "renormalise" (where it is exact). The loss is not multiplied by temperature².

    When to use: Generalised knowledge distillation as published: any beta from the forward to the reverse KL, usually
    on the student's samples.
    """
    if why := tail_at(temperature, tail):
        raise LossConfigError(f"gkd: {why}")
    student, teacher = _compared(logprobs / temperature, teacher_logprobs / temperature, tail)
    metrics = candidate_stats(logprobs, teacher_logprobs)
    if beta in (0, 1):
        return (forward_kl if beta == 0 else reverse_kl)(student, teacher), metrics
    return jsd(student, teacher, beta), metrics


@register_loss(
    "sdft",
    per="token",
    candidates="teacher_logprobs",
    reduction="sum",
    source="Shenfeld et al. 2026, arXiv:2601.19897, with a forward KL to the teacher's top K",
    axes=Axes(kl="forward, as a cross-entropy, over K candidates"),
    differs={
        "Tinker 0.38.0": "K 20; weights hold the teacher's renormalised probabilities, and the first 3 response tokens have none",
        "Fireworks 1.2.30": "K at most 5; weights hold the teacher's renormalised probabilities",
        "TRL 1.16.0": "SDFT trainer: a divergence over the student's own top 100 (alpha 0.5), with a capped importance ratio",
    },
    laws={"order_of_candidates_changes_nothing": {}, "one_candidate_is_cross_entropy": {}},
)
def sdft(logprobs: Tensor, teacher_logprobs: Tensor) -> Returned:
    """-Σ_k t_k log s_k, where t is the teacher renormalised over its K candidates and s is the student, not renormalised.

    logprobs           [T, K]  nats, of the teacher's candidates under the policy in training, over the full vocabulary
    teacher_logprobs   [T, K]  nats, under the teacher; -inf: a position has fewer than K candidates
    returns            [T]     nats, at least `teacher_entropy`

    Its gradient is that of KL(renormalised teacher || student), so the student learns to give other tokens no probability.
    It equals cross_entropy with [N, K] weights t. Its minimum is `teacher_entropy`, not 0.

    When to use: Self-distillation: the teacher is the same model with more in its prompt, such as a demonstration.
    """
    present = teacher_logprobs > -torch.inf
    teacher = with_tail(teacher_logprobs, present, "renormalise")
    return _cross_entropy(logprobs, teacher, present), candidate_stats(logprobs, teacher_logprobs)


def tail_at(temperature: float, tail: Tail) -> str:
    """Why these two settings exclude each other, or "": other tokens' probability is known at temperature 1 only."""
    if temperature == 1 or tail == "renormalise":
        return ""
    return (
        f"temperature={temperature:g} needs tail='renormalise', not {tail!r}: the probability of the other tokens "
        "at another temperature cannot be computed from K log-probabilities"
    )


def candidate_stats(logprobs: Tensor, teacher_logprobs: Tensor) -> dict[str, Stat]:
    """The metrics of every loss over candidates.

    `teacher_mass`, `student_mass`: mean probability of all candidates; `teacher_mass_min`: the smallest. `teacher_entropy`,
    `teacher_cross_entropy`: nats per token, of the teacher renormalised over its candidates.
    """
    present = teacher_logprobs > -torch.inf
    student = logprobs.detach()
    teacher = with_tail(teacher_logprobs, present, "renormalise")
    teacher_mass = teacher_logprobs.exp().sum(-1)
    return {
        "teacher_mass": stats.mean(teacher_mass),
        "teacher_mass_min": stats.min(teacher_mass),
        "student_mass": stats.mean(torch.where(present, student.exp(), 0.0).sum(-1)),
        "teacher_entropy": stats.mean(_cross_entropy(teacher, teacher, present)),
        "teacher_cross_entropy": stats.mean(_cross_entropy(student, teacher, present)),
    }


def _compared(logprobs: Tensor, teacher_logprobs: Tensor, tail: Tail) -> tuple[Tensor, Tensor]:
    present = teacher_logprobs > -torch.inf
    return with_tail(logprobs, present, tail), with_tail(teacher_logprobs, present, tail)


def _cross_entropy(logprobs: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
    """-Σ_k t_k log s_k over the candidates that are present."""
    return -torch.where(present, teacher.exp() * logprobs, 0.0).sum(-1)
