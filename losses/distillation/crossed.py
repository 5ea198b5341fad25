"""Distillation from a teacher with another tokenizer, at positions before which both have read the same text.

`vocab_logprobs` [T, V] are the student's, `teacher_vocab_logprobs` [T, V'] the teacher's, in nats, over what comes next. Which of
the teacher's positions belongs to each of ours is a matter of the data (`teacher_positions`; `datums.builders.alignment` makes
them): where both tokenizers end a token after the same byte. Inside a span of several tokens there is nothing to compare.

Where a span is several tokens for either side, TRL multiplies the distribution at its first token by the probability of its other
tokens. `span_logprobs` and `teacher_span_logprobs` [T] do the same: the sum of the other tokens' logprobs, without a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...datums.errors import ShapeError
from .. import stats
from ..math.divergences import forward_kl, jsd, reverse_kl
from ..math.whole import at_temperature
from ..registry import register_loss
from ..spec.axes import Axes
from ..spec.settings import Positive, Share
from ..stats import Stat

Returned = tuple[Tensor, dict[str, Stat]]


@register_loss(
    "uld",
    per="token",
    reduction="token-mean",
    vocabularies="any",
    source="Boizard et al. 2024, arXiv:2402.12030, the term beside its cross-entropy",
    axes=Axes(kl="none: sorted probabilities, whatever their tokens"),
    differs={
        "TRL 1.16.0": "GOLD trainer, use_uld_loss: a mean per sequence first, a temperature for each side; probabilities of spans "
        "have a gradient through all their tokens",
    },
    laws={"order_of_tokens_changes_nothing": {}},
)
def uld(
    vocab_logprobs: Tensor,
    teacher_vocab_logprobs: Tensor,
    span_logprobs: Tensor | None = None,
    teacher_span_logprobs: Tensor | None = None,
    *,
    temperature: Positive = 1.0,
) -> Returned:
    """Σ_k |s_(k) - t_(k)|, where s_(k) and t_(k) are the k-th largest probabilities of student and teacher.

    vocab_logprobs           [T, V]   nats, under the policy in training
    teacher_vocab_logprobs   [T, V']  nats, under the teacher, in its own tokens
    span_logprobs            [T]      nats, optional: of the other tokens of the span that begins here, under the student
    teacher_span_logprobs    [T]      nats, optional: the same under the teacher
    returns                  [T]      unitless, from 0 to 2

    The shorter list is filled up with zeros. It knows no tokens: it teaches how sure to be and not of what, so it is added
    to a loss that does: get_loss("cross_entropy") + get_loss("uld", weights="span_weights"). temperature divides the
    logits of both. `student_top` and `teacher_top` are the means of the largest probability.

    When to use: A teacher whose vocabulary has little in common with the student's. Where most tokens are the same text in both,
    take gold. Watch that `student_top` comes to `teacher_top` while the cross-entropy of held-out text still falls.
    """
    student = _probabilities(vocab_logprobs, span_logprobs, temperature)
    teacher = _probabilities(teacher_vocab_logprobs, teacher_span_logprobs, temperature)
    return sorted_distance(student, teacher), {
        "student_top": stats.mean(student.amax(-1)),
        "teacher_top": stats.mean(teacher.amax(-1)),
    }


@register_loss(
    "gold",
    per="token",
    reduction="token-mean",
    vocabularies="renumbered",
    source="Patiño et al. 2025, Unlocking On-Policy Distillation for Any Model Family (Hugging Face), the hybrid loss",
    axes=Axes(kl="generalised Jensen-Shannon over shared tokens; forward at beta 0, reverse at beta 1"),
    differs={
        "TRL 1.16.0": "GOLD trainer, uld_use_hybrid_loss: a mean per sequence first; probabilities below 1e-8 are held there; two "
        "weights; only tokens of the same spelling are shared, so not those of another kind of tokenizer",
    },
    laws={"order_of_tokens_changes_nothing": {}},
)
def gold(
    vocab_logprobs: Tensor,
    teacher_vocab_logprobs: Tensor,
    span_logprobs: Tensor | None = None,
    teacher_span_logprobs: Tensor | None = None,
    *,
    beta: Share = 0.5,
    matched_weight: Share | None = None,
    temperature: Positive = 1.0,
) -> Returned:
    """w D(s, t) + (1 - w) Σ_k |s_(k) - t_(k)|: D over tokens that both have, the sum over all others, sorted by probability.

    vocab_logprobs           [T, V]      nats, under the policy in training
    teacher_vocab_logprobs   [T, V + U]  nats, under the teacher, in the student's numbers: column v is the student's token
                                         v, -inf where the teacher has none such; its other U tokens follow
    span_logprobs            [T]         nats, optional: of the other tokens of the span that begins here, under the student
    teacher_span_logprobs    [T]         nats, optional: the same under the teacher
    returns                  [T]         nats and probabilities, at least 0 for beta strictly between 0 and 1

    D is beta KL(t || m) + (1 - beta) KL(s || m) with m = (1 - beta) s + beta t, at beta 0 KL(t || s), at beta 1 KL(s || t),
    summed over shared tokens as they are, not renormalised. w is matched_weight, or the share of the teacher's tokens that
    are shared. temperature divides the logits of both. `student_matched`, `teacher_matched`: mean probability of shared
    tokens; `divergence`, `distance`: means of the two terms.

    When to use: A teacher with another tokenizer that shares tokens with the student's, as those trained on similar text do,
    beside cross-entropy or on the student's samples. Watch `teacher_matched`: what is not shared is only sorted.
    """
    vocabulary = vocab_logprobs.shape[-1]
    in_both = teacher_vocab_logprobs[..., :vocabulary] > -torch.inf
    if in_both.shape[-1] < vocabulary:
        raise ShapeError(
            f"gold reads the teacher's distribution in the student's numbers, so of at least {vocabulary} tokens, but it has "
            f"{teacher_vocab_logprobs.shape[-1]}: see datums.builders.vocabularies.renumbering"
        )
    student = _logprobs(vocab_logprobs, span_logprobs, temperature)
    teacher = _logprobs(teacher_vocab_logprobs, teacher_span_logprobs, temperature)
    own, others = torch.where(in_both, student, -torch.inf), teacher[..., :vocabulary]
    divergence = (
        forward_kl(own, others) if beta == 0 else reverse_kl(own, others) if beta == 1 else jsd(own, others, beta)
    )
    apart = teacher[..., vocabulary:].exp()
    distance = sorted_distance(torch.where(in_both, 0.0, student.exp()), apart)
    shared = in_both.sum(-1)
    weight = shared / (shared + apart.shape[-1]) if matched_weight is None else matched_weight
    return weight * divergence + (1 - weight) * distance, {
        "divergence": stats.mean(divergence),
        "distance": stats.mean(distance),
        "student_matched": stats.mean(own.exp().sum(-1)),
        "teacher_matched": stats.mean(others.exp().sum(-1)),
    }


def sorted_distance(first: Tensor, second: Tensor) -> Tensor:
    """[T]: Σ_k |a_(k) - b_(k)| of the k-th largest of two [T, V] and [T, V'], the shorter filled up with zeros.

    Equal numbers of `first` share their gradient; torch.sort would give each that of its place.
    """
    longest = max(first.shape[-1], second.shape[-1])
    a, b = (pad(x.sort(-1, descending=True).values, (0, longest - x.shape[-1])) for x in (first, second))
    sign = (a - b).sign().detach()
    run = pad((a[..., 1:] != a[..., :-1]).cumsum(-1), (1, 0))  # which run of equal numbers each belongs to
    sums, counts = (torch.zeros_like(sign).scatter_add(-1, run, x) for x in (sign, torch.ones_like(sign)))
    shared = (sums / counts.clamp(min=1)).gather(-1, run)
    return (shared * a - sign * b).sum(-1)


def _logprobs(logprobs: Tensor, span_logprobs: Tensor | None, temperature: float) -> Tensor:
    """Log-probabilities at a temperature, of a whole span where its other tokens are given."""
    logprobs = at_temperature(logprobs, temperature)
    return logprobs if span_logprobs is None else logprobs + span_logprobs.unsqueeze(-1)


def _probabilities(logprobs: Tensor, span_logprobs: Tensor | None, temperature: float) -> Tensor:
    return _logprobs(logprobs, span_logprobs, temperature).exp()
