"""What a loss's spec says under its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...datums.errors import LossConfigError, LossContractError
from .inputs import GROUP_KEY, Input
from .layers import LAYER_EMBEDDINGS, LAYERS
from .settings import Settings
from .spec import LossSpec
from .top import TOP_K


def reduced_by(spec: LossSpec, reduction: str) -> LossSpec:
    """The spec under a reduction: "prompt-mean" reads the key `group`, which any other reads only if the function does."""
    own = [
        one for one in spec.inputs if one.name != GROUP_KEY or GROUP_KEY in spec.parameters or spec.couples == "group"
    ]
    if reduction == "prompt-mean" and not any(one.name == GROUP_KEY for one in own):
        own.append(Input(GROUP_KEY, True, "datum", is_id=True))
    return spec if tuple(own) == spec.inputs else replace(spec, inputs=tuple(own))


def top_k_of(spec: LossSpec, settings: Settings) -> int:
    """How many of the likeliest tokens a loss reads; 0 for none. Raises LossConfigError for what is no number of tokens."""
    if not spec.reads_top:
        return 0
    count = settings.function[TOP_K]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise LossConfigError(f"{spec.name}: {TOP_K}={count!r}: a whole number of tokens, at least 1")
    return count


def layers_of(spec: LossSpec, settings: Settings) -> tuple[int, ...]:
    """Of which layers a loss reads embeddings; () for none."""
    return tuple(settings.function[LAYERS]) if LAYER_EMBEDDINGS in spec.outputs else ()


def layers_of_all(layers: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The layers of all parts of a mixture. Raises LossContractError where two parts read different ones."""
    different = list(dict.fromkeys(one for one in layers if one))
    if len(different) > 1:
        raise LossContractError(
            f"the parts of a mixture read embeddings of the layers {different[0]} and {different[1]}: one forward gives those of one "
            "tuple of layers, so name the same in each part"
        )
    return different[0] if different else ()
