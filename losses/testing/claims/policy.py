"""Laws of policy losses: what they become on policy, without bounds, or on single tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from ....datums.errors import LossCheckError
from ....datums.types import Datum, TensorData
from ...loss import Loss
from ...registry import get_loss
from .. import strategies
from ..evaluation import evaluate, same, shown
from ..subject import OutputLists, Subject
from .claim import claim


def on_policy_is_reinforce(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """While policy, sampler and reference agree, a token's gradient is -weight x advantage (over the denominator)."""
    agreeing = [_with_all_logprobs(d, t) for d, t in zip(data, outputs["logprobs"], strict=True)]
    rounded = [t.float().double() for t in outputs["logprobs"]]
    whole = evaluate(subject, agreeing, {**outputs, "logprobs": rounded})
    reinforce = Subject(get_loss("reinforce", **_reduction_of(subject)))
    expected = evaluate(reinforce, agreeing, {"logprobs": rounded})
    for i, (found, wanted) in enumerate(zip(whole.gradients["logprobs"], expected.gradients["logprobs"], strict=True)):
        if not torch.allclose(found, wanted, rtol=1e-9, atol=1e-9):
            raise LossCheckError(
                f"on policy the gradient of datum {i} is {shown(found)}, but that of REINFORCE is {shown(wanted)}"
            )


def is_another_loss(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """With some settings it is another loss, value and gradient: `{"loss": id, "settings": {...}, "own": {...}}`.

    settings: the other loss's. own: this loss's, such as the bounds that open a clip. On sequences of `max_length` tokens
    at most, where that is given; without the optional inputs that the other loss does not read.
    """
    claimed = subject.claims["is_another_loss"]
    here = subject.loss if not claimed.get("own") else get_loss(subject.loss, **claimed["own"])
    own = _reduction_of(Subject(here))
    other = get_loss(claimed["loss"], **{**own, **claimed.get("settings", {})})
    read = {key for one in other.spec.inputs for key in one.keys}
    optional = {one.name for one in subject.reads if not one.required} - read
    data = [_without(d, optional) for d in data]
    mine, theirs = evaluate(Subject(here), data, outputs), evaluate(Subject(other), data, outputs)
    plain = {"count": mine.count, "total": mine.total, "metrics": {}}
    same(_with(mine, **plain), _with(theirs, **plain), f"when computed as {other!r}")


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
    carried = {key: same_everywhere if key.endswith("logprobs") else v for key, v in datum.loss_fn_inputs.items()}
    return Datum(datum.model_input, carried)


@st.composite
def _as_long_as_claimed(draw: Any, subject: Subject) -> Mapping[str, Any]:
    longest = subject.claims.get("is_another_loss", {}).get("max_length", 4)
    data = draw(strategies.datums(subject, max_length=longest))
    return {"data": data, "outputs": draw(strategies.outputs(subject, data))}


CHECKS = (claim(on_policy_is_reinforce), claim(is_another_loss, _as_long_as_claimed))
