"""A check: its name, the losses it applies to, the examples it draws, and what must hold for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...datums.types import Datum
from ..batch.positions import active_in
from ..registry import get_loss
from ..spec.settings import WEIGHTS_KEY
from . import strategies
from .loss_under_test import LossUnderTest, OutputLists


def _applies(loss: LossUnderTest) -> str:
    return ""


def _no_items(loss: LossUnderTest) -> Sequence[str]:
    return ("",)


@dataclass(frozen=True)
class Check:
    """One property of a loss.

    run(loss, **example) raises LossCheckError when the example violates the property.
    examples(loss) draws the keyword arguments. skip(loss) says why the check does not apply; "" if it does.
    needs_one: one passing example is enough, for properties such as "this setting has an effect"; items(loss) lists
    what needs such an example, one after the other.
    """

    name: str
    run: Callable[..., None]
    examples: Callable[[LossUnderTest], st.SearchStrategy[Mapping[str, Any]]]
    skip: Callable[[LossUnderTest], str] = _applies
    needs_one: bool = False
    items: Callable[[LossUnderTest], Sequence[str]] = _no_items

    @property
    def summary(self) -> str:
        """What must hold, in one sentence."""
        return (self.run.__doc__ or "").partition("\n")[0]


@st.composite
def batches(draw: Any, loss: LossUnderTest, **options: Any) -> dict[str, Any]:
    """Draw data and outputs; `options` as in `strategies.datums`."""
    data = draw(strategies.datums(loss, **options))
    return {"data": data, "outputs": draw(strategies.outputs(loss, data))}


def ordinary(loss: LossUnderTest) -> st.SearchStrategy[Mapping[str, Any]]:
    """Data and outputs."""
    return batches(loss)


def active_positions(loss: LossUnderTest, data: Sequence[Datum]) -> list[tuple[int, int]]:
    """(datum, position) of every position with a non-zero weight."""
    positions: list[tuple[int, int]] = []
    for i, datum in enumerate(data):
        positions += [(i, int(t)) for t in np.flatnonzero(active_in(datum, loss.weight_keys))]
    return positions


def copied(outputs: OutputLists) -> OutputLists:
    """A copy that can be changed in place."""
    return {name: [tensor.clone() for tensor in tensors] for name, tensors in outputs.items()}


#: From a loss to the examples of one of its laws.
Examples = Callable[[LossUnderTest], st.SearchStrategy[Mapping[str, Any]]]


def family_law(run: Callable[..., None], examples: Examples = ordinary) -> Check:
    """A check under the name of `run`, skipped for losses that are not registered with this law.

    run(loss, **example) finds the law's settings in `loss.laws[name]`. A setting `{"when": {...}}` restricts the law to a
    loss with these settings of its own.
    """
    name = run.__name__

    def skip(loss: LossUnderTest) -> str:
        if name not in loss.laws:
            return "the loss is not registered with this law"
        settings = loss.only.settings if loss.only else {}
        law_settings = loss.laws[name]
        needed = law_settings.get("when", {}) if isinstance(law_settings, Mapping) else {}  # a list of cases has none
        unmet = [f"{key}={value!r}" for key, value in needed.items() if settings.get(key) != value]
        return f"the loss obeys it only with {', '.join(unmet)}" if unmet else ""

    def checked(loss: LossUnderTest, **example: Any) -> None:
        run(_by_usual_key(loss), **example)

    checked.__doc__ = run.__doc__
    return Check(name, checked, lambda loss: examples(_by_usual_key(loss)), skip)


def _by_usual_key(loss: LossUnderTest) -> LossUnderTest:
    """The loss with its weights under their usual key, as the laws write them: they are about its function."""
    if loss.only is None or loss.weight_keys == (WEIGHTS_KEY,):
        return loss
    return replace(loss, wrapped=get_loss(loss.wrapped, weights=WEIGHTS_KEY))
