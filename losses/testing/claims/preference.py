"""Laws of losses over pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....datums.errors import LossCheckError
from ....datums.types import Datum, TensorData
from ..evaluation import evaluate
from ..subject import OutputLists, Subject
from .claim import claim


def value_at_reference(subject: Subject, data: Sequence[Datum], outputs: OutputLists) -> None:
    """While policy and reference agree, every pair's loss is `{"value": ...}`, such as ln 2."""
    rounded = [t.float().double() for t in outputs["logprobs"]]
    agreeing = [
        Datum(d.model_input, {**d.loss_fn_inputs, "ref_logprobs": TensorData(t.float().numpy())})
        for d, t in zip(data, rounded, strict=True)
    ]
    expected = subject.claims["value_at_reference"]["value"]
    whole = evaluate(subject, agreeing, {**outputs, "logprobs": rounded})
    units = float(whole.count) if whole.count.values[0] is not None else None
    found = float(whole.value) if units is not None else float(whole.total) / max(1, len(data) // 2)
    if not math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9):
        raise LossCheckError(f"while policy and reference agree the loss is {found:.12g} a pair, not {expected:.12g}")


CHECKS = (claim(value_at_reference),)
