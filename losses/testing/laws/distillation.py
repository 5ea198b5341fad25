"""Laws of losses over a teacher's candidates: the properties of a divergence, under every `tail`."""

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
from ...spec.spec import GROUP_KEY
from .. import strategies
from ..checks import family_law
from ..evaluation import evaluate, same, shown
from ..loss_under_test import LossUnderTest, OutputLists, datum_of

#: Total variation distance above which the divergence must be above 0.
DISTANCE = 1 / 64
VOCABULARY = 5
ALL_TAILS = ({"tail": "bin"}, {"tail": "renormalise"}, {"tail": "drop"})


def divergence_is_zero_only_when_equal(
    loss_under_test: LossUnderTest, data: Sequence[Datum], outputs: OutputLists
) -> None:
    """At least 0; 0 without gradient where student and teacher agree; above 0 where they differ among the candidates.

    `{"under": [settings, ...]}`: checked under each of these settings; without it, under the loss's own.
    """
    single = _one_position_each(data, outputs["logprobs"])
    for settings in loss_under_test.laws["divergence_is_zero_only_when_equal"].get("under", [{}]):
        loss = LossUnderTest(_summed(loss_under_test.wrapped, settings))
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
    loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, seed: int
) -> None:
    """Reordering the candidates of a position reorders the gradients and changes nothing else."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(t.shape[1]) for t in outputs["logprobs"]]
    moved = [
        Datum(d.model_input, {k: TensorData(v.to_numpy()[:, o]) if len(v.shape) == 2 else v for k, v in _inputs(d)})
        for d, o in zip(data, orders, strict=True)
    ]
    whole = evaluate(loss, data, outputs)
    permuted = [t[:, torch.from_numpy(o)] for t, o in zip(outputs["logprobs"], orders, strict=True)]
    other = evaluate(loss, moved, {"logprobs": permuted})
    for gradient, order in zip(other.gradients["logprobs"], orders, strict=True):
        gradient[:, torch.from_numpy(order)] = gradient.clone()
    same(whole, other, "when the candidates of each position were put in another order")


def one_candidate_is_cross_entropy(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """With one candidate of teacher probability 1 it equals `cross_entropy` of that token.

    `{"own": settings}`: checked under these settings.
    """
    here = get_loss(loss.wrapped, **loss.laws["one_candidate_is_cross_entropy"].get("own", {}))
    first = [t[:, :1] for t in outputs["logprobs"]]
    certain, single = [], []
    for datum in data:
        weights = {k: v for k, v in _inputs(datum) if k in ("weights", GROUP_KEY)}
        targets = datum.loss_fn_inputs["target_tokens"].to_numpy()[:, 0]
        single.append(Datum(datum.model_input, {**weights, "target_tokens": TensorData(targets)}))
        columns = {
            "target_tokens": TensorData(targets[:, None]),
            "teacher_logprobs": TensorData(0.0 * targets[:, None]),
        }
        certain.append(Datum(datum.model_input, {**weights, **columns}))
    mine = evaluate(LossUnderTest(here), certain, {"logprobs": first})
    theirs = evaluate(
        LossUnderTest(get_loss("cross_entropy", **_reduction(here))), single, {"logprobs": [t[:, 0] for t in first]}
    )
    slopes = [g[:, None] for g in theirs.gradients["logprobs"]]
    expected = type(mine)(theirs.total, theirs.count, theirs.value, {"logprobs": slopes}, mine.metrics)
    same(mine, expected, "when computed as cross_entropy of the one candidate")


def all_candidates_is_dense(
    loss_under_test: LossUnderTest, logits: list[list[float]], teacher: list[list[float]]
) -> None:
    """With the whole vocabulary as candidates it equals the dense divergence, also in its gradient in the logits.

    `{"divergence": name in losses.math.divergences, "own": settings, "under": [settings, ...]}`: checked with its `own`
    settings, together with each of `under` in turn (every `tail`, unless given).
    """
    law_settings = loss_under_test.laws["all_candidates_is_dense"]
    dense = getattr(divergences, law_settings["divergence"])
    of_teacher = torch.log_softmax(torch.tensor(teacher, dtype=torch.float64), -1).float()
    tokens = np.tile(np.arange(VOCABULARY), (len(logits), 1))
    datum = datum_of(len(logits), {"target_tokens": tokens, "teacher_logprobs": TensorData(of_teacher.numpy())})
    for settings in law_settings.get("under", ALL_TAILS):
        leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        student = torch.log_softmax(leaf, -1)
        loss = _summed(loss_under_test.wrapped, {**law_settings.get("own", {}), **settings})
        total, _ = loss.terms([datum], {"logprobs": [student]})
        expected = dense(student, of_teacher.double()).sum()
        slopes = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in (total, expected)]
        # The teacher's probabilities are float32: they add up to 1 within 1e-7.
        if not torch.allclose(total, expected, atol=1e-5) or not torch.allclose(slopes[0], slopes[1], atol=1e-5):
            raise LossCheckError(
                f"over the whole vocabulary, with {settings}, the loss is {shown(total)} with gradient {shown(slopes[0])} in "
                f"the logits; the dense divergence is {shown(expected)} with gradient {shown(slopes[1])}"
            )


def ends_are_kl(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """At the ends of beta it is a KL: `topk_forward_kl` at the low end, `topk_reverse_kl` at the high end.

    `{"betas": (low, high), "scaled": whether to divide it by beta (1 - beta)}`.
    """
    law_settings = loss.laws["ends_are_kl"]
    tail = {key: value for key, value in _settings(loss).items() if key == "tail"}
    for beta, name in zip(law_settings["betas"], ("topk_forward_kl", "topk_reverse_kl"), strict=True):
        scale = beta * (1 - beta) if law_settings["scaled"] else 1.0
        mine = evaluate(LossUnderTest(get_loss(loss.wrapped, beta=beta)), data, outputs)
        theirs = evaluate(LossUnderTest(get_loss(name, **tail, **_reduction(loss.wrapped))), data, outputs)
        value, expected = float(mine.value) / scale, float(theirs.value)
        if not abs(value - expected) <= (1e-2 if law_settings["scaled"] else 1e-12) * max(1.0, abs(expected)):
            raise LossCheckError(
                f"at beta {beta:g} it is {value:.12g}{' once divided by beta (1 - beta)' if law_settings['scaled'] else ''}, "
                f"but {name} is {expected:.12g}"
            )


def _inputs(datum: Datum) -> Any:
    return datum.loss_fn_inputs.items()


def _settings(loss: LossUnderTest) -> Mapping[str, Any]:
    return loss.wrapped.settings if isinstance(loss.wrapped, Loss) else {}


def _summed(loss: Any, settings: Mapping[str, Any]) -> Loss:
    """The loss under these settings, with reduction "sum"."""
    return Loss(loss.spec, {**loss.settings, **settings, "reduction": "sum"})


def _reduction(loss: Any) -> dict[str, Any]:
    return {"reduction": loss.reduction, **({} if loss.norm_length is None else {"norm_length": loss.norm_length})}


def _one_position_each(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> list[tuple[Datum, Tensor]]:
    """Every position as a datum of its own, with weight 1."""
    single: list[tuple[Datum, Tensor]] = []
    for datum, student in zip(data, logprobs, strict=True):
        for t in range(len(student)):
            inputs = {k: TensorData(v.to_numpy()[t : t + 1]) for k, v in _inputs(datum) if len(v.shape) == 2}
            single.append((datum_of(1, {**inputs, "weights": [1.0]}), student[t : t + 1]))
    return single


def _distance(student: np.ndarray, teacher: np.ndarray) -> float:
    """Total variation distance among the candidates present, or that after renormalising both, whichever is smaller.

    Under some tails a divergence sees only the one or the other.
    """
    here = np.isfinite(teacher)
    s, t = (np.exp(x[here].astype(np.float64)) for x in (student, teacher))
    return float(min(np.abs(s - t).sum(), np.abs(s / s.sum() - t / t.sum()).sum()) / 2)


@st.composite
def _with_seed(draw: Any, loss: LossUnderTest) -> Mapping[str, Any]:
    data = draw(strategies.datums(loss))
    return {"data": data, "outputs": draw(strategies.outputs(loss, data)), "seed": draw(st.integers(0, 1000))}


@st.composite
def _whole_vocabulary(draw: Any, loss: LossUnderTest) -> Mapping[str, Any]:
    rows = st.lists(st.integers(-64, 64).map(lambda n: n / 16), min_size=VOCABULARY, max_size=VOCABULARY)
    length = draw(st.integers(1, 2))
    return {name: draw(st.lists(rows, min_size=length, max_size=length)) for name in ("logits", "teacher")}


CHECKS = (
    family_law(divergence_is_zero_only_when_equal),
    family_law(order_of_candidates_changes_nothing, _with_seed),
    family_law(one_candidate_is_cross_entropy),
    family_law(all_candidates_is_dense, _whole_vocabulary),
    family_law(ends_are_kl),
)
