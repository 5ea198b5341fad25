"""Cards: what the registry knows about a loss, for people."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from ...datums.errors import LossbookError
from ..loss.loss import Loss
from ..registry import spec_of
from ..spec.axes import Axes
from ..spec.settings import Bounds
from ..spec.spec import Input, LossSpec
from ..variants.presets import describe_preset, list_presets
from . import sample_inputs as minimal
from .columns import block, wrapped
from .docstrings import Docstring, TensorLine, read_docstring

#: Shapes that a signature tells where the docstring does not.
_SHAPES = {"token": "[T]", "datum": "[N]", "pair": "[N/2]", "batch": "[]", "embeddings": "[N, D]"}


@dataclass(frozen=True)
class TensorCard:
    """One tensor that a loss reads or returns. keys: what answers to its name in `loss_fn_inputs`; none for outputs.

    required: True, False, or the name of the setting that makes it required unless it is 0.
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
    """One setting. type: as one would write it. default: None also where there is none; see `required`. bounds: or ""."""

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
    """A loss's definition and provenance. `print` it, or read the fields; `as_dict` is what JSON can hold.

    outputs: what it reads from the model. inputs: what it reads from the data. metrics: {name: how parts merge}.
    differs: {system: how that system's loss of this name differs}. claims: laws of its family that it is held to.
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
    claims: tuple[str, ...]
    presets: tuple[str, ...]
    defined_in: str

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; a default that JSON cannot hold is its `repr`."""
        return _plain(dataclasses.asdict(self))

    def __str__(self) -> str:
        also = f"  (also {', '.join(self.aliases)})" if self.aliases else ""
        head = [f"{self.name}{also}", wrapped(self.formula or "its docstring says no formula", "  ")]
        parts = [
            "\n".join(head),
            "\n\n".join(wrapped(p, "") for p in self.description.split("\n\n")) if self.description else "",
            block("axes", self._axes()),
            block("reads", [_tensor_row(t) for t in (*self.outputs.values(), *self.inputs.values())]),
            block("returns", [_tensor_row(self.returns)[1:]]),
            block("settings", [_setting_row(s) for s in self.settings.values()]),
            block("metrics", _metric_rows(self.metrics)),
            block("elsewhere", list(self.differs.items())),
            block("provenance", self._provenance()),
        ]
        return "\n\n".join(part for part in parts if part)

    def _axes(self) -> list[tuple[str, str]]:
        together = "" if self.couples == self.per else f"; a whole {self.couples} must be seen together"
        return [
            ("one loss a", f"{self.per}{together}"),
            ("ratio", self.axes.ratio),
            ("clip", self.axes.clip),
            ("KL", self.axes.kl),
            ("reduction", f"{self.reduction} by default"),
        ]

    def _provenance(self) -> list[tuple[str, str]]:
        rows = [("source", self.source or "not stated"), ("defined in", self.defined_in)]
        rows += [("presets", ", ".join(self.presets))] if self.presets else []
        rows += [("keeps laws", ", ".join(self.claims))] if self.claims else []
        return rows


def describe_loss(name: str) -> LossCard:
    """The card of a registered loss. Raises UnknownLossError with the likeliest id."""
    return card_of_spec(spec_of(name))


def card_of(loss: Loss, *, metrics: bool = True) -> LossCard:
    """The card of any loss, registered or not, with its own settings in the defaults' place.

    metrics: call the loss on small data to learn what it reports; else the card lists no metrics.
    """
    card = card_of_spec(loss.spec, metrics=metrics)
    own = {name: getattr(loss.config, name) for name in card.settings}
    settings = {
        name: dataclasses.replace(one, default=own[name], required=False) for name, one in card.settings.items()
    }
    return dataclasses.replace(card, reduction=loss.reduction, settings=settings)


def card_of_spec(spec: LossSpec, *, metrics: bool = True) -> LossCard:
    """The card of a loss under its defaults; `metrics` as in `card_of`."""
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
        returns=TensorCard("returns", *_said(text.returns, _SHAPES[spec.per], f"one loss a {spec.per}")),
        settings={key: _setting(key, field) for key, field in spec.config.model_fields.items()},
        metrics=_metrics(spec) if metrics else {},
        differs=dict(spec.differs),
        claims=tuple(spec.laws),
        presets=_presets_of(spec),
        defined_in=f"{spec.function.__module__}.{getattr(spec.function, '__qualname__', spec.name)}",
    )


def _output(name: str, spec: LossSpec, text: Docstring) -> TensorCard:
    shape = _SHAPES["embeddings" if name == "embeddings" else "token"]
    return TensorCard(name, *_said(text.tensors.get(name), shape, "from the model"))


def _input(one: Input, spec: LossSpec, text: Docstring) -> TensorCard:
    said = _said(text.tensors.get(one.name), _SHAPES[one.per], f"one a {one.per}")
    return TensorCard(one.name, *said, spec.required_if.get(one.name, one.required), one.keys)


def _said(line: TensorLine | None, shape: str, meaning: str) -> tuple[str, str, str]:
    """What the docstring says of a tensor, or what the signature tells."""
    return (shape, "", meaning) if line is None else (line.shape, line.unit, line.meaning or meaning)


def _metrics(spec: LossSpec) -> dict[str, str]:
    try:
        return minimal.metric_kinds(_of(spec))
    except LossbookError:  # some setting has no default
        return {}


def _of(spec: LossSpec) -> Loss:
    """The loss under its defaults; with a norm_length where its reduction needs one."""
    needs_length = spec.reduction == "seq-mean-token-sum-norm"
    return Loss(spec, {"norm_length": 1} if needs_length else {})


def _presets_of(spec: LossSpec) -> tuple[str, ...]:
    """The presets that it is in, as the loss itself or as one that is added."""
    known = map(describe_preset, list_presets())
    return tuple(one.name for one in known if spec.name in (one.loss, *(part.loss for part in one.plus)))


def _setting(name: str, field: FieldInfo) -> SettingCard:
    bounds = ", ".join(dict.fromkeys(_bounds([*field.metadata, *_inner_metadata(field.annotation)])))
    required = field.is_required()
    default = None if required else field.get_default(call_default_factory=True)
    return SettingCard(name, type_text(field.annotation), default, bounds, required)


def type_text(annotation: Any) -> str:
    """A type as one would write it: `float`, `"k1" | "k2"`, `int | None`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join(f'"{choice}"' if isinstance(choice, str) else repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if origin is not None:
        return f"{type_text(origin)}[{', '.join(map(type_text, arguments))}]"
    return "any" if annotation is Any else getattr(annotation, "__name__", str(annotation))


def _inner_metadata(annotation: Any) -> Iterable[Any]:
    """Bounds inside a union or a container, as in `Positive | None`."""
    for argument in typing.get_args(annotation):
        yield from getattr(argument, "__metadata__", ())
        yield from _inner_metadata(argument)


def _bounds(metadata: Iterable[Any]) -> Iterable[str]:
    low: str | None = None
    for one in metadata:
        if isinstance(one, Bounds):
            yield one.text
        elif isinstance(one, Ge | Gt):
            low = f"[{one.ge:g}" if isinstance(one, Ge) else f"({one.gt:g}"
        elif isinstance(one, Le | Lt) and low is not None:
            yield f"in {low}, {f'{one.le:g}]' if isinstance(one, Le) else f'{one.lt:g})'}"
            low = None
        elif isinstance(one, Le | Lt):
            yield f"at most {one.le:g}" if isinstance(one, Le) else f"below {one.lt:g}"
    if low is not None:
        yield f"at least {low[1:]}" if low[0] == "[" else f"above {low[1:]}"


def _tensor_row(tensor: TensorCard) -> tuple[str, ...]:
    also = [f"also as {key!r}" for key in tensor.keys[1:]]
    also += [] if tensor.required is True or f"{tensor.required} is 0" in tensor.meaning else [tensor.need]
    extra = f" ({'; '.join(also)})" if also else ""
    return tensor.name, tensor.shape, tensor.unit, f"{tensor.meaning}{extra}".strip()


def _metric_rows(metrics: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names by how parts of the data merge."""
    kinds = dict.fromkeys(metrics.values())
    return [(kind, ", ".join(name for name, own in metrics.items() if own == kind)) for kind in kinds]


def _setting_row(setting: SettingCard) -> tuple[str, ...]:
    value = "required" if setting.required else f"{setting.default!r}"
    return setting.name, value, f"{setting.type}{f', {setting.bounds}' if setting.bounds else ''}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
