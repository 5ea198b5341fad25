"""A loss's configuration: a pydantic model made from its keyword-only parameters.

Strict: unknown keys, wrong types, NaN and infinity are errors that list the settings. The annotated types below carry
bounds, and their errors name the likeliest confusion.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional, cast

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor

from ...datums.errors import LossConfigError
from ...datums.inputs import key_kind
from ...datums.keywords import meant


@dataclass(frozen=True)
class Bounds:
    """The bounds that a validator enforces, for the card. Ge, Gt, Le and Lt need none."""

    text: str


def _lower_bound(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"is a bound on the ratio itself and lies in [0, 1], got {value}")
    return value


def _upper_bound(value: float) -> float:
    if 0 < value < 1:
        raise ValueError(
            f"is a bound on the ratio itself, at least 1, not a distance from it: did you mean {1 + value:g}?"
        )
    if value < 1:
        raise ValueError(f"is a bound on the ratio itself, at least 1, got {value}")
    return value


def _inside(value: float) -> float:
    if value in (0, 1):
        raise ValueError(
            f"lies strictly between 0 and 1: at {value:g} the loss is 0. Its limits, once divided by beta (1 - beta), are "
            "losses of their own: a forward KL at 0, a reverse KL at 1"
        )
    if not 0 < value < 1:
        raise ValueError(f"lies strictly between 0 and 1, got {value}")
    return value


def _weight_key(key: str) -> str:
    if not key or key == "target_tokens" or key_kind(key) == "logprob":
        raise ValueError(f"names the key of loss_fn_inputs that holds a weight per target, which {key!r} is not")
    return key


#: The key that a loss takes its weights from, unless its setting `weights` names another.
WEIGHTS_KEY = "weights"
WeightsKey = Annotated[str, AfterValidator(_weight_key)]
#: Settings that every loss has; a loss that reads no positions has no `weights`.
EVERY_LOSS = ("reduction", "norm_length", "weights")

#: Lowest ratio that still gets a gradient, such as 0.8 (not the distance 0.2).
LowerBound = Annotated[float, AfterValidator(_lower_bound), Bounds("in [0, 1]")]
#: Highest ratio that still gets a gradient, such as 1.2 (not the distance 0.2).
UpperBound = Annotated[float, AfterValidator(_upper_bound), Bounds("at least 1")]
#: Either bound, where the side is not known.
RatioBound = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
#: A share in [0, 0.5): the probability that a label is flipped.
Smoothing = Annotated[float, Ge(0), Lt(0.5)]
#: The same where its logarithm is taken: never 0.
PositiveSmoothing = Annotated[float, Gt(0), Lt(0.5)]
#: A share in [0, 1].
Share = Annotated[float, Ge(0), Le(1)]
#: The weight of one of two distributions that are mixed.
BetweenZeroAndOne = Annotated[float, AfterValidator(_inside), Bounds("in (0, 1)")]
Count = Annotated[int, Ge(0)]
#: How many there are of something that there must be some of.
AtLeastOne = Annotated[int, Ge(1)]

#: Other systems' spellings of the same setting.
CONFIG_ALIASES = {"clip_low_threshold": "clip_low", "clip_high_threshold": "clip_high"}


class LossConfig(BaseModel):
    """Base of every loss's configuration."""

    # arbitrary types: functools.partial makes keyword-only parameters of what it binds, tensors included.
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, arbitrary_types_allowed=True
    )


def config_maker(
    function: Callable[..., Any],
    name: str,
    hints: Mapping[str, Any],
    reduction: str,
    reductions: tuple[str, ...],
    *,
    has_weights: bool = True,
) -> Callable[[], type[LossConfig]]:
    """Makes a pydantic model with a field for each keyword-only parameter of `function`, `reduction`, `norm_length` and `weights`.

    has_weights: whether lossbook reads weights for it, whose key may then be chosen. Made at the first call, since a model takes a millisecond and most of a hundred losses are never asked for.
    """
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if parameter.name in EVERY_LOSS and (has_weights or parameter.name != "weights"):
            raise LossConfigError(
                f"{name}: {parameter.name!r} belongs to the registry; a loss returns losses unreduced"
            )
        if parameter.name.startswith("_") or hasattr(LossConfig, parameter.name):
            raise LossConfigError(
                f"{name}: no setting can be called {parameter.name!r}, as pydantic's models use that name"
            )
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        annotation = hints.get(parameter.name, Any if default is ... or default is None else type(default))
        if default is not ... and not isinstance(default, bool | int | float | str | None):
            # pydantic would copy the default; functools.partial must get the very object that it binds
            default = Field(default_factory=_constant(default))
        fields[parameter.name] = (annotation, default)
    fields["reduction"] = (Literal[reductions], reduction)
    if "seq-mean-token-sum-norm" in reductions:
        fields["norm_length"] = (Optional[Annotated[int, Ge(1)]], Field(default=None))  # noqa: UP045
    if has_weights:
        fields["weights"] = (WeightsKey, WEIGHTS_KEY)
    return functools.cache(
        lambda: cast(type[LossConfig], create_model(f"{name}_config", __base__=LossConfig, **fields))
    )


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def own_names(model: type[LossConfig], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with other systems' spellings turned into the model's own. Raises LossConfigError when both are there."""
    renamed: dict[str, Any] = {}
    for key, value in given.items():
        own = CONFIG_ALIASES.get(key, key)
        if key in model.model_fields or own not in model.model_fields:
            own = key
        elif own in given:
            raise LossConfigError(f"{name}: {own!r} is given twice, also as its other spelling {key!r}")
        renamed[own] = value
    return renamed


def resolve_config(model: type[LossConfig], name: str, given: Mapping[str, Any]) -> LossConfig:
    """Validate a configuration. Raises LossConfigError with every problem, all keys and the likeliest correction.

    NumPy's numbers count as Python's. A parameter would become the number that it is now, so it is refused.
    """
    own = own_names(model, name, given)
    own = {key: value.tolist() if isinstance(value, np.generic) else value for key, value in own.items()}
    for key, value in own.items():
        field = model.model_fields.get(key)
        if isinstance(value, Tensor) and value.requires_grad and field is not None and field.annotation in (int, float):
            raise LossConfigError(
                f"{name}: {key} is a parameter, but a setting is a fixed number, so it would not be learned. Hold it in a "
                "function or module of your own"
            )
    try:
        config = model.model_validate(own)
    except ValidationError as error:
        raise LossConfigError(_explain(error, model, name)) from None
    has_length = getattr(config, "norm_length", None) is not None
    if (config.reduction == "seq-mean-token-sum-norm") != has_length:  # type: ignore[attr-defined]
        wanted = (
            "needs norm_length, the constant number of tokens to divide by" if not has_length else "has no norm_length"
        )
        raise LossConfigError(f"{name}: reduction {config.reduction!r} {wanted}")  # type: ignore[attr-defined]
    return config


@dataclass(frozen=True)
class Settings:
    """A validated configuration, and its parts: the function's keyword arguments, and how its values are weighed and reduced.

    weights: the key of the weights; None for a loss whose weights lossbook does not read.
    """

    config: LossConfig
    function: dict[str, Any]
    reduction: str
    norm_length: int | None
    weights: str | None = WEIGHTS_KEY


def resolve_settings(
    model: type[LossConfig], name: str, given: Mapping[str, Any], *, has_weights: bool = True
) -> Settings:
    """Validate a configuration and take it apart. Raises LossConfigError as `resolve_config` does."""
    config = resolve_config(model, name, given)
    function = {key: getattr(config, key) for key in model.model_fields}
    weights = function.pop("weights") if has_weights else None
    return Settings(config, function, function.pop("reduction"), function.pop("norm_length", None), weights)


def _explain(error: ValidationError, model: type[LossConfig], name: str) -> str:
    lines: list[str] = []
    for problem in error.errors():
        key = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            lines.append(f"{name} has no setting {key!r}.{meant(key, model.model_fields)}")
        elif problem["type"] == "missing":
            lines.append(f"{name} needs the setting {key!r}.")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(
                f"{name}: {key}={problem['input']!r}: {message[0].lower()}{message[1:]}"
                + ("" if message.endswith("?") else ".")
            )
    return f"{' '.join(lines)} Settings of {name}: {', '.join(model.model_fields) or 'none'}."
