"""Laws of losses over a teacher's candidates: what a divergence must keep, whatever becomes of the other tokens."""

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
from ...math import divergences
from ...registry import get_loss
from .. import strategies
from ..evaluation import evaluate, same, shown
from ..loss_under_test import OutputLists, Subject, datum_of
from .law import claim

#: Total variation distance from which on a divergence must be seen.
DISTANCE = 1 / 64
VOCABULARY = 5
ALL_TAILS = ({"tail": "bin"}, {"tail": "renormalise"}, {"tail": "drop"})


def divergence_is_zero_only_when_equal(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Never below 0; 0, with no gradient, when student and teacher agree; above 0 where they differ among the candidates.

    `{"under": [settings, ...]}`: under each of these settings; without it, as the loss is configured.
    """
    single = _one_position_each(data, outputs["logprobs"])
    for settings in subject.claims["divergence_is_zero_only_when_equal"].get("under", [{}]):
        loss = Subject(_summed(subject.loss, settings))
        for datum, student in single:
            value = float(evaluate(loss, [datum], {"logprobs": [student]}).value)
            if value < -1e-12:
                raise LossCheckError(f"the divergence is {value:.12g}, below 0, with {settings}")
            distance = _distance(student.numpy(), datum.loss_fn_inputs["teacher_logprobs"].to_numpy())
            if distance > DISTANCE and not value > distance**2 / 100:
                raise LossCheckError(
                    f"the divergence is {value:.12g} with {settings}, though student and teacher differ by {distance:.3g}"
                )
            teacher = datum.loss_fn_inputs["teacher_logprobs"].to_numpy().astype(np.float64)
            student = torch.from_numpy(np.where(np.isfinite(teacher), teacher, -1.0))
            equal = evaluate(loss, [datum], {"logprobs": [student]})
            if abs(float(equal.value)) > 1e-9 or bool((equal.gradients["logprobs"][0].abs() > 1e-9).any()):
                raise LossCheckError(
                    f"student and teacher agree, but the divergence is {float(equal.value):.12g} and its gradient "
                    f"{shown(equal.gradients['logprobs'][0])} with {settings}"
                )


def order_of_candidates_changes_nothing(
    subject: Subject, data: Sequence[Datum], outputs: OutputLists, seed: int
) -> None:
    """Candidates of a position in another order give the same loss, and gradients in that order."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(t.shape[1]) for t in outputs["logprobs"]]
    moved = [
        Datum(d.model_input, {k: TensorData(v.to_numpy()[:, o]) if len(v.shape) == 2 else v for k, v in _inputs(d)})
        for d, o in zip(data, orders, strict=True)
    ]
    whole = evaluate(subject, data, outputs)
    permuted = [t[:, torch.from_numpy(o)] for t, o in zip(outputs["logprobs"], orders, strict=True)]
    other = evaluate(subject, moved, {"logprobs": permuted})
    for gradient, order in zip(other.gradients["logprobs"], orders, strict=True):
        gradient[:, torch.from_numpy(order)] = gradient.clone()
    same(whole, other, "when the candidates of each position were put in another order")


def one_candidate_is_cross_entropy(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """With one candidate, to which the teacher gives probability 1, it is `cross_entropy` of that token.

    `{"own": settings}`: under these settings.
    """
    here = get_loss(subject.loss, **subject.claims["one_candidate_is_cross_entropy"].get("own", {}))
    first = [t[:, :1] for t in outputs["logprobs"]]
    certain, plain = [], []
    for datum in data:
        weights = {k: v for k, v in _inputs(datum) if k == "weights"}
        targets = datum.loss_fn_inputs["target_tokens"].to_numpy()[:, 0]
        plain.append(Datum(datum.model_input, {**weights, "target_tokens": TensorData(targets)}))
        columns = {
            "target_tokens": TensorData(targets[:, None]),
            "teacher_logprobs": TensorData(0.0 * targets[:, None]),
        }
        certain.append(Datum(datum.model_input, {**weights, **columns}))
    mine = evaluate(Subject(here), certain, {"logprobs": first})
    theirs = evaluate(
        Subject(get_loss("cross_entropy", **_reduction(here))), plain, {"logprobs": [t[:, 0] for t in first]}
    )
    slopes = [g[:, None] for g in theirs.gradients["logprobs"]]
    expected = type(mine)(theirs.total, theirs.count, theirs.value, {"logprobs": slopes}, mine.metrics)
    same(mine, expected, "when computed as cross_entropy of the one candidate")


def all_candidates_is_dense(subject: Subject, logits: list[list[float]], teacher: list[list[float]]) -> None:
    """With the whole vocabulary as candidates it is the dense divergence, also in its gradient with respect to logits.

    `{"divergence": its name in losses.divergences, "own": settings, "under": [settings, ...]}`: with its own settings and,
    in turn, each of the others (every `tail`, unless given).
    """
    claimed = subject.claims["all_candidates_is_dense"]
    dense = getattr(divergences, claimed["divergence"])
    of_teacher = torch.log_softmax(torch.tensor(teacher, dtype=torch.float64), -1).float()
    tokens = np.tile(np.arange(VOCABULARY), (len(logits), 1))
    datum = datum_of(len(logits), {"target_tokens": tokens, "teacher_logprobs": TensorData(of_teacher.numpy())})
    for settings in claimed.get("under", ALL_TAILS):
        own = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        student = torch.log_softmax(own, -1)
        loss = _summed(subject.loss, {**claimed.get("own", {}), **settings})
        found, _ = loss.terms([datum], {"logprobs": [student]})
        expected = dense(student, of_teacher.double()).sum()
        slopes = [torch.autograd.grad(value, own, retain_graph=True)[0] for value in (found, expected)]
        # The teacher's float32 probabilities add up to 1 within 1e-7, and so does its tail.
        if not torch.allclose(found, expected, atol=1e-5) or not torch.allclose(slopes[0], slopes[1], atol=1e-5):
            raise LossCheckError(
                f"over the whole vocabulary, with {settings}, the loss is {shown(found)} with gradient {shown(slopes[0])} in "
                f"the logits; the dense divergence is {shown(expected)} with gradient {shown(slopes[1])}"
            )


def ends_are_kl(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """At either end of beta it is a KL: `topk_forward_kl` at the low, `topk_reverse_kl` at the high.

    `{"betas": (low, high), "scaled": whether it is to be divided by beta (1 - beta)}`.
    """
    claimed = subject.claims["ends_are_kl"]
    kept = {key: value for key, value in _settings(subject).items() if key == "tail"}
    for beta, name in zip(claimed["betas"], ("topk_forward_kl", "topk_reverse_kl"), strict=True):
        scale = beta * (1 - beta) if claimed["scaled"] else 1.0
        mine = evaluate(Subject(get_loss(subject.loss, beta=beta)), data, outputs)
        theirs = evaluate(Subject(get_loss(name, **kept, **_reduction(subject.loss))), data, outputs)
        found, expected = float(mine.value) / scale, float(theirs.value)
        if not abs(found - expected) <= (1e-2 if claimed["scaled"] else 1e-12) * max(1.0, abs(expected)):
            raise LossCheckError(
                f"at beta {beta:g} it is {found:.12g}{' once divided by beta (1 - beta)' if claimed['scaled'] else ''}, "
                f"but {name} is {expected:.12g}"
            )


def _inputs(datum: Datum) -> Any:
    return datum.loss_fn_inputs.items()


def _settings(subject: Subject) -> Mapping[str, Any]:
    return subject.loss.settings if isinstance(subject.loss, Loss) else {}


def _summed(loss: Any, settings: Mapping[str, Any]) -> Loss:
    """The loss under these settings, as a plain sum."""
    return Loss(loss.spec, {**loss.settings, **settings, "reduction": "sum"})


def _reduction(loss: Any) -> dict[str, Any]:
    return {"reduction": loss.reduction, **({} if loss.norm_length is None else {"norm_length": loss.norm_length})}


def _one_position_each(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> list[tuple[Datum, Tensor]]:
    """Every position as a datum of its own, of weight 1."""
    found: list[tuple[Datum, Tensor]] = []
    for datum, student in zip(data, logprobs, strict=True):
        for t in range(len(student)):
            inputs = {k: TensorData(v.to_numpy()[t : t + 1]) for k, v in _inputs(datum) if len(v.shape) == 2}
            found.append((datum_of(1, {**inputs, "weights": [1.0]}), student[t : t + 1]))
    return found


def _distance(student: np.ndarray, teacher: np.ndarray) -> float:
    """Total variation distance of both among the candidates that are present, or of both renormalised if that is less.

    What a divergence sees depends on what it makes of the tail: candidates that together hold little differ little in it.
    """
    here = np.isfinite(teacher)
    s, t = (np.exp(x[here].astype(np.float64)) for x in (student, teacher))
    return float(min(np.abs(s - t).sum(), np.abs(s / s.sum() - t / t.sum()).sum()) / 2)


@st.composite
def _with_seed(draw: Any, subject: Subject) -> Mapping[str, Any]:
    data = draw(strategies.datums(subject))
    return {"data": data, "outputs": draw(strategies.outputs(subject, data)), "seed": draw(st.integers(0, 1000))}


@st.composite
def _whole_vocabulary(draw: Any, subject: Subject) -> Mapping[str, Any]:
    rows = st.lists(st.integers(-64, 64).map(lambda n: n / 16), min_size=VOCABULARY, max_size=VOCABULARY)
    length = draw(st.integers(1, 2))
    return {name: draw(st.lists(rows, min_size=length, max_size=length)) for name in ("logits", "teacher")}


CHECKS = (
    claim(divergence_is_zero_only_when_equal),
    claim(order_of_candidates_changes_nothing, _with_seed),
    claim(one_candidate_is_cross_entropy),
    claim(all_candidates_is_dense, _whole_vocabulary),
    claim(ends_are_kl),
)
