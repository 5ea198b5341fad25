"""Divergences between distributions given as log-probabilities, and the treatment of tokens that are not given.

Functions take [..., V] log-probabilities in nats and return [...] nats. -inf is a probability of 0; where both
arguments have it, it adds nothing to value or gradient. bfloat16 and float16 are computed in float32.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ...datums.errors import LossConfigError

#: How tokens outside the K candidates are treated, for student and teacher alike; see `with_tail`.
Tail = Literal["bin", "drop", "renormalise"]

#: The logarithm of the candidates' probability is held at or below this: the tail has a probability of 1e-7 at least.
MAX_LOG_MASS = -1e-7


def forward_kl(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(teacher || student) = Σ_v t_v (log t_v - log s_v): infinite where the student rules out what the teacher does not."""
    return _kl(_full(teacher_logprobs), _full(logprobs))


def reverse_kl(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(student || teacher) = Σ_v s_v (log s_v - log t_v): infinite where the teacher rules out what the student does not."""
    return _kl(_full(logprobs), _full(teacher_logprobs))


def jsd(logprobs: Tensor, teacher_logprobs: Tensor, beta: float = 0.5) -> Tensor:
    """beta KL(teacher || M) + (1 - beta) KL(student || M), where M = (1 - beta) student + beta teacher; 0 < beta < 1.

    It is symmetric at beta = 0.5 and tends to 0 at both ends; divided by beta (1 - beta) it tends to the forward KL as
    beta goes to 0 and to the reverse KL as beta goes to 1. Raises LossConfigError at the ends and beyond.
    """
    if not 0 < beta < 1:
        raise LossConfigError(
            f"jsd: beta={beta:g} must lie strictly between 0 and 1; the ends are forward_kl and reverse_kl"
        )
    student, teacher = _full(logprobs), _full(teacher_logprobs)
    nowhere = (student == -torch.inf) & (teacher == -torch.inf)
    # Both -inf has no gradient in logaddexp: put 0 there, where _kl reads nothing.
    weighed = [torch.where(nowhere, 0.0, x) for x in (student + math.log1p(-beta), teacher + math.log(beta))]
    mixture = torch.logaddexp(*weighed)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def with_tail(logprobs: Tensor, present: Tensor, tail: Tail) -> Tensor:
    """[..., K] log-probabilities of candidates, -inf where not `present`, prepared for comparison.

    "bin": [..., K+1], with all other tokens as one more candidate: log(1 - Σ_k p_k), which gradients flow through.
    "renormalise": divided by Σ_k p_k, so that the candidates form a distribution.
    "drop": unchanged, so that their probabilities add up to less than 1.
    """
    logprobs = torch.where(present, _full(logprobs), -torch.inf)
    if tail == "drop":
        return logprobs
    log_mass = torch.logsumexp(logprobs, -1, keepdim=True)
    if tail == "renormalise":
        return logprobs - log_mass
    return torch.cat([logprobs, torch.log(-torch.expm1(log_mass.clamp(max=MAX_LOG_MASS)))], -1)


def _kl(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Σ_v p_v (log p_v - log q_v) over the v of p_v > 0."""
    here = logprobs > -torch.inf
    # 0 (-inf) is NaN, also as a gradient: set both factors to 0 before, and the product after.
    own, other = torch.where(here, logprobs, 0.0), torch.where(here, other_logprobs, 0.0)
    return torch.where(here, own.exp() * (own - other), 0.0).sum(-1)


def _full(logprobs: Tensor) -> Tensor:
    """At least float32: torch promotes narrower types beside a float32 vector, also while it is traced."""
    return logprobs + logprobs.new_zeros(1, dtype=torch.float32)
