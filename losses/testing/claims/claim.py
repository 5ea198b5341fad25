"""What the laws of all families share: a claim is a check that runs only on losses that claim it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

from ..protocol import Check, ordinary
from ..subject import Subject

Examples = Callable[[Subject], st.SearchStrategy[Mapping[str, Any]]]


def claim(run: Callable[..., None], examples: Examples = ordinary) -> Check:
    """A check under the name of `run`, skipped for losses that do not claim it.

    run(subject, **example) finds the claim's settings in `subject.claims[name]`.
    """
    name = run.__name__

    def skip(subject: Subject) -> str:
        return "" if name in subject.claims else "the loss does not claim it"

    return Check(name, run, examples, skip)
