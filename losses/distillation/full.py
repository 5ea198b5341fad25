"""Distillation from a teacher's whole distribution at each position: no candidates, no tail.

`vocab_logprobs` [T, V] are the student's, `teacher_vocab_logprobs` [T, V] the teacher's, in nats, over one vocabulary. The
trainer computes both from hidden states, a few positions at a time, and the teacher is a second model:
`training.forward_backward(datums, loss, teacher=teacher)`. `temperature` divides the logits of both; no loss here is
multiplied by temperature².
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import stats
from ..math.whole import at_temperature, expected, mixed
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import BetweenZeroAndOne, Positive, Share
from ..stats import Stat

Returned = tuple[Tensor, dict[str, Stat]]
_DIVERGENCE: dict[str, Any] = {
    "whole_divergence_is_zero_only_when_equal": {},
    "order_of_tokens_changes_nothing": {},
}


@register_loss(
    "full_forward_kl",
    per="token",
    reduction="token-mean",
    source="Hinton et al. 2015, arXiv:1503.02531 section 2, without the factor temperature²",
    axes=Axes(kl="forward, KL(teacher || student), over the vocabulary"),
    differs={
        "TRL 1.16.0": "distillation trainer with beta 0: the same, one mean over the tokens of a step",
        "Liger 0.8.5": "chunked JSD with beta 0: the same; beside a cross-entropy of weight 0.5 by default",
    },
    laws={**_DIVERGENCE, "is_topk_with_all_candidates": {"loss": "topk_forward_kl"}},
)
def full_forward_kl(vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor, *, temperature: Positive = 1.0) -> Returned:
    """Σ_v t_v (log t_v - log s_v): KL(teacher || student) over the whole vocabulary.

    vocab_logprobs          [T, V]  nats, under the policy in training
    teacher_vocab_logprobs  [T, V]  nats, under the teacher
    returns                 [T]     nats

    It makes the student cover all that the teacher does, and is infinite where the student rules out what the teacher does
    not. Without the teacher's entropy it is the cross-entropy with the teacher's probabilities as labels. `teacher_entropy`:
    nats per token; `agreement`: the share of positions where both find the same token likeliest.

    When to use: Distillation on given text from a teacher of the same vocabulary that fits beside the student. People watch
    agreement rise; where it stays low, the student is too small for the teacher's variety: see full_reverse_kl.
    """
    student, teacher = _compared(vocab_logprobs, teacher_vocab_logprobs, temperature)
    probabilities = teacher.exp()
    return expected(probabilities, teacher, student), whole_stats(student, teacher, probabilities)


@register_loss(
    "full_reverse_kl",
    per="token",
    reduction="token-mean",
    source="Gu et al. 2023, arXiv:2306.08543 eq. 1, at each position, over the whole vocabulary",
    axes=Axes(kl="reverse, KL(student || teacher), over the vocabulary"),
    differs={
        "TRL 1.16.0": "distillation trainer with beta 1, its default: the same, one mean over the tokens of a step",
        "Liger 0.8.5": "chunked JSD with beta 1: the same; beside a cross-entropy of weight 0.5 by default",
    },
    laws={**_DIVERGENCE, "is_topk_with_all_candidates": {"loss": "topk_reverse_kl"}},
)
def full_reverse_kl(vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor, *, temperature: Positive = 1.0) -> Returned:
    """Σ_v s_v (log s_v - log t_v): KL(student || teacher) over the whole vocabulary.

    vocab_logprobs          [T, V]  nats, under the policy in training
    teacher_vocab_logprobs  [T, V]  nats, under the teacher
    returns                 [T]     nats

    It concentrates the student on the teacher's largest modes. The sum over tokens is exact, where `sampled_reverse_kl` takes one
    sampled token for it; like that loss it counts each position given its prefix, so the student's samples make it on policy.

    When to use: A student much smaller than its teacher, on the student's own samples: on-policy distillation without the
    noise of one token per position. People watch the length of answers: it falls when the student finds a short one.
    """
    student, teacher = _compared(vocab_logprobs, teacher_vocab_logprobs, temperature)
    return expected(student.exp(), student, teacher), whole_stats(student, teacher, teacher.exp())


@register_loss(
    "full_jsd",
    per="token",
    reduction="token-mean",
    source="Agarwal et al. 2023, arXiv:2306.13649 eq. 1 with M = (1 - beta) student + beta teacher",
    axes=Axes(kl="generalised Jensen-Shannon, over the vocabulary"),
    differs={
        "TRL 1.16.0": "GKD and distillation trainers turn into a KL, which is larger without bound, at beta 0 and 1: see "
        "full_gkd",
        "Liger 0.8.5": "chunked JSD: the same inside (0, 1); beside a cross-entropy of weight 0.5 by default",
    },
    laws={**_DIVERGENCE, "is_topk_with_all_candidates": {"loss": "topk_jsd"}},
)
def full_jsd(
    vocab_logprobs: Tensor,
    teacher_vocab_logprobs: Tensor,
    *,
    beta: BetweenZeroAndOne = 0.5,
    temperature: Positive = 1.0,
) -> Returned:
    """beta KL(t || m) + (1 - beta) KL(s || m), where m = (1 - beta) s + beta t, over the whole vocabulary.

    vocab_logprobs          [T, V]  nats, under the policy in training
    teacher_vocab_logprobs  [T, V]  nats, under the teacher
    returns                 [T]     nats, at most ln 2

    It resembles the forward KL for small beta and the reverse KL for large beta, but also shrinks to 0 at both ends (which
    are not allowed), so beta scales the learning rate too. A position on which both differ entirely has a small gradient.

    When to use: Between forward and reverse KL with a bounded loss, where a teacher is sometimes far off the student's text.
    """
    student, teacher = _compared(vocab_logprobs, teacher_vocab_logprobs, temperature)
    return _jsd(student, teacher, beta)


@register_loss(
    "full_gkd",
    per="token",
    reduction="token-mean",
    source="Agarwal et al. 2023, arXiv:2306.13649 eq. 1 and algorithm 1",
    axes=Axes(kl="forward (beta 0), generalised Jensen-Shannon, or reverse (beta 1), over the vocabulary"),
    differs={
        "TRL 1.16.0": "GKD trainer: temperature 0.9; distillation trainer: beta 1",
        "Liger 0.8.5": "chunked JSD: the same; beside a cross-entropy of weight 0.5 by default",
    },
    laws={
        **_DIVERGENCE,
        "is_topk_with_all_candidates": {"loss": "gkd", "tail": "renormalise", "own": {"temperature": 1.5}},
        "is_another_loss": [
            {"own": {"beta": 0.0}, "loss": "full_forward_kl"},
            {"own": {"beta": 1.0}, "loss": "full_reverse_kl"},
            {
                "own": {"beta": 0.3, "temperature": 2.0},
                "loss": "full_jsd",
                "settings": {"beta": 0.3, "temperature": 2.0},
            },
        ],
    },
)
def full_gkd(
    vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor, *, beta: Share = 0.5, temperature: Positive = 1.0
) -> Returned:
    """KL(t || s) at beta = 0, KL(s || t) at beta = 1, and between them the generalised Jensen-Shannon divergence of full_jsd.

    vocab_logprobs          [T, V]  nats, under the policy in training
    teacher_vocab_logprobs  [T, V]  nats, under the teacher
    returns                 [T]     nats

    The loss jumps at the ends of beta: at 0.001 it is about a thousandth of the KL that it is at 0, so a sweep over beta
    also sweeps the learning rate.

    When to use: Generalised knowledge distillation as published, with a teacher that fits beside the student: any beta from
    the forward to the reverse KL, usually on the student's samples.
    """
    student, teacher = _compared(vocab_logprobs, teacher_vocab_logprobs, temperature)
    if beta in (0, 1):
        own = teacher.exp()
        value = expected(own, teacher, student) if beta == 0 else expected(student.exp(), student, teacher)
        return value, whole_stats(student, teacher, own)
    return _jsd(student, teacher, beta)


def whole_stats(student: Tensor, teacher: Tensor, probabilities: Tensor) -> dict[str, Stat]:
    """The metrics of every loss over whole distributions. probabilities: the teacher's.

    `teacher_entropy`: nats per token. `agreement`: the share of positions where both find the same token likeliest.
    """
    entropy = -torch.linalg.vecdot(probabilities, teacher.clamp(min=torch.finfo(teacher.dtype).min))
    likeliest, wanted = (one == one.amax(-1, keepdim=True) for one in (student.detach(), teacher))  # of equals any
    agrees = (likeliest & wanted).any(-1)
    return {"teacher_entropy": stats.mean(entropy), "agreement": stats.mean(agrees)}


def _compared(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return at_temperature(student, temperature), at_temperature(teacher, temperature)


def _jsd(student: Tensor, teacher: Tensor, beta: float) -> Returned:
    own, other = student.exp(), teacher.exp()
    mixture = mixed(own, other, beta)
    value = beta * expected(other, teacher, mixture) + (1 - beta) * expected(own, student, mixture)
    return value, whole_stats(student, teacher, other)
