"""Distillation over the student's own likeliest tokens: where the student looks, whatever the teacher finds likely elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import stats
from ..math.divergences import Tail, forward_kl, jsd, reverse_kl, with_tail
from ..math.whole import at_temperature
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import AtLeastOne, Positive, Share
from ..stats import Stat


@register_loss(
    "student_topk_gkd",
    per="token",
    reduction="token-mean",
    source="Hübotter et al. 2026, arXiv:2601.20802, with the divergence of Agarwal et al. 2023, arXiv:2306.13649 eq. 1",
    axes=Axes(kl="forward (beta 0), generalised Jensen-Shannon, or reverse (beta 1), over the student's top K"),
    differs={
        "TRL 1.16.0": "SDPO trainer with topk_logits: the same, `alpha` is beta; the tail is a bin or renormalised; its default is "
        "the sampled token alone",
    },
    laws={"order_of_tokens_changes_nothing": {}},
)
def student_topk_gkd(
    vocab_logprobs: Tensor,
    teacher_vocab_logprobs: Tensor,
    *,
    beta: Share = 1.0,
    temperature: Positive = 1.0,
    tail: Tail = "bin",
    likeliest: AtLeastOne = 100,
) -> tuple[Tensor, dict[str, Stat]]:
    """KL(t || s) at beta = 0, KL(s || t) at beta = 1, and between them the divergence of `full_jsd`, over the student's top K.

    vocab_logprobs          [T, V]  nats, under the policy in training
    teacher_vocab_logprobs  [T, V]  nats, under the teacher
    returns                 [T]     nats

    K = `likeliest`, or V where that is less. No gradient passes through the choice of tokens; of equally likely ones any is
    chosen. All others count by `tail` as in `topk_jsd`: as one more token, not at all, or both sides renormalised. With K = V
    and tail "renormalise" it is `full_gkd`. temperature divides the logits of both. `likeliest_mass` and
    `teacher_likeliest_mass` are the mean probabilities of the K tokens: where the teacher's is much the smaller, its likely tokens
    are in the tail.

    When to use: Self-distillation on the student's samples, where the teacher is the same model with more in its prompt, such as
    feedback (SDPO, OPSD): tokens that the student would never write teach nothing and are left out. People watch
    `teacher_likeliest_mass`: it comes to `likeliest_mass`.
    """
    student, teacher = (at_temperature(one, temperature) for one in (vocab_logprobs, teacher_vocab_logprobs))
    chosen = student.detach().topk(min(likeliest, student.shape[-1])).indices
    own, theirs = student.gather(-1, chosen), teacher.gather(-1, chosen)
    present = torch.ones_like(own, dtype=torch.bool)
    compared = with_tail(own, present, tail), with_tail(theirs, present, tail)
    metrics = {
        "likeliest_mass": stats.mean(own.detach().exp().sum(-1)),
        "teacher_likeliest_mass": stats.mean(theirs.exp().sum(-1)),
    }
    if beta in (0, 1):
        return (forward_kl if beta == 0 else reverse_kl)(*compared), metrics
    return jsd(*compared, beta), metrics
