"""Mixtures: the whole is the sum of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ....datums.types import Datum
from ..checks import Check, ordinary
from ..evaluation import evaluate, same
from ..loss_under_test import LossUnderTest, OutputLists


def sum_of_parts(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """A mixture's value, gradient and metrics are those of its parts alone, each times its factor."""
    whole = evaluate(loss, data, outputs)
    value: Any = torch.zeros((), dtype=torch.float64)
    slopes = {name: [torch.zeros_like(t) for t in ts] for name, ts in whole.gradients.items()}
    metrics: dict[str, Any] = {}
    for factor, part in reversed(loss.wrapped.parts):  # in another order, since one may leave something to the next
        alone = evaluate(loss.with_wrapped(part), data, {name: outputs[name] for name in part.outputs})
        value = value + factor * alone.value
        for name, gradients in alone.gradients.items():
            slopes[name] = [s + factor * g for s, g in zip(slopes[name], gradients, strict=True)]
        metrics.update({f"{part.label}/{key}": stat for key, stat in alone.metrics.items()})
    apart = type(whole)(whole.total, whole.count, value, slopes, metrics, whole.tolerance)
    same(apart, whole, "when its parts were computed together")


def _skip(loss: LossUnderTest) -> str:
    return "it is no mixture" if loss.only is not None else ""


CHECKS = (Check("sum_of_parts", sum_of_parts, ordinary, _skip),)
