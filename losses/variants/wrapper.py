"""A loss made of another one: its values times weights that have no gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic import create_model
from torch import Tensor

from ...datums.errors import LossConfigError, LossContractError
from ..batch.seqs import Seqs
from ..loss.loss import Loss
from ..reductions import coarsest
from ..registry import get_loss
from ..spec.settings import LossConfig
from ..spec.spec import Conflict, Input, LossSpec
from ..stats import Stat

#: (arguments of the wrapped loss by name, the weighting's own settings, per) -> a weight per value, and metrics.
Weights = Callable[[Mapping[str, Any], Mapping[str, Any], str], tuple[Tensor, dict[str, Stat]]]


@dataclass(frozen=True)
class Weighting:
    """How the values of a loss are weighed.

    maker: the public function, for messages. suffix: behind the + of the id. source: its arguments, as written in code.
    weights: the computation. settings, inputs: those it adds to the loss's own. couples: what it must see together.
    check: raises for a loss that it must not weigh. conflict: as in `register_loss`, for its own settings. outputs: model
    outputs that it reads beside the loss's own. needs_tokens: what to do instead where the loss has one value per response;
    "" where such a loss can be weighed.
    """

    maker: str
    suffix: str
    source: str
    weights: Weights
    settings: Mapping[str, tuple[Any, Any]]
    inputs: tuple[Input, ...]
    couples: str
    check: Callable[[Loss], None] = lambda loss: None
    conflict: Conflict = lambda settings: ""
    outputs: tuple[str, ...] = ()
    needs_tokens: str = ""


def weighed(loss: str | Loss | Callable[..., Any], config: Mapping[str, Any], weighting: Weighting) -> Loss:
    """`loss` with its values times the weights. Raises LossContractError for a loss that cannot be weighed."""
    rest = {key: value for key, value in config.items() if key not in weighting.settings}
    try:
        base = get_loss(loss)
    except LossConfigError:  # some losses have settings that they cannot do without
        base = get_loss(loss, **rest)
    if not isinstance(base, Loss):
        raise LossContractError(f"{weighting.maker} takes one loss, not a mixture: wrap its parts, and mix those")
    _check(base, weighting)
    weighting.check(base)
    kept = {key: getattr(base.config, key) for key in base.config.model_fields_set}
    own = {key: value for key, value in config.items() if key in weighting.settings}
    return get_loss(Loss(_grown(base, weighting), {**kept, **own}), **rest)


def mean_per_datum(values: Tensor, seqs: Seqs) -> Tensor:
    """[T] to [N]: means over each datum's tokens, whatever their weights."""
    return seqs.plain_sum(values) / seqs.lengths.to(values).clamp(min=1)


def _grown(base: Loss, weighting: Weighting) -> LossSpec:
    """The loss's spec with the function weighed, and the settings and inputs of the weights added."""
    spec = base.spec
    needed = {one.name for one in weighting.inputs if one.required}
    inputs = {one.name: replace(one, required=one.required or one.name in needed) for one in spec.inputs}
    outputs = tuple(dict.fromkeys((*spec.outputs, *weighting.outputs)))
    added = (*weighting.outputs, *(one.name for one in weighting.inputs))
    parameters = tuple(dict.fromkeys((*spec.parameters, *added)))
    if weighting.couples != "token" and "seqs" not in parameters:
        parameters = (*parameters, "seqs")
    config = create_model(
        f"{spec.name}_{weighting.suffix}", __base__=spec.config, **cast(dict[str, Any], dict(weighting.settings))
    )
    return replace(
        spec,
        name=f"{spec.name}+{weighting.suffix}",
        function=_weighed_function(spec, parameters, weighting),
        parameters=parameters,
        outputs=outputs,
        inputs=(*inputs.values(), *(one for one in weighting.inputs if one.name not in inputs)),
        make_config=lambda: cast(type[LossConfig], config),
        couples=coarsest(spec.couples, weighting.couples),
        linear=False,
        conflict=lambda settings: weighting.conflict(settings) or (spec.conflict(settings) if spec.conflict else ""),
        aliases=(),
        differs={},
        laws={},
    )


def _weighed_function(spec: LossSpec, parameters: Collection[str], weighting: Weighting) -> Callable[..., Any]:
    def weighed_values(*arguments: Any, **settings: Any) -> tuple[Tensor, dict[str, Stat]]:
        given = dict(zip(parameters, arguments, strict=True))
        own = {key: settings.pop(key) for key in weighting.settings}
        returned = spec.function(*(given[name] for name in spec.parameters), **settings)
        values, metrics = returned if isinstance(returned, tuple) else (returned, {})
        weights, more = weighting.weights(given, own, spec.per)
        return values * weights, {**metrics, **more}

    imports, expression = getattr(spec.function, "made_by", ("", repr(spec.name)))
    imports = f"from lossbook.losses import {weighting.maker}\n{imports}"
    weighed_values.__doc__ = f"{spec.name}, times a weight without a gradient: see `{weighting.maker}`."
    weighed_values.made_by = imports, f"{weighting.maker}({expression}{weighting.source})"  # type: ignore[attr-defined]
    return weighed_values


def _check(base: Loss, weighting: Weighting) -> None:
    spec, maker = base.spec, weighting.maker
    if spec.is_batch_style or spec.per not in ("token", "datum") or "logprobs" not in base.outputs:
        raise LossContractError(f"{maker} weighs a policy loss per token or datum over logprobs; {base!r} is none")
    if spec.wants_weights:
        raise LossContractError(f"{maker}: {base.name} weighs its values itself, and they cannot be weighed again")
    if spec.per == "datum" and weighting.needs_tokens:
        raise LossContractError(
            f"{maker}: {base.name} has one value per response, so a weight per token does not fit: {weighting.needs_tokens}"
        )
    if taken := [key for key in weighting.settings if key in spec.config.model_fields]:
        raise LossContractError(f"{maker}: {base.name} has a setting {taken[0]!r} of its own")
