"""Laws of losses over whole distributions: the properties of a divergence between a student and its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossCheckError
from ....datums.types import Datum, TensorData
from ...loss.loss import Loss
from ...registry import get_loss
from ...spec.spec import GROUP_KEY
from ...spec.vocabulary import STUDENT, TEACHER
from .. import strategies
from ..checks import family_law
from ..evaluation import evaluate, same, shown
from ..loss_under_test import LossUnderTest, OutputLists, datum_of

#: Total variation distance above which the divergence must be above 0.
DISTANCE = 1 / 64


def whole_divergence_is_zero_only_when_equal(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """At least 0; 0 without gradient in the logits where student and teacher agree; above 0 where they differ."""
    summed = LossUnderTest(Loss(loss.wrapped.spec, {**loss.wrapped.settings, "reduction": "sum"}))  # type: ignore[union-attr]
    for student, teacher in _rows(outputs):
        datum = datum_of(1, {"target_tokens": [0], "weights": [1.0]})
        value = float(evaluate(summed, [datum], {STUDENT: [student], TEACHER: [teacher]}).value)
        distance = float((student.exp() - teacher.exp()).abs().sum()) / 2
        if value < -1e-12 or (distance > DISTANCE and not value > distance**2 / 100):
            raise LossCheckError(f"the divergence is {value:.12g}, and student and teacher differ by {distance:.3g}")
        equal = evaluate(summed, [datum], {STUDENT: [teacher], TEACHER: [teacher]})
        slope = equal.gradients[STUDENT][0]
        in_logits = slope - teacher.exp() * slope.sum(-1, keepdim=True)
        if abs(float(equal.value)) > 1e-9 or bool((in_logits.abs() > 1e-9).any()):
            raise LossCheckError(
                f"student and teacher agree, but the divergence is {float(equal.value):.12g} and its gradient in the logits "
                f"{shown(in_logits)}"
            )


def order_of_tokens_changes_nothing(
    loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, seed: int
) -> None:
    """Reordering the vocabulary of student and teacher reorders the gradients and changes nothing else."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(outputs[STUDENT][0].shape[1]))
    moved = {n: [t[:, order] if n in (STUDENT, TEACHER) else t for t in tensors] for n, tensors in outputs.items()}
    whole, other = evaluate(loss, data, outputs), evaluate(loss, data, moved)
    for gradient in (*other.gradients[STUDENT], *other.gradients[TEACHER]):
        gradient[:, order] = gradient.clone()
    same(whole, other, "when the tokens of the vocabulary were put in another order")


def is_topk_with_all_candidates(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """It equals a loss over candidates with the whole vocabulary as candidates, value and gradient.

    `{"loss": id, "tail": which, "own": settings}`: both have the settings.
    """
    law = loss.laws["is_topk_with_all_candidates"]
    shared = {key: one for key, one in loss.wrapped.settings.items() if key == "beta"}  # type: ignore[union-attr]
    shared |= law.get("own", {})
    reduction = {"reduction": loss.wrapped.reduction}  # type: ignore[union-attr]
    here = get_loss(loss.wrapped, **shared)
    other = get_loss(law["loss"], **reduction, **shared, tail=law.get("tail", "renormalise"))
    single = [t.float().double() for t in outputs[TEACHER]]  # as a datum holds it
    wide = [_with_candidates(datum, teacher) for datum, teacher in zip(data, single, strict=True)]
    if not loss.wrapped.active(data).any() or here.norm_length is not None:  # type: ignore[union-attr]
        return
    mine = evaluate(LossUnderTest(here), data, {STUDENT: outputs[STUDENT], TEACHER: single})
    theirs = evaluate(LossUnderTest(other), wide, {"logprobs": outputs[STUDENT]})
    pairs = [("the loss", mine.value, theirs.value)]
    pairs += [
        (f"the gradient in the logits of datum {i}", *(g - x.exp() * g.sum(-1, keepdim=True) for g in (a, b)))
        for i, (a, b, x) in enumerate(
            zip(mine.gradients[STUDENT], theirs.gradients["logprobs"], outputs[STUDENT], strict=True)
        )
    ]
    for what, own, expected in pairs:
        # A float32 teacher adds up to 1 within 1e-7, and renormalising makes up for it on the other side only.
        if not torch.allclose(own, expected, rtol=1e-5, atol=1e-5):
            raise LossCheckError(f"{what} is {shown(own)}, but {other!r} over all tokens gives {shown(expected)}")


def _rows(outputs: OutputLists) -> list[tuple[Tensor, Tensor]]:
    """[1, V] of student and teacher at each position."""
    joined = [torch.cat(outputs[name]) for name in (STUDENT, TEACHER)]
    return list(zip(*(one.split(1) for one in joined), strict=True))


def _with_candidates(datum: Datum, teacher: Tensor) -> Datum:
    tokens = np.tile(np.arange(teacher.shape[1]), (len(teacher), 1))
    carried = {"target_tokens": TensorData(tokens), "teacher_logprobs": TensorData(teacher.numpy().astype(np.float32))}
    weights = {key: one for key, one in datum.loss_fn_inputs.items() if key in ("weights", GROUP_KEY)}
    return Datum(datum.model_input, {**weights, **carried})


@st.composite
def _with_seed(draw: Any, loss: LossUnderTest) -> Mapping[str, Any]:
    data = draw(strategies.datums(loss))
    return {"data": data, "outputs": draw(strategies.outputs(loss, data)), "seed": draw(st.integers(0, 1000))}


CHECKS = (
    family_law(whole_divergence_is_zero_only_when_equal),
    family_law(order_of_tokens_changes_nothing, _with_seed),
    family_law(is_topk_with_all_candidates),
)
