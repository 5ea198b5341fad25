"""Cards: what the registry knows about a loss, for people to read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from ...datums.display import box, one_line, rows_html
from ...datums.errors import LossbookError
from ..ids import LossId
from ..loss.loss import Loss
from ..registry import spec_of
from ..spec.axes import Axes
from ..spec.spec import Input, LossSpec
from ..variants.presets import describe_preset, list_presets
from . import sample_inputs
from .columns import block, wrapped
from .docstrings import Docstring, TensorLine, read_docstring
from .setting_text import bounds_text, type_text
from .standard_inputs import STANDARD_INPUTS
from .watched import watched

#: Shapes by what a value is about, for tensors that the docstring does not describe.
_SHAPES = {"token": "[T]", "datum": "[N]", "pair": "[N/2]", "group": "[G]", "batch": "[]", "embeddings": "[N, D]"}


@dataclass(frozen=True)
class TensorCard:
    """One tensor that a loss reads or returns.

    keys: its names in `loss_fn_inputs`; () for a model output. required: True, False, or the name of a setting: then the
    tensor is required unless that setting is 0.
    """

    name: str
    shape: str
    unit: str
    meaning: str
    required: bool | str = True
    keys: tuple[str, ...] = ()

    @property
    def need(self) -> str:
        """ "required", "optional", or "required unless SETTING is 0"."""
        if isinstance(self.required, str):
            return f"required unless {self.required} is 0"
        return "required" if self.required else "optional"


@dataclass(frozen=True)
class SettingCard:
    """One setting. type: as in source. default: None also if there is none (see `required`). bounds: "" if there are none."""

    name: str
    type: str
    default: Any
    bounds: str
    required: bool = False

    def __str__(self) -> str:
        value = "required" if self.required else f"{self.default!r}"
        return f"{self.name}: {self.type} = {value}{f', {self.bounds}' if self.bounds else ''}"


@dataclass(frozen=True)
class LossCard:
    """A loss's definition and source. `print` it, read its fields, or take `as_dict` for JSON.

    outputs: tensors it reads from the model. inputs: tensors it reads from the data. metrics: {name: how parts merge}.
    differs: {system: how that system's loss of this name differs}. laws: the family laws that it obeys. when_to_use: ""
    where its docstring does not say.
    """

    name: str
    family: str
    formula: str
    description: str
    per: str
    couples: str
    reduction: str
    axes: Axes
    source: str
    aliases: tuple[str, ...]
    outputs: dict[str, TensorCard]
    inputs: dict[str, TensorCard]
    returns: TensorCard
    settings: dict[str, SettingCard]
    metrics: dict[str, str]
    differs: dict[str, str]
    laws: tuple[str, ...]
    presets: tuple[str, ...]
    defined_in: str
    when_to_use: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers; a default that JSON cannot hold becomes its `repr`."""
        return _for_json({**dataclasses.asdict(self), "claims": self.claims})

    @property
    def claims(self) -> tuple[str, ...]:
        """The older word for `laws`."""
        return self.laws

    def __str__(self) -> str:
        parts = [
            f"{self.title}\n{wrapped(self.shown_formula, '  ')}",
            *(wrapped(paragraph, "") for paragraph in self.paragraphs),
            *(block(title, rows) for title, rows in self.sections()),
        ]
        return "\n\n".join(part for part in parts if part)

    def __repr__(self) -> str:
        return one_line(f"<LossCard of {self.name}: {self.formula}>")

    def _repr_html_(self) -> str:
        sections = [rows_html(rows, title) for title, rows in self.sections()]
        return box(self.title, self.shown_formula, *self.paragraphs, *sections)

    @property
    def title(self) -> str:
        """Its id and its other ids."""
        return f"{self.name}  (also {', '.join(self.aliases)})" if self.aliases else self.name

    @property
    def shown_formula(self) -> str:
        """The formula, or a sentence where the docstring has none."""
        return self.formula or "its docstring has no formula"

    @property
    def paragraphs(self) -> list[str]:
        """The description, and when to use it."""
        use = [f"When to use: {self.when_to_use}"] if self.when_to_use else []
        return [*(self.description.split("\n\n") if self.description else []), *use]

    @property
    def reads(self) -> str:
        """The model outputs and the inputs that it reads, in one line; optional ones in brackets."""
        every = (*self.outputs.values(), *self.inputs.values())
        return ", ".join(one.name if one.required is True else f"[{one.name}]" for one in every)

    def sections(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """(title, rows) of what a card shows below its formula and description; empty ones are left out."""
        every = [
            ("axes", self._axes()),
            ("reads", [_tensor_row(t) for t in (*self.outputs.values(), *self.inputs.values())]),
            ("returns", [_tensor_row(self.returns)[1:]]),
            ("settings", [_setting_row(s) for s in self.settings.values()]),
            ("metrics", _metric_rows(self.metrics)),
            ("elsewhere", list(self.differs.items())),
            ("provenance", self._provenance()),
        ]
        return [(title, rows) for title, rows in every if rows]

    @property
    def level(self) -> str:
        """What one value is about, and what must be seen together, such as "token" or "datum; a whole batch must be seen together"."""
        return self.per if self.couples == self.per else f"{self.per}; a whole {self.couples} must be seen together"

    def _axes(self) -> list[tuple[str, str]]:
        own = (("ratio", self.axes.ratio), ("clip", self.axes.clip), ("KL", self.axes.kl))
        stated = [(axis, value) for axis, value in own if value != "none"]
        return [("one loss per", self.level), *stated, ("reduction", f"{self.reduction} by default")]

    def _provenance(self) -> list[tuple[str, str]]:
        rows = [("source", self.source or "not stated"), ("defined in", self.defined_in)]
        rows += [("presets", ", ".join(self.presets))] if self.presets else []
        rows += [("obeys laws", ", ".join(self.laws))] if self.laws else []
        return rows


def describe_loss(name: LossId | str) -> LossCard:
    """The card of a registered loss. Raises UnknownLossError with the likeliest id."""
    return card_of_spec(spec_of(name))


def card_of(loss: Loss, *, metrics: bool = True) -> LossCard:
    """The card of any loss, registered or not, with its own settings in place of the defaults.

    metrics: whether to call the loss on small data to learn its metrics; without it the card lists none.
    """
    card = card_of_spec(loss.spec, metrics=metrics)
    settings = {
        name: dataclasses.replace(one, default=getattr(loss.config, name), required=False)
        for name, one in card.settings.items()
    }
    return dataclasses.replace(card, reduction=loss.reduction, settings=settings)


def card_of_spec(spec: LossSpec, *, metrics: bool = True) -> LossCard:
    """The card of a loss with its default settings; `metrics` as in `card_of`."""
    text = read_docstring(spec.function)
    return LossCard(
        name=spec.name,
        family=spec.family,
        formula=text.formula,
        description=text.notes,
        per=spec.per,
        couples=spec.couples,
        reduction=spec.reduction,
        axes=spec.axes,
        source=spec.source,
        aliases=spec.aliases,
        outputs={name: _output(name, spec, text) for name in spec.outputs},
        inputs={one.name: _input(one, spec, text) for one in spec.inputs},
        returns=TensorCard(
            "returns", *_described(text.returns, TensorLine(_SHAPES[spec.per], "", f"one loss per {spec.per}"))
        ),
        settings={key: _setting(key, field) for key, field in spec.config.model_fields.items()},
        metrics=_metrics(spec) if metrics else {},
        differs=dict(spec.differs),
        laws=tuple(spec.laws),
        presets=_presets_of(spec),
        defined_in=f"{spec.function.__module__}.{getattr(spec.function, '__qualname__', spec.name)}",
        when_to_use=text.when_to_use,
    )


def _output(name: str, spec: LossSpec, text: Docstring) -> TensorCard:
    shape = _SHAPES["embeddings" if name == "embeddings" else "token"]
    return TensorCard(name, *_described(text.tensors.get(name), _standard(name, shape, "from the model")))


def _input(one: Input, spec: LossSpec, text: Docstring) -> TensorCard:
    shape = "[N, D]" if one.is_vector else _SHAPES[one.per]
    standard = _standard(one.name, shape, f"one per {one.per}")
    return TensorCard(
        one.name,
        *_described(text.tensors.get(one.name), standard),
        spec.required_if.get(one.name, one.required),
        one.keys,
    )


def _standard(name: str, shape: str, meaning: str) -> TensorLine:
    """The description of a standard input or output; for another name what the signature tells."""
    return STANDARD_INPUTS.get(name) or TensorLine(shape, "", meaning)


def _described(line: TensorLine | None, standard: TensorLine) -> tuple[str, str, str]:
    """(shape, unit, meaning) of a tensor, from its docstring line where there is one."""
    line = line or standard
    return line.shape, line.unit, line.meaning or standard.meaning


def _metrics(spec: LossSpec) -> dict[str, str]:
    try:
        needs_length = spec.reduction == "seq-mean-token-sum-norm"
        return sample_inputs.metric_kinds(Loss(spec, {"norm_length": 1} if needs_length else {}))
    except LossbookError:  # some setting has no default
        return {}


def _presets_of(spec: LossSpec) -> tuple[str, ...]:
    """The presets that consist of this loss or add it to another."""
    known = map(describe_preset, list_presets())
    return tuple(one.name for one in known if spec.name in (one.loss, *(part.loss for part in one.plus)))


def _setting(name: str, field: FieldInfo) -> SettingCard:
    required = field.is_required()
    default = None if required else field.get_default(call_default_factory=True)
    return SettingCard(name, type_text(field.annotation), default, bounds_text(field), required)


def _tensor_row(tensor: TensorCard) -> tuple[str, ...]:
    also = [f"also as {key!r}" for key in tensor.keys[1:]]
    also += [] if tensor.required is True or f"{tensor.required} is 0" in tensor.meaning else [tensor.need]
    extra = f" ({'; '.join(also)})" if also else ""
    return tensor.name, tensor.shape, tensor.unit, f"{tensor.meaning}{extra}".strip()


def _metric_rows(metrics: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Metric names, how each merges, and what people watch in it."""
    return [(name, kind, watched(name)) for name, kind in metrics.items()]


def _setting_row(setting: SettingCard) -> tuple[str, ...]:
    value = "required" if setting.required else f"{setting.default!r}"
    return setting.name, value, f"{setting.type}{f', {setting.bounds}' if setting.bounds else ''}"


def _for_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _for_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
