"""The divergence of a student from its teacher on held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...datums.types import Datum
from ...losses.math.divergences import forward_kl, reverse_kl, with_tail
from ..tasks.held_out import HeldOut
from .examples import DistillationExample
from .teachers import with_candidates

if TYPE_CHECKING:
    from ...trainer import ReferenceClient, TrainingClient


@dataclass(frozen=True)
class HeldOutDivergence:
    """Held-out answers, and the teacher's distribution at each of their tokens, computed once.

    measure gives  held_out_forward_kl    KL(teacher || student), nats per token
                   held_out_reverse_kl    KL(student || teacher), nats per token
                   held_out_nll           of the given answers under the student, nats per token
                   held_out_teacher_mass  the teacher's probability of the compared candidates, where it is not 1

    Both divergences are exact where the whole vocabulary is compared. Otherwise all other tokens count as one, which
    makes both lower bounds.
    """

    compared: Sequence[Datum]
    plain: Sequence[Datum]

    @classmethod
    def of(
        cls, teacher: ReferenceClient, examples: Sequence[DistillationExample], k: int, vocabulary: int | None = None
    ) -> HeldOutDivergence:
        """k: the teacher's candidates per position; the size of the vocabulary for exact divergences.

        vocabulary: as in `with_candidates`.
        """
        students, teachers = [example.student for example in examples], [example.teacher for example in examples]
        return cls(with_candidates(teacher, students, teachers, k, vocabulary) if examples else [], students)

    def measure(self, training: TrainingClient) -> dict[str, float]:
        """Evaluate the student's current weights; {} without held-out data."""
        if not self.plain:
            return {}
        metrics = training.forward(self.compared, divergences).result().metrics
        nll = HeldOut(self.plain).measure(training)
        mass = {} if metrics["mass"] > 1 - 1e-4 else {"held_out_teacher_mass": metrics["mass"]}
        return {
            "held_out_forward_kl": metrics["forward"],
            "held_out_reverse_kl": metrics["reverse"],
            **nll,
            **mass,
        }


def divergences(data: Sequence[Datum], logprobs_list: Sequence[Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Both KLs of datums with `teacher_logprobs` [N, K], as means over positions of nonzero weight.

    logprobs_list[i] [N, K] nats: the student's, of the same candidates. All other tokens count as one more candidate.
    """
    forward, reverse, mass = [], [], []
    for datum, logprobs in zip(data, logprobs_list, strict=True):
        rows = datum.loss_fn_inputs["weights"].to_torch() != 0
        teacher = datum.loss_fn_inputs["teacher_logprobs"].to_torch()[rows].double()
        present = teacher > -torch.inf
        student, compared = (with_tail(one, present, "bin") for one in (logprobs[rows].double(), teacher))
        forward.append(forward_kl(student, compared))
        reverse.append(reverse_kl(student, compared))
        mass.append(teacher.exp().sum(-1))
    means = {name: torch.cat(x).mean() for name, x in (("forward", forward), ("reverse", reverse), ("mass", mass))}
    return means["forward"], {name: float(mean.detach()) for name, mean in means.items()}
