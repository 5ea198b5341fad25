"""What a check is: a name, where it applies, the examples it draws, and what must hold of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from ...datums.types import Datum
from . import strategies
from .loss_under_test import OutputLists, Subject


def _always(subject: Subject) -> str:
    return ""


def _one(subject: Subject) -> Sequence[str]:
    return ("",)


@dataclass(frozen=True)
class Check:
    """One property of a loss.

    run(subject, **example) raises LossCheckError when the example shows that the property fails.
    examples(subject) draws the keyword arguments. skip(subject) says why it does not apply, or nothing.
    needs_one: the property is that some example passes (something is alive), not that all do; items(subject) lists
    what must be seen alive, each on some example.
    """

    name: str
    run: Callable[..., None]
    examples: Callable[[Subject], st.SearchStrategy[Mapping[str, Any]]]
    skip: Callable[[Subject], str] = _always
    needs_one: bool = False
    items: Callable[[Subject], Sequence[str]] = _one

    @property
    def summary(self) -> str:
        """What must hold, in a sentence."""
        return (self.run.__doc__ or "").partition("\n")[0]


@st.composite
def batches(draw: Any, subject: Subject, **options: Any) -> dict[str, Any]:
    """data and outputs; `options` as in `strategies.datums`."""
    data = draw(strategies.datums(subject, **options))
    return {"data": data, "outputs": draw(strategies.outputs(subject, data))}


def ordinary(subject: Subject) -> st.SearchStrategy[Mapping[str, Any]]:
    """data and outputs, nothing else."""
    return batches(subject)


def active_positions(data: Sequence[Datum]) -> list[tuple[int, int]]:
    """(datum, position) of every position with a non-zero weight."""
    found: list[tuple[int, int]] = []
    for i, datum in enumerate(data):
        length = strategies.rows(datum)
        weights = datum.loss_fn_inputs.get("weights")
        alive = [True] * length if weights is None else (weights.to_numpy().reshape(length, -1) != 0).any(1).tolist()
        found += [(i, t) for t in range(length) if alive[t]]
    return found


def copied(outputs: OutputLists) -> OutputLists:
    """Outputs that can be changed without changing the example."""
    return {name: [tensor.clone() for tensor in tensors] for name, tensors in outputs.items()}
