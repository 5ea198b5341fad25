"""Laws of policy losses: on policy, without bounds, or on single tokens they equal other losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ....datums.errors import LossCheckError
from ....datums.inputs import key_kind
from ....datums.types import Datum, TensorData
from ...loss.loss import Loss
from ...registry import get_loss
from ..checks import family_law
from ..evaluation import evaluate, same, shown, sliced
from ..loss_under_test import LossUnderTest, OutputLists, rows


def on_policy_is_reinforce(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """While policy, sampler and reference agree, a token's gradient is -weight x advantage (over the denominator).

    A loss per datum names the corresponding reduction of REINFORCE, `{"reduction": "seq-mean-token-mean"}`; all tokens of
    a response then have the same advantage.
    """
    reduction = loss.laws["on_policy_is_reinforce"].get("reduction")
    agreeing = [_with_all_logprobs(d, t) for d, t in zip(data, outputs["logprobs"], strict=True)]
    agreeing = agreeing if reduction is None else [_with_one_advantage(d) for d in agreeing]
    rounded = [t.float().double() for t in outputs["logprobs"]]
    whole = evaluate(loss, agreeing, {**outputs, "logprobs": rounded})
    like = _reduction_of(loss) if reduction is None else {"reduction": reduction}
    expected = evaluate(LossUnderTest(get_loss("reinforce", **like)), agreeing, {"logprobs": rounded})
    for i, (own, wanted) in enumerate(zip(whole.gradients["logprobs"], expected.gradients["logprobs"], strict=True)):
        if not torch.allclose(own, wanted, rtol=1e-9, atol=1e-9):
            raise LossCheckError(
                f"on policy the gradient of datum {i} is {shown(own)}, but that of REINFORCE is {shown(wanted)}"
            )


def is_another_loss(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """With some settings it equals another loss, value and gradient: `{"loss": id, "settings": {...}, "own": {...}}`.

    settings: the other loss's. own: this loss's, such as the bounds that open a clip. max_length: only for responses of at
    most that many tokens. uniform: only for responses with a single advantage, whose weights are 0 or 1. Optional inputs
    that the other loss does not read are left out. Give a list of such mappings for several other losses.
    """
    cases = loss.laws["is_another_loss"]
    for case in [cases] if isinstance(cases, Mapping) else cases:
        _is_that_loss(loss, case, data, outputs)


def _is_that_loss(loss: LossUnderTest, case: Mapping[str, Any], data: Sequence[Datum], outputs: OutputLists) -> None:
    here = loss.wrapped if not case.get("own") else get_loss(loss.wrapped, **case["own"])
    own = _reduction_of(LossUnderTest(here))
    other = get_loss(case["loss"], **{**own, **case.get("settings", {})})
    read = {key for _, part in other.parts for key in part.spec.keys}
    optional = {one.name for one in loss.reads if not one.required} - read
    data = [_without(d, optional) for d in data]
    data, outputs = _shortened(data, outputs, case.get("max_length"))
    if case.get("uniform"):
        data = [_with_binary_weights(_with_one_advantage(d)) for d in data]
    if not loss.wrapped.active(data).any():
        return
    mine, theirs = evaluate(LossUnderTest(here), data, outputs), evaluate(LossUnderTest(other), data, outputs)
    ignored = {"count": mine.count, "total": mine.total, "metrics": {}}
    same(_with(mine, **ignored), _with(theirs, **ignored), f"when computed as {other!r}")


def zero_advantage_is_silent(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """If every advantage is 0, no token has a gradient: only advantages move the policy."""
    silent = [_with_input(d, "advantages", np.zeros(_shape(d))) for d in data]
    _no_gradient(loss, silent, outputs, "every advantage is 0")


def beyond_the_clip_no_gradient(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Once all tokens have moved by `{"nats": ...}` in the direction of their response's advantage, none has a gradient."""
    nats = float(loss.laws["beyond_the_clip_no_gradient"]["nats"])
    moved: list[Datum] = []
    lower = [t - nats for t in outputs["logprobs"]]
    for datum, logprobs in zip(data, lower, strict=True):
        bare = _without(datum, {one.name for one in loss.reads if not one.required})
        uniform = _with_binary_weights(_with_one_advantage(bare))
        rewarded = uniform.loss_fn_inputs["advantages"].to_numpy() > 0
        before = logprobs.detach().numpy() + np.where(rewarded, -nats, nats)
        moved.append(_with_input(uniform, "sampling_logprobs", before))
    _no_gradient(
        loss, moved, {**outputs, "logprobs": lower}, f"all its tokens have moved by {nats:g} nats the way A pushes"
    )


def _no_gradient(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, when: str) -> None:
    for i, gradient in enumerate(evaluate(loss, data, outputs).gradients["logprobs"]):
        if bool((gradient != 0).any()):
            raise LossCheckError(f"the gradient of datum {i} is {shown(gradient)}, not 0, when {when}")


def _without(datum: Datum, keys: set[str]) -> Datum:
    return Datum(datum.model_input, {k: v for k, v in datum.loss_fn_inputs.items() if k not in keys})


def _with(evaluation: Any, **changed: Any) -> Any:
    return type(evaluation)(**{**vars(evaluation), **changed})


def _reduction_of(loss_under_test: LossUnderTest) -> dict[str, Any]:
    """Reduction settings of a loss per token; {} for other losses."""
    loss = loss_under_test.wrapped
    if not isinstance(loss, Loss) or loss.spec.per != "token":
        return {}
    return {"reduction": loss.reduction, **({} if loss.norm_length is None else {"norm_length": loss.norm_length})}


def _with_all_logprobs(datum: Datum, logprobs: torch.Tensor) -> Datum:
    """The datum with every logprobs input set to the policy's."""
    same_everywhere = TensorData(logprobs.detach().numpy().astype(np.float32))
    carried = {key: same_everywhere if key_kind(key) == "logprob" else v for key, v in datum.loss_fn_inputs.items()}
    return Datum(datum.model_input, carried)


def _with_input(datum: Datum, key: str, values: np.ndarray) -> Datum:
    return Datum(datum.model_input, {**datum.loss_fn_inputs, key: TensorData(values.astype(np.float32))})


def _with_one_advantage(datum: Datum) -> Datum:
    """The datum with every advantage set to that of the first token."""
    return _with_input(datum, "advantages", np.full(_shape(datum), datum.loss_fn_inputs["advantages"].to_numpy()[0]))


def _with_binary_weights(datum: Datum) -> Datum:
    """The datum with every non-zero weight set to 1."""
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
    family_law(on_policy_is_reinforce),
    family_law(is_another_loss),
    family_law(zero_advantage_is_silent),
    family_law(beyond_the_clip_no_gradient),
)
