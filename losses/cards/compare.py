"""Two losses side by side: where their definitions differ, and their values and gradients on the same small data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...datums.display import one_line
from ..loss.loss import AnyLoss, Loss, Mixture
from .card import card_of
from .columns import block, table, wrapped
from .examples import Reduced, Row, example
from .sample_inputs import usable

#: Titles of the table of numbers, and of the values after reduction.
NUMBERS = "on the same data (losses before weights and reduction; gradients of the weighted sum)"
REDUCED = "reduced by"


@dataclass(frozen=True)
class Comparison:
    """The result of `compare_losses`.

    differences: (axis, first, second) where they differ. alike: (axis, value) where they agree. rows: one per token
    (candidate, datum), with what both read, each loss before weights and reduction, and the gradient of its weighted sum.
    reduced: both values under their own reductions. note: why there are no rows, or "".
    """

    first: str
    second: str
    differences: tuple[tuple[str, str, str], ...]
    alike: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    reduced: Reduced
    note: str

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return dataclasses.asdict(self)

    def __repr__(self) -> str:
        return one_line(f"<Comparison of {self.first} and {self.second}: {len(self.differences)} differences>")

    def __str__(self) -> str:
        parts = [
            "\n".join(self.names),
            *(block(title, rows) for title, rows in self.sections()),
            wrapped(self.note, ""),
            f"{NUMBERS}\n{table(*self.numbers())}" if self.rows else "",
            block(REDUCED, self.sums()) if self.rows else "",
        ]
        return "\n\n".join(part for part in parts if part)

    @property
    def names(self) -> tuple[str, str]:
        """The two losses with the letters that stand for them."""
        return f"A  {self.first}", f"B  {self.second}"

    def sections(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """(title, rows) of what differs and what does not."""
        unlike = [line for axis, one, other in self.differences for line in _both(axis, one, other)]
        differ = ("they differ in", unlike) if unlike else ("their declarations do not differ", [])
        return [differ, *([("they share", list(self.alike))] if self.alike else [])]

    def numbers(self) -> tuple[list[str], list[list[str]]]:
        """The heads and cells of the table of values and gradients; empty without rows."""
        return list(self.rows[0]) if self.rows else [], [[_cell(value) for value in row.values()] for row in self.rows]

    def sums(self) -> list[tuple[str, str, str]]:
        """(reduction, value of A, value of B)."""
        return [(label, f"A {one:.6g}", f"B {other:.6g}") for label, one, other in self.reduced]


def compare_losses(first: AnyLoss, second: AnyLoss) -> Comparison:
    """Compare two losses: ids, aliases, presets, "module:function", functions, or `Loss` objects.

    Raises UnknownLossError when there is no such loss.
    """
    losses = (usable(first, norm_length=4), usable(second, norm_length=4))
    names = [given if isinstance(given, str) else one.name for given, one in zip((first, second), losses, strict=True)]
    axes = [_axes(loss) for loss in losses]
    keys = list(dict.fromkeys([*axes[0], *axes[1]]))
    pairs = [(key, axes[0].get(key, "does not exist"), axes[1].get(key, "does not exist")) for key in keys]
    rows, reduced, note = example(*losses)
    return Comparison(
        first=names[0],
        second=names[1],
        differences=tuple(pair for pair in pairs if pair[1] != pair[2]),
        alike=tuple((key, one) for key, one, other in pairs if one == other != "none"),
        rows=tuple(rows),
        reduced=reduced,
        note=note,
    )


def _axes(loss: Loss | Mixture) -> dict[str, str]:
    """A loss with its settings, axis by axis."""
    if not isinstance(loss, Loss):
        (factor, first), *rest = loss.parts
        times = {"times": f"{factor:g}"} if factor != 1 else {}
        plus = {f"plus {part.name}": f"{share:g} * {part}" for share, part in rest}
        return {**_axes(first), "couples": loss.couples, **times, **plus}
    card = card_of(loss)
    needs = ", ".join(f"{t.name}{'' if t.required is True else ' (optional)'}" for t in card.inputs.values())
    return {
        "formula": card.formula,
        "one loss per": card.per,
        "couples": loss.couples,
        "ratio": card.axes.ratio,
        "clip": card.axes.clip,
        "KL": card.axes.kl,
        "reduction": loss.reduction + ("" if loss.norm_length is None else f", norm_length {loss.norm_length}"),
        "from the model": ", ".join(card.outputs),
        "from the data": needs or "nothing",
        **{f"setting {name}": repr(value) for name, value in loss.settings.items()},
    }


def _both(axis: str, one: str, other: str) -> Sequence[tuple[str, str, str]]:
    return (axis, "A", one), ("", "B", other)


def _cell(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4f}"
