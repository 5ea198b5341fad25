"""Cards: what the registry knows about a loss, for people."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from .registry import spec_of


@dataclass(frozen=True)
class LossCard:
    """A loss's definition and provenance. `print` it, or read the fields."""

    name: str
    formula: str
    description: str
    per: str
    couples: str
    reduction: str
    source: str
    outputs: tuple[str, ...]
    inputs: dict[str, str]
    settings: dict[str, Any]
    defined_in: str

    def __str__(self) -> str:
        inputs = ", ".join(f"{name} ({what})" for name, what in self.inputs.items()) or "nothing"
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items()) or "none"
        lines = [
            f"{self.name}: {self.formula}",
            "",
            self.description,
            "",
            f"per {self.per}, couples {self.couples}, reduction {self.reduction!r} by default",
            f"reads from the model: {', '.join(self.outputs)}",
            f"reads from the data: {inputs}",
            f"settings: {settings}",
            f"source: {self.source or 'not stated'}",
            f"defined in: {self.defined_in}",
        ]
        return "\n".join(lines)


def describe_loss(name: str) -> LossCard:
    """The card of a registered loss. Raises UnknownLossError with the likeliest id."""
    spec = spec_of(name)
    formula, _, rest = (inspect.getdoc(spec.function) or "").partition("\n")
    inputs = {i.name: f"one a {i.per}, {'required' if i.required else 'optional'}" for i in spec.inputs}
    fields = spec.config.model_fields.items()
    settings = {
        key: "required" if field.is_required() else field.get_default(call_default_factory=True)
        for key, field in fields
    }
    where = f"{spec.function.__module__}.{getattr(spec.function, '__qualname__', spec.name)}"
    return LossCard(
        name=spec.name,
        formula=formula,
        description=rest.strip(),
        per=spec.per,
        couples=spec.couples,
        reduction=spec.reduction,
        source=spec.source,
        outputs=spec.outputs,
        inputs=inputs,
        settings=settings,
        defined_in=where,
    )
