"""Family laws as checks: each runs only on the losses that are registered with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from ...registry import get_loss
from ...spec.settings import WEIGHTS_KEY
from ..checks import Check, ordinary
from ..loss_under_test import LossUnderTest

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
