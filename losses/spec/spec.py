"""Reading a loss function's signature: the model outputs, the inputs and the settings that it takes."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...datums.errors import LossContractError
from ..reductions import COUPLINGS, REDUCTIONS, coarsest
from .axes import Axes
from .groups import Grouping as Grouping
from .groups import Groups
from .inputs import GROUP_KEY as GROUP_KEY
from .inputs import INPUT_ALIASES as INPUT_ALIASES
from .inputs import FlagPerDatum as FlagPerDatum
from .inputs import IdPerDatum as IdPerDatum
from .inputs import Input, input_of
from .inputs import PerDatum as PerDatum
from .inputs import VectorPerDatum as VectorPerDatum
from .layers import DATUM_OUTPUTS, LAYER_EMBEDDINGS, check_layers
from .settings import LossConfig, config_maker
from .top import TOP_OUTPUTS, check_top
from .vocabulary import STUDENT, TEACHER, TEACHER_KEYS, VOCABULARY_OUTPUTS, WIDE_OUTPUTS, Vocabularies

Per = Literal["token", "datum", "pair", "group", "batch"]

#: Positional parameters that the model fills.
OUTPUT_NAMES = (
    *("logprobs", "embeddings", "entropy", "logsumexp", "mean_logprobs", "values"),
    *TOP_OUTPUTS,
    *WIDE_OUTPUTS,
    LAYER_EMBEDDINGS,
)
#: What a function fn(data, outputs_list) may be handed.
HANDED_NAMES = (*(name for name in OUTPUT_NAMES if name not in (*TOP_OUTPUTS, LAYER_EMBEDDINGS)), "projection")
#: Positional parameters that lossbook fills.
HELPER_NAMES = ("seqs", "weights")
#: How a loss is reduced unless it says otherwise.
DEFAULT_REDUCTIONS = {"token": "sum", "datum": "mean", "pair": "pair-mean", "group": "group-mean", "batch": "sum"}
#: What the modules of lossbook's own losses begin with.
LOSSES = __name__.removesuffix("spec.spec")
#: First parameters that mark a function of the hosted APIs' own signature, fn(data, logprobs_list).
BATCH_STYLE_NAMES = ("data", "datums", "batch")


#: (settings) to why they cannot go together, as "temperature=0.9 needs tail='renormalise'"; empty where they can.
Conflict = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class LossSpec:
    """Everything known about a registered function; `register_loss` explains each word."""

    name: str
    function: Callable[..., Any]
    per: Per
    couples: str
    reduction: str
    source: str
    parameters: tuple[str, ...]
    outputs: tuple[str, ...]
    inputs: tuple[Input, ...]
    make_config: Callable[[], type[LossConfig]]
    is_batch_style: bool
    required_if: Mapping[str, str] = field(default_factory=dict)
    groups: Groups | None = None
    candidates: str | None = None
    linear: bool = False
    conflict: Conflict | None = None
    vocabularies: Vocabularies = "same"
    aliases: tuple[str, ...] = ()
    axes: Axes = field(default_factory=Axes)
    differs: Mapping[str, str] = field(default_factory=dict)
    laws: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def config(self) -> type[LossConfig]:
        """The model of its settings."""
        return self.make_config()

    def members(self, datums: int, config: Any) -> list[list[int]] | None:
        """Which of `datums` datums belong together; None where the loss declares no groups."""
        members = None if self.groups is None else self.groups(datums, config, None).members
        return None if members is None else [list(group) for group in members]

    def made_of(self, function: Any) -> bool:
        """Whether it was made of this function or module."""
        return self.function is function or getattr(self.function, "module", self) is function

    @property
    def keys(self) -> set[str]:
        """The `loss_fn_inputs` keys that answer to its inputs."""
        return {key for one in self.inputs for key in one.keys} | set(TEACHER_KEYS if TEACHER in self.outputs else ())

    @property
    def reads_vocabulary(self) -> bool:
        """Whether it reads whole distributions."""
        return any(name in VOCABULARY_OUTPUTS for name in self.outputs)

    @property
    def reads_tokens(self) -> bool:
        """Whether it reads anything about single positions."""
        return _reads_tokens(self.outputs)

    @property
    def reads_top(self) -> bool:
        """Whether it reads the model's own likeliest tokens, as many as its setting `top_k` says."""
        return any(name in TOP_OUTPUTS for name in self.outputs)

    @property
    def has_weights(self) -> bool:
        """Whether lossbook reads weights for it; a function of whole datums reads its own."""
        return self.reads_tokens and not self.is_batch_style

    @property
    def family(self) -> str:
        """The folder that holds it, such as "policy"; "own" for a loss from outside lossbook."""
        module = getattr(self.function, "__module__", None) or ""
        folder = module.removeprefix(LOSSES).partition(".")[0]
        return folder if module.startswith(LOSSES) else "own"

    @property
    def wants_weights(self) -> bool:
        """Whether it reads `weights`, so that it sees every position and applies the weights itself."""
        return "weights" in self.parameters


def _reads_tokens(outputs: Sequence[str]) -> bool:
    return any(name not in DATUM_OUTPUTS for name in outputs)


def is_batch_style(function: Callable[..., Any]) -> bool:
    """Whether a function has the hosted APIs' signature, fn(data, logprobs_list)."""
    names = [p.name for p in _positional(function)]
    return len(names) == 2 and names[0] in BATCH_STYLE_NAMES


def make_spec(
    function: Callable[..., Any],
    name: str,
    *,
    per: Per,
    couples: str | None = None,
    reduction: str | None = None,
    source: str = "",
    output: str = "logprobs",
    **declared: Any,
) -> LossSpec:
    """Read `function`'s signature. Raises LossContractError naming the parameter that cannot be filled.

    declared: the other fields of `LossSpec` that `register_loss` takes as they are.
    """
    if inspect.isclass(function):
        raise LossContractError(
            f"{name}: {function.__name__} is a class; give an instance of it, {function.__name__}(...)"
        )
    _check_levels(name, per, couples, reduction := reduction or DEFAULT_REDUCTIONS.get(per, ""))
    hints = _hints(function, name)
    batch_style, level = per == "batch" and is_batch_style(function), coarsest(couples or per, per)
    if output not in HANDED_NAMES:
        raise LossContractError(f"{name}: output={output!r} is none of {', '.join(HANDED_NAMES)}")
    parameters = tuple(p.name for p in _positional(function))
    outputs = (output,) if batch_style else tuple(p for p in parameters if p in OUTPUT_NAMES)
    _check_parameters(name, per, parameters, outputs, batch_style, declared)
    spec = LossSpec(
        name=name,
        function=function,
        per=per,
        couples=level,
        reduction=reduction,
        source=source,
        parameters=parameters,
        outputs=outputs,
        inputs=() if batch_style else _inputs(function, hints, level),
        make_config=config_maker(
            function, name, hints, reduction, REDUCTIONS[per], has_weights=_reads_tokens(outputs) and not batch_style
        ),
        is_batch_style=batch_style,
        **declared,
    )
    return _checked_vocabulary(spec)


def _checked_vocabulary(spec: LossSpec) -> LossSpec:
    """The spec. Raises LossContractError for a loss over whole distributions that could not be called on some positions alone, or
    over likeliest tokens without saying how many."""
    check_top(spec.name, spec.function, spec.outputs)
    check_layers(spec.name, spec.function, spec.outputs)
    if not spec.reads_vocabulary:
        return spec
    why = ""
    if spec.couples != "token":  # at least as coarse as what one value is about
        why = "must be a loss per token that couples no tokens"
    elif STUDENT not in spec.outputs or set(DATUM_OUTPUTS) & set(spec.outputs):
        why = f"reads {STUDENT} and no embeddings"
    elif spec.candidates is not None or spec.groups is not None:
        why = "has no candidates and no groups: it reads all tokens"
    elif odd := [name for name in ("seqs", "weights") if name in spec.parameters]:
        why = f"cannot read {odd[0]}"
    elif odd := [one.name for one in spec.inputs if one.per == "datum"]:
        why = f"cannot read {odd[0]!r}, one number per datum: give one per position"
    if why:
        raise LossContractError(
            f"{spec.name} reads whole distributions, so it is called on a few positions at a time, and {why}"
        )
    return spec


def _check_levels(name: str, per: str, couples: str | None, reduction: str) -> None:
    if per not in REDUCTIONS:
        raise LossContractError(f"{name}: per={per!r} is none of {', '.join(REDUCTIONS)}")
    if couples is not None and couples not in COUPLINGS:
        raise LossContractError(f"{name}: couples={couples!r} is none of {', '.join(COUPLINGS)}")
    if reduction not in REDUCTIONS[per]:
        raise LossContractError(f"{name}: a loss per {per} reduces by {', '.join(REDUCTIONS[per])}, not {reduction!r}")


def _check_parameters(
    name: str,
    per: str,
    parameters: tuple[str, ...],
    outputs: tuple[str, ...],
    batch_style: bool,
    declared: Mapping[str, Any],
) -> None:
    if not outputs:
        raise LossContractError(
            f"{name} reads no model output, so nothing could be learned. Its positional parameters are "
            f"({', '.join(parameters)}); name one of {', '.join(OUTPUT_NAMES)}, or write it as fn(data, logprobs_list)"
        )
    if (candidates := declared.get("candidates")) is not None and (per != "token" or candidates not in parameters):
        raise LossContractError(f"{name}: candidates={candidates!r} must be an input of a loss per token")
    if declared.get("linear") and (batch_style or outputs != ("logprobs",)):
        raise LossContractError(
            f"{name}: linear=True says that the gradient of the logprobs is known before them, so it is for losses whose one "
            f"model output is logprobs; {name} reads {', '.join(outputs)}{' as fn(data, logprobs_list)' if batch_style else ''}"
        )


def _positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]


def _inputs(function: Callable[..., Any], hints: Mapping[str, Any], couples: str) -> tuple[Input, ...]:
    """Its inputs; a loss that couples groups reads their key without naming it, since `seqs.groups` holds what it says."""
    inputs: list[Input] = []
    for parameter in _positional(function):
        if parameter.name in OUTPUT_NAMES + HELPER_NAMES:
            continue
        required = parameter.default is inspect.Parameter.empty
        inputs.append(input_of(parameter.name, hints.get(parameter.name), required=required))
    if couples == "group":
        inputs = [one for one in inputs if one.name != GROUP_KEY]
        inputs.append(Input(GROUP_KEY, True, "datum", is_id=True))
    return tuple(inputs)


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """Resolved annotations of the parameters.

    Settings must resolve, since they become the configuration, and so must `PerDatum`, which decides how an input is packed.
    Any other annotation may be imported for type checkers only.
    """
    target = inspect.unwrap(function)
    while isinstance(target, functools.partial):
        target = target.func
    target = target if inspect.isfunction(target) or inspect.ismethod(target) else type(target).__call__
    namespace = getattr(target, "__globals__", {})
    hints: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.annotation is inspect.Parameter.empty:
            continue
        try:
            holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
            hints |= typing.get_type_hints(holder, globalns=namespace, include_extras=True)
        except (NameError, TypeError) as error:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY or "PerDatum" in str(parameter.annotation):
                raise LossContractError(
                    f"{name}: the annotation {parameter.annotation!r} of {parameter.name!r} cannot be resolved: {error}. "
                    "Import what it names at the top of the module, not under TYPE_CHECKING or in a function"
                ) from None
    return hints
