"""Distillation from a teacher's whole distribution by other divergences: skewed and adaptive KL, total variation."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from .. import stats
from ..math.whole import at_temperature, expected, mixed
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import BetweenZeroAndOne, Positive
from .full import Returned, whole_stats

#: The share of the other distribution that is mixed in; at 1 both are the same.
Skew = Annotated[float, Ge(0), Lt(1)]
_DIVERGENCE: dict[str, Any] = {
    "whole_divergence_is_zero_only_when_equal": {},
    "order_of_tokens_changes_nothing": {},
}


@register_loss(
    "full_skewed_forward_kl",
    per="token",
    reduction="token-mean",
    source="Ko et al. 2024, arXiv:2402.03898 eq. 4",
    axes=Axes(kl="forward, KL(teacher || a mixture of both), over the vocabulary"),
    laws={**_DIVERGENCE, "is_another_loss": {"own": {"alpha": 0.0}, "loss": "full_forward_kl"}},
)
def full_skewed_forward_kl(
    vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor, *, alpha: Skew = 0.1, temperature: Positive = 1.0
) -> Returned:
    """KL(t || alpha t + (1 - alpha) s): the forward KL to a student with a share of its teacher mixed in.

    vocab_logprobs          [T, V]  nats, under the policy in training
    teacher_vocab_logprobs  [T, V]  nats, under the teacher
    returns                 [T]     nats, at most -log(alpha)

    The mixture bounds t / m by 1 / alpha, so that a token that the student hardly knows has no exploding gradient. alpha = 0 is
    full_forward_kl.

    When to use: A forward KL whose first steps are rough because student and teacher are far apart. People watch the gradient
    norm: it should be steadier than full_forward_kl's at the same learning rate.
    """
    student, teacher = (at_temperature(x, temperature) for x in (vocab_logprobs, teacher_vocab_logprobs))
    own = teacher.exp()
    mixture = mixed(student.exp(), own, alpha) if alpha else student
    return expected(own, teacher, mixture), whole_stats(student, teacher, own)


@register_loss(
    "full_skewed_reverse_kl",
    per="token",
    reduction="token-mean",
    source="Ko et al. 2024, arXiv:2402.03898 section 3.1, the skew reverse KL",
    axes=Axes(kl="reverse, KL(student || a mixture of both), over the vocabulary"),
    laws={**_DIVERGENCE, "is_another_loss": {"own": {"alpha": 0.0}, "loss": "full_reverse_kl"}},
)
def full_skewed_reverse_kl(
    vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor, *, alpha: Skew = 0.1, temperature: Positive = 1.0
) -> Returned:
    """KL(s || alpha s + (1 - alpha) t): the reverse KL to a teacher with a share of its student mixed in.

    vocab_logprobs          [T, V]  nats, under the policy in training
    teacher_vocab_logprobs  [T, V]  nats, under the teacher
    returns                 [T]     nats, at most -log(alpha)

    A token that the student likes and the teacher rules out costs at most -log(alpha), where the reverse KL is without
    bound. alpha = 0 is full_reverse_kl.

    When to use: On-policy distillation from a teacher that is certain of its tokens; DistiLLM's choice for student samples.
    People watch the gradient norm, and agreement.
    """
    student, teacher = (at_temperature(x, temperature) for x in (vocab_logprobs, teacher_vocab_logprobs))
    own, other = student.exp(), teacher.exp()
    mixture = mixed(other, own, alpha) if alpha else teacher
    return expected(own, student, mixture), whole_stats(student, teacher, other)


@register_loss(
    "full_adaptive_kl",
    per="token",
    reduction="token-mean",
    source="Wu et al. 2024, arXiv:2404.02657 section 4",
    axes=Axes(kl="forward and reverse, weighed per position, over the vocabulary"),
    laws={"whole_divergence_is_zero_only_when_equal": {}},
)
def full_adaptive_kl(
    vocab_logprobs: Tensor,
    teacher_vocab_logprobs: Tensor,
    *,
    head: BetweenZeroAndOne = 0.5,
    temperature: Positive = 1.0,
) -> Returned:
    """g KL(t || s) + (1 - g) KL(s || t), where g is the head's share of Σ_v |t_v - s_v|, without a gradient.

    vocab_logprobs          [T, V]  nats, under the policy in training
    teacher_vocab_logprobs  [T, V]  nats, under the teacher
    returns                 [T]     nats

    A position's head are its fewest likeliest tokens whose probability under the teacher is `head` or more. The forward KL fits
    the head first and the reverse KL the tail, so each is weighed by how far off the student is there. Of equally likely tokens
    at the edge the first by id belong to the head. `head_share`: the mean of g.

    When to use: Few epochs of distillation on given text, where neither KL alone has fitted head and tail yet. People watch
    head_share fall: the head is learned first.
    """
    student, teacher = (at_temperature(x, temperature) for x in (vocab_logprobs, teacher_vocab_logprobs))
    own, other = student.exp(), teacher.exp()
    share = _head_share(own.detach(), other, head)
    value = share * expected(other, teacher, student) + (1 - share) * expected(own, student, teacher)
    return value, {**whole_stats(student, teacher, other), "head_share": stats.mean(share)}


@register_loss(
    "full_total_variation",
    per="token",
    reduction="token-mean",
    source="Wen et al. 2023, arXiv:2307.15190 section 3.2, the total variation distance at each position",
    axes=Axes(kl="none: total variation distance, over the vocabulary"),
    laws=_DIVERGENCE,
)
def full_total_variation(
    vocab_logprobs: Tensor, teacher_vocab_logprobs: Tensor, *, temperature: Positive = 1.0
) -> Returned:
    """½ Σ_v |s_v - t_v|: the total variation distance of student and teacher over the whole vocabulary.

    vocab_logprobs          [T, V]  nats, under the policy in training
    teacher_vocab_logprobs  [T, V]  nats, under the teacher
    returns                 [T]     a probability, at most 1

    The share of samples in which both would have to differ; 1 minus it is what speculative decoding accepts on average. A
    token's gradient in its logit is at most its probability, so nothing explodes, and a token that the student hardly
    knows is hardly learned.

    When to use: A draft model for speculative decoding, whose acceptance this is, or a fine student that is near its teacher
    already; from far away begin with a KL. People watch the loss itself: 1 minus it is the acceptance rate.
    """
    student, teacher = (at_temperature(x, temperature) for x in (vocab_logprobs, teacher_vocab_logprobs))
    other = teacher.exp()
    return (student.exp() - other).abs().sum(-1) / 2, whole_stats(student, teacher, other)


def _head_share(own: Tensor, other: Tensor, head: float) -> Tensor:
    """[T]: the share of Σ_v |own_v - other_v| in the fewest likeliest tokens of `other` whose probability is `head` or more."""
    ordered, order = other.sort(dim=-1, descending=True, stable=True)
    is_head = ordered.cumsum(-1) - ordered < head
    gaps = (own - other).abs().gather(-1, order)
    total = gaps.sum(-1)
    # Where both agree there is no gap, and both KLs are 0 whatever the share.
    return torch.where(is_head, gaps, 0.0).sum(-1) / torch.where(total == 0, 1.0, total)
