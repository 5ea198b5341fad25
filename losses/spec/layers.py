"""Outputs of one row per datum, and losses over several layers: the output that holds them, and the setting that names the layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from ...datums.errors import LossContractError

#: Pooled vectors of several layers of the model, [N, L, D], in the order of the loss's setting `layers`.
LAYER_EMBEDDINGS = "layer_embeddings"
#: Model outputs with one row per datum; all others have one per position.
DATUM_OUTPUTS = ("embeddings", LAYER_EMBEDDINGS)
#: The setting of a loss that says of which layers.
LAYERS = "layers"


def _as_tuple(layers: Any) -> Any:
    return tuple(layers) if isinstance(layers, list | range) else layers


def _layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    if not layers or any(one < 0 for one in layers) or len(set(layers)) != len(layers):
        raise ValueError(
            "names layers below the last, each once, such as (3, 6, 9): 0 is the embedding of the tokens, n the output of the n-th layer"
        )
    return layers


#: Layers of the model, counted as transformers counts `hidden_states`: 0 is the embedding of the tokens.
Layers = Annotated[tuple[int, ...], BeforeValidator(_as_tuple), AfterValidator(_layers)]


def check_layers(name: str, function: Callable[..., Any], outputs: Sequence[str]) -> None:
    """Raise LossContractError for a loss over embeddings of layers that does not say of which."""
    if LAYER_EMBEDDINGS not in outputs:
        return
    setting = inspect.signature(function).parameters.get(LAYERS)
    if setting is None or setting.kind is not inspect.Parameter.KEYWORD_ONLY:
        raise LossContractError(
            f"{name} reads {LAYER_EMBEDDINGS}, so it needs a keyword-only setting that says of which layers, such as `*, {LAYERS}: "
            "Layers = (6,)`"
        )
