"""How far a student is from its teacher on what is never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...datums.types import Datum
from ...losses.math.divergences import forward_kl, reverse_kl, with_tail
from .examples import Lesson
from .teachers import with_candidates

if TYPE_CHECKING:
    from ...trainer import ReferenceClient, TrainingClient


@dataclass(frozen=True)
class HeldOutDivergence:
    """Given answers, and the teacher's distribution at each of their tokens, asked for once.

    measure gives  held_out_forward_kl    KL(teacher || student), nats a token
                   held_out_reverse_kl    KL(student || teacher), nats a token
                   held_out_nll           nats a token of the given answers, under the student
                   held_out_teacher_mass  what the compared candidates hold of the teacher, where that is not all

    Both divergences are exact where all of the vocabulary is compared. Otherwise all other tokens count as one, which
    makes the divergences at most too small.
    """

    compared: Sequence[Datum]
    plain: Sequence[Datum]

    @classmethod
    def of(cls, teacher: ReferenceClient, lessons: Sequence[Lesson], k: int) -> HeldOutDivergence:
        """k: the teacher's candidates a position; the size of the vocabulary for exact divergences."""
        students, teachers = [lesson.student for lesson in lessons], [lesson.teacher for lesson in lessons]
        return cls(with_candidates(teacher, students, teachers, k) if lessons else [], students)

    def measure(self, training: TrainingClient) -> dict[str, float]:
        """Measure the student's weights as they are; {} where nothing is held out."""
        if not self.plain:
            return {}
        found = training.forward(self.compared, divergences).result().metrics
        nll = training.forward(self.plain, "cross_entropy", {"reduction": "token-mean"}).result().metrics["loss:sum"]
        mass = {} if found["mass"] > 1 - 1e-4 else {"held_out_teacher_mass": found["mass"]}
        return {
            "held_out_forward_kl": found["forward"],
            "held_out_reverse_kl": found["reverse"],
            "held_out_nll": nll,
            **mass,
        }


def divergences(data: Sequence[Datum], logprobs_list: Sequence[Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Both KLs of datums that carry `teacher_logprobs` [N, K], means over positions of weight other than 0.

    logprobs_list[i] [N, K] nats: the student's, of the same candidates. The tokens that are no candidates are one more.
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
