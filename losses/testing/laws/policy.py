"""Laws of policy losses: what they become on policy, without bounds, or on single tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ....datums.errors import LossCheckError
from ....datums.key_kinds import key_kind
from ....datums.types import Datum, TensorData
from ...loss.loss import Loss
from ...registry import get_loss
from ..evaluation import evaluate, same, shown, sliced
from ..loss_under_test import OutputLists, Subject, rows
from .law import claim


def on_policy_is_reinforce(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """While policy, sampler and reference agree, a token's gradient is -weight x advantage (over the denominator).

    A loss per datum names the reduction of REINFORCE that its own is like, `{"reduction": "seq-mean-token-mean"}`; every
    response then has one advantage.
    """
    reduction = subject.claims["on_policy_is_reinforce"].get("reduction")
    agreeing = [_with_all_logprobs(d, t) for d, t in zip(data, outputs["logprobs"], strict=True)]
    agreeing = agreeing if reduction is None else [_with_one_advantage(d) for d in agreeing]
    rounded = [t.float().double() for t in outputs["logprobs"]]
    whole = evaluate(subject, agreeing, {**outputs, "logprobs": rounded})
    like = _reduction_of(subject) if reduction is None else {"reduction": reduction}
    expected = evaluate(Subject(get_loss("reinforce", **like)), agreeing, {"logprobs": rounded})
    for i, (found, wanted) in enumerate(zip(whole.gradients["logprobs"], expected.gradients["logprobs"], strict=True)):
        if not torch.allclose(found, wanted, rtol=1e-9, atol=1e-9):
            raise LossCheckError(
                f"on policy the gradient of datum {i} is {shown(found)}, but that of REINFORCE is {shown(wanted)}"
            )


def is_another_loss(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """With some settings it is another loss, value and gradient: `{"loss": id, "settings": {...}, "own": {...}}`.

    settings: the other loss's. own: this loss's, such as the bounds that open a clip. max_length: on responses of so many
    tokens at most. uniform: on responses of one advantage each, their weights 0 or 1. The optional inputs that the other
    loss does not read are left out. A list of such claims where it is several other losses.
    """
    claimed = subject.claims["is_another_loss"]
    for one in [claimed] if isinstance(claimed, Mapping) else claimed:
        _is_that_loss(subject, one, data, outputs)


def _is_that_loss(subject: Subject, claimed: Mapping[str, Any], data: Sequence[Datum], outputs: OutputLists) -> None:
    here = subject.loss if not claimed.get("own") else get_loss(subject.loss, **claimed["own"])
    own = _reduction_of(Subject(here))
    other = get_loss(claimed["loss"], **{**own, **claimed.get("settings", {})})
    read = {key for one in other.spec.inputs for key in one.keys}
    optional = {one.name for one in subject.reads if not one.required} - read
    data = [_without(d, optional) for d in data]
    data, outputs = _shortened(data, outputs, claimed.get("max_length"))
    if claimed.get("uniform"):
        data = [_with_plain_weights(_with_one_advantage(d)) for d in data]
    if not subject.loss.active(data).any():
        return
    mine, theirs = evaluate(Subject(here), data, outputs), evaluate(Subject(other), data, outputs)
    plain = {"count": mine.count, "total": mine.total, "metrics": {}}
    same(_with(mine, **plain), _with(theirs, **plain), f"when computed as {other!r}")


def zero_advantage_is_silent(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Where every advantage is 0 no token has a gradient: nothing but the advantage moves the policy."""
    silent = [_with_input(d, "advantages", np.zeros(_shape(d))) for d in data]
    _no_gradient(subject, silent, outputs, "every advantage is 0")


def beyond_the_clip_no_gradient(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Once all tokens have moved by `{"nats": ...}` in the direction their response's advantage pushes, none has a gradient."""
    nats = float(subject.claims["beyond_the_clip_no_gradient"]["nats"])
    moved: list[Datum] = []
    lower = [t - nats for t in outputs["logprobs"]]
    for datum, logprobs in zip(data, lower, strict=True):
        bare = _without(datum, {one.name for one in subject.reads if not one.required})
        plain = _with_plain_weights(_with_one_advantage(bare))
        rewarded = plain.loss_fn_inputs["advantages"].to_numpy() > 0
        before = logprobs.detach().numpy() + np.where(rewarded, -nats, nats)
        moved.append(_with_input(plain, "sampling_logprobs", before))
    _no_gradient(
        subject, moved, {**outputs, "logprobs": lower}, f"all its tokens have moved by {nats:g} nats the way A pushes"
    )


def _no_gradient(subject: Subject, data: Sequence[Datum], outputs: OutputLists, when: str) -> None:
    for i, found in enumerate(evaluate(subject, data, outputs).gradients["logprobs"]):
        if bool((found != 0).any()):
            raise LossCheckError(f"the gradient of datum {i} is {shown(found)}, not 0, when {when}")


def _without(datum: Datum, keys: set[str]) -> Datum:
    return Datum(datum.model_input, {k: v for k, v in datum.loss_fn_inputs.items() if k not in keys})


def _with(evaluation: Any, **changed: Any) -> Any:
    return type(evaluation)(**{**vars(evaluation), **changed})


def _reduction_of(subject: Subject) -> dict[str, Any]:
    """Reduction settings of a loss per token, to compare it with another; none for other losses."""
    loss = subject.loss
    if not isinstance(loss, Loss) or loss.spec.per != "token":
        return {}
    return {"reduction": loss.reduction, **({} if loss.norm_length is None else {"norm_length": loss.norm_length})}


def _with_all_logprobs(datum: Datum, logprobs: torch.Tensor) -> Datum:
    """Every input that holds logprobs, set to those of the policy."""
    same_everywhere = TensorData(logprobs.detach().numpy().astype(np.float32))
    carried = {key: same_everywhere if key_kind(key) == "logprob" else v for key, v in datum.loss_fn_inputs.items()}
    return Datum(datum.model_input, carried)


def _with_input(datum: Datum, key: str, values: np.ndarray) -> Datum:
    return Datum(datum.model_input, {**datum.loss_fn_inputs, key: TensorData(values.astype(np.float32))})


def _with_one_advantage(datum: Datum) -> Datum:
    """Every token's advantage set to that of the first."""
    return _with_input(datum, "advantages", np.full(_shape(datum), datum.loss_fn_inputs["advantages"].to_numpy()[0]))


def _with_plain_weights(datum: Datum) -> Datum:
    """Every weight but 0 set to 1."""
    if "weights" not in datum.loss_fn_inputs:
        return datum
    return _with_input(datum, "weights", datum.loss_fn_inputs["weights"].to_numpy() != 0)


def _shape(datum: Datum) -> tuple[int, ...]:
    return datum.loss_fn_inputs["advantages"].to_numpy().shape


def _shortened(data: list[Datum], outputs: OutputLists, longest: int | None) -> tuple[list[Datum], OutputLists]:
    """The first `longest` positions of every datum."""
    if longest is None:
        return data, outputs
    lengths = [min(rows(d), longest) for d in data]
    short = [sliced(d, 0, n, rows(d)) for d, n in zip(data, lengths, strict=True)]
    cut = {name: [t[:n] for t, n in zip(tensors, lengths, strict=True)] for name, tensors in outputs.items()}
    return short, cut


CHECKS = (
    claim(on_policy_is_reinforce),
    claim(is_another_loss),
    claim(zero_advantage_is_silent),
    claim(beyond_the_clip_no_gradient),
)
