"""What the laws of all families share: a claim is a check that runs only on losses that claim it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

from ..checks import Check, ordinary
from ..loss_under_test import Subject

Examples = Callable[[Subject], st.SearchStrategy[Mapping[str, Any]]]


def claim(run: Callable[..., None], examples: Examples = ordinary) -> Check:
    """A check under the name of `run`, skipped for losses that do not claim it.

    run(subject, **example) finds the claim's settings in `subject.claims[name]`; its `{"when": {...}}` are the loss's own
    settings under which alone it holds.
    """
    name = run.__name__

    def skip(subject: Subject) -> str:
        if name not in subject.claims:
            return "the loss does not claim it"
        settings = subject.only.settings if subject.only else {}
        claimed = subject.claims[name]
        needed = claimed.get("when", {}) if isinstance(claimed, Mapping) else {}  # a list of cases has none
        unmet = [f"{key}={value!r}" for key, value in needed.items() if settings.get(key) != value]
        return f"the loss claims it with {', '.join(unmet)} only" if unmet else ""

    return Check(name, run, examples, skip)
