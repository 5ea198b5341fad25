"""Embeddings whose earlier layers give embeddings too: any embedding loss, added up over layers of the model."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import create_model
from torch import Tensor

from ...datums.errors import LossConfigError, LossContractError, ShapeError
from ...datums.keywords import explained
from .. import stats
from ..ids import LossId, PresetId
from ..loss.loss import Loss
from ..registry import get_loss, is_registered
from ..spec.layers import LAYER_EMBEDDINGS, Layers
from ..spec.settings import LossConfig, NonNegative, Positive
from ..spec.spec import LossSpec
from ..stats import Stat
from .matryoshka import matryoshka

LayerWeighting = Literal["uniform", "log", "linear"]

#: The weight of layer n among the earlier ones.
WEIGHTS: dict[str, Callable[[int], float]] = {
    "uniform": lambda layer: 1.0,
    "log": lambda layer: 1 / (1 + math.log(1 + layer)),
    "linear": lambda layer: 1 / (1 + layer),
}
#: Settings beside those of the loss.
OWN: dict[str, Any] = {
    "last_layer_weight": (NonNegative, 1.0),
    "prior_layers_weight": (NonNegative, 1.0),
    "kl_weight": (NonNegative, 1.0),
    "kl_temperature": (Positive, 0.3),
    "layer_weighting": (LayerWeighting, "uniform"),
}
#: Laws that also hold for the sum over layers; the term between layers reads vectors with their lengths and axes.
LAWS_OF_THE_SUM = ("grad_cache_is_full_batch",)
#: What the losses are that the term between layers can be added to: it is a mean over the texts of each value.
LEVELS = ("datum", "pair", "batch")


@explained
def adaptive_layer(
    loss: LossId | PresetId | str | Loss | Callable[..., Any], *, layers: Sequence[int], **config: Any
) -> Loss:
    """last_layer_weight loss(x) + prior_layers_weight / L Σ_l w_l loss(x_l) + kl_weight τ Σ_l mean KL(softmax(x / τ) || softmax(x_l / τ)).

        training.forward_backward(datums, adaptive_layer("info_nce", layers=(3, 6, 9)))

    x are the embeddings of the last layer, x_l those of layer l, L the number of `layers`, and τ is kl_temperature. No gradient of
    the KL reaches x. w_l is 1 ("uniform"), 1 / (1 + ln(1 + l)) ("log") or 1 / (1 + l) ("linear"), by layer_weighting. After Li et
    al. 2024, 2D Matryoshka sentence embeddings, arXiv:2402.14776, as AdaptiveLayerLoss of Sentence Transformers 6.2.0.

    loss: an id, a function or a `Loss` over `embeddings`. layers: of the model, below its last one: 0 is the embedding of the
    tokens, n the output of the n-th layer. A model that ends with a norm gives each layer's vectors behind that norm, as it would
    if it were cut off there; Sentence Transformers reads them before it. config: settings of the loss, and last_layer_weight,
    prior_layers_weight, kl_weight, kl_temperature and layer_weighting; all, and `layers`, are settings of the result. Other layers
    at each step: `get_loss(loss, layers=sampled_layers(12, 1, seed=0, step=step))`.

    The KL is a mean over all texts, or over the texts of one value in a loss per datum or pair, and is added to each value:
    under reduction "sum" it counts as often as there are values. Metrics of the last layer keep their names, with
    `last_layer/loss`; those of others are `layer_3/<metric>`, with `layer_3/loss` before its weight and `layer_3/layer_kl`.

    Raises LossContractError for a loss that reads no embeddings, or groups of them, LossConfigError for invalid settings, and at
    the first forward ModelError for layers that the model does not have.
    """
    base = get_loss(loss, **{key: value for key, value in config.items() if key not in OWN})
    if not isinstance(base, Loss):
        raise LossContractError("adaptive_layer takes one loss, not a mixture: wrap its parts, and mix those")
    spec = base.spec
    if spec.is_batch_style or base.outputs != ("embeddings",):
        raise LossContractError(
            f"adaptive_layer reads the embeddings of several layers, but {base.name} reads {', '.join(base.outputs)}"
        )
    if spec.couples not in LEVELS:
        raise LossContractError(
            f"adaptive_layer takes a loss per datum, pair or batch, but {base.name} is about a {spec.couples}"
        )
    place = spec.parameters.index("embeddings")
    summed = _over_layers(spec, place)
    name = f"adaptive_layer({spec.name})"
    parameters = (*spec.parameters[: place + 1], LAYER_EMBEDDINGS, *spec.parameters[place + 1 :])
    wrapped = replace(
        spec,
        name=name,
        function=summed,
        parameters=parameters,
        outputs=("embeddings", LAYER_EMBEDDINGS),
        make_config=_config_of(spec.config, name),
        laws={law: spec.laws[law] for law in LAWS_OF_THE_SUM if law in spec.laws} | {"layers_in_any_order": {}},
        aliases=(),
        differs={},
    )
    made_by = getattr(spec.function, "made_by", ("", repr(spec.name)) if is_registered(spec.function) else None)
    if made_by is not None:
        imports, expression = made_by
        summed.made_by = (  # type: ignore[attr-defined]
            f"{imports}from lossbook import adaptive_layer\n",
            f"adaptive_layer({expression}, layers={tuple(layers)!r})",
        )
    given = {key: getattr(base.config, key) for key in base.config.model_fields_set}
    own = {key: value for key, value in config.items() if key in OWN}
    return Loss(wrapped, {**given, **own, "layers": layers})


@explained
def matryoshka_2d(
    loss: LossId | PresetId | str | Loss | Callable[..., Any],
    *,
    layers: Sequence[int],
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    **config: Any,
) -> Loss:
    """`adaptive_layer` of `matryoshka`: any embedding loss, over layers of the model and lengths of the embeddings.

        training.forward_backward(datums, matryoshka_2d("info_nce", layers=(3, 6, 9), dims=(384, 128, 64)))

    The KL between layers is of whole embeddings, at no shorter length. dims, weights: as of `matryoshka`; the others as of
    `adaptive_layer`. After Li et al. 2024, arXiv:2402.14776, as Matryoshka2dLoss of Sentence Transformers 6.2.0, which draws one
    layer and one length at each step; here both are named, and `sampled_layers` draws layers.
    """
    own = {key: config.pop(key) for key in [*config] if key in OWN}
    return adaptive_layer(matryoshka(loss, dims=dims, weights=weights, **config), layers=layers, **own)


@explained
def sampled_layers(depth: int, count: int, *, seed: int = 0, step: int) -> tuple[int, ...]:
    """`count` of the layers 0 to depth - 1 below the last one of a model of `depth` layers, in ascending order; all where they are
    fewer. The same seed and step give the same layers. Raises LossConfigError for a count below 1."""
    if count < 1 or depth < 1:
        raise LossConfigError(f"sampled_layers draws at least one of at least one layer, not {count} of {depth}")
    return tuple(sorted(random.Random(f"layers {seed} {step}").sample(range(depth), min(count, depth))))


def _config_of(base: type[LossConfig], name: str) -> Callable[[], type[LossConfig]]:
    if taken := [key for key in (*OWN, "layers") if key in base.model_fields]:
        raise LossContractError(
            f"{name}: the loss has a setting {taken[0]!r} itself, so the two could not be told apart"
        )
    fields: dict[str, Any] = {"layers": (Layers, ...), **OWN}
    return functools.cache(lambda: create_model(f"{name}_config", __base__=base, **fields))


def _over_layers(spec: LossSpec, place: int) -> Callable[..., tuple[Tensor, dict[str, Stat]]]:
    """A loss function that calls another with the embeddings of each layer, its argument at index `place`."""

    def summed(*arguments: Any, layers: tuple[int, ...], **settings: Any) -> tuple[Tensor, dict[str, Stat]]:
        own = {key: settings.pop(key) for key in OWN}
        before, (last, of_layers), after = arguments[:place], arguments[place : place + 2], arguments[place + 2 :]
        _check_count(of_layers, layers)

        def called(embeddings: Tensor) -> tuple[Tensor, dict[str, Stat]]:
            returned = spec.function(*before, embeddings, *after, **settings)
            return returned if isinstance(returned, tuple) else (returned, {})

        values, metrics = called(last)
        total, metrics = own["last_layer_weight"] * values, {**metrics, "last_layer/loss": stats.mean(values)}
        for i, layer in enumerate(layers):
            embeddings = of_layers[:, i]
            values, here = called(embeddings)
            share = own["prior_layers_weight"] * WEIGHTS[own["layer_weighting"]](layer) / len(layers)
            divergence = _divergence(last.detach(), embeddings, own["kl_temperature"])
            total = total + share * values
            if own["kl_weight"]:
                total = total + own["kl_weight"] * own["kl_temperature"] * _per_value(divergence, values, spec.couples)
            metrics |= {f"layer_{layer}/{key}": stat for key, stat in here.items()}
            metrics[f"layer_{layer}/loss"] = stats.mean(values)
            metrics[f"layer_{layer}/layer_kl"] = stats.mean(divergence)
        return total, metrics

    return summed


def _divergence(last: Tensor, embeddings: Tensor, temperature: float) -> Tensor:
    """[N] nats: KL(softmax(last / temperature) || softmax(embeddings / temperature)) of vectors [N, D]."""
    wanted, own = (last / temperature).log_softmax(-1), (embeddings / temperature).log_softmax(-1)
    return (wanted.exp() * (wanted - own)).sum(-1)


def _per_value(divergence: Tensor, values: Tensor, couples: str) -> Tensor:
    """[N] as one number for each of a loss's values: the mean over its texts, which are all in a loss over the batch."""
    if couples != "batch" and values.ndim and len(divergence) % max(len(values), 1) == 0:
        return divergence.reshape(len(values), -1).mean(1) if len(values) else divergence.new_zeros(0)
    return divergence.sum() / max(len(divergence), 1)


def _check_count(of_layers: Tensor, layers: Sequence[int]) -> None:
    if of_layers.ndim != 3 or of_layers.shape[1] != len(layers):
        if not of_layers.numel():
            return
        raise ShapeError(
            f"{LAYER_EMBEDDINGS} is {list(of_layers.shape)}, but layers={tuple(layers)} asks for [N, {len(layers)}, D]"
        )
