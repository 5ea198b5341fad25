"""Logits, or hidden states and a head, as a source of the outputs that losses read. `losses` is given these two functions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...datums.errors import DtypeError, ModelError, ShapeError
from ...losses.spec.vocabulary import STUDENT
from ..head.given_logits import logprobs_of_logits
from ..head.logprobs import Head, in_autocast_precision, linear_logprobs
from ..head.whole import HeadDistributions, LogitDistributions
from ..model.linear import effective_weight
from ..model.model import cap_and_scale, unpadded_size


@dataclass(frozen=True, eq=False)
class Logits:
    """logits [positions, V], to be divided by a temperature."""

    logits: Tensor
    temperature: float

    @property
    def given(self) -> Tensor:
        """What was given per position."""
        return self.logits

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.logits.shape[1]

    def whole(self, rows: Tensor | None) -> LogitDistributions:
        """The distributions over the whole vocabulary at `rows`."""
        return LogitDistributions(self.logits, rows, self.temperature)

    def outputs(self, rows: Tensor | None, targets: Tensor, names: Collection[str], top_k: int = 0) -> dict[str, Any]:
        """The outputs `names` at `rows` (None: all) of the positions; targets: at these rows. top_k: of the likeliest tokens."""
        whole, names = _apart(self, rows, names)
        if not names:
            return whole
        outputs = logprobs_of_logits(
            self.logits,
            rows,
            targets,
            entropy="entropy" in names,
            mean_logprobs="mean_logprobs" in names,
            topk=top_k,
            temperature=self.temperature,
        )
        return {name: getattr(outputs, name) for name in names} | whole


@dataclass(frozen=True, eq=False)
class Hidden:
    """hidden states [positions, d] and the head that makes logits of them."""

    hidden: Tensor
    head: Head

    @property
    def given(self) -> Tensor:
        """What was given per position."""
        return self.hidden

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return len(self.head.weight)

    def whole(self, rows: Tensor | None) -> HeadDistributions:
        """The distributions over the whole vocabulary at `rows`."""
        hidden = self.hidden if rows is None else self.hidden[rows]
        return HeadDistributions(*in_autocast_precision(hidden, self.head))

    def outputs(self, rows: Tensor | None, targets: Tensor, names: Collection[str], top_k: int = 0) -> dict[str, Any]:
        """The outputs `names` at `rows` (None: all) of the positions; targets: at these rows. top_k: of the likeliest tokens."""
        whole, names = _apart(self, rows, names)
        if not names:
            return whole
        hidden = self.hidden if rows is None else self.hidden[rows]
        outputs = linear_logprobs(
            *in_autocast_precision(hidden, self.head),
            targets,
            entropy="entropy" in names,
            mean_logprobs="mean_logprobs" in names,
            topk=top_k,
        )
        return {name: getattr(outputs, name) for name in names} | whole


def _apart(
    source: Logits | Hidden, rows: Tensor | None, names: Collection[str]
) -> tuple[dict[str, Any], Collection[str]]:
    """The whole distributions, where `names` has them, and the other names."""
    others = [name for name in names if name != STUDENT]
    return ({STUDENT: source.whole(rows)} if len(others) < len(names) else {}), others


def of_logits(logits: Tensor, temperature: float) -> Logits:
    """logits [positions, V] as a source. Raises ModelError for a temperature that is not positive, DtypeError for integers."""
    _check_floats("logits", logits)
    _check_temperature(temperature)
    return Logits(logits, temperature)


def of_hidden(hidden: Tensor, head: Any, temperature: float) -> Hidden:
    """hidden [positions, d] as a source. head: see `head_of`. Raises ShapeError where they do not fit, and as `head_of` does."""
    _check_floats("hidden", hidden)
    _check_temperature(temperature)
    own = head_of(head)
    if hidden.shape[1] != own.weight.shape[1]:
        raise ShapeError(
            f"hidden has {hidden.shape[1]} numbers per position, but the head's weight is {list(own.weight.shape)}, for "
            f"{own.weight.shape[1]}"
        )
    return Hidden(hidden, own if temperature == 1 else own.at_temperature(temperature))


def head_of(given: Any) -> Head:
    """The map from hidden states to logits: a `Head`, a weight [V, d], a linear layer, or a causal language model of transformers.

    A model's soft cap and scale are read from its config; a bare layer or weight has none. A LoRA adapter on the layer is added.

    Raises ModelError for anything else, and for a weight that is split over ranks.
    """
    if isinstance(given, Head):
        return given
    softcap, scale, layer, size = None, 1.0, given, None
    if isinstance(given, nn.Module) and hasattr(given, "get_output_embeddings"):
        layer = given.get_output_embeddings()  # type: ignore[operator]
        (softcap, scale), size = cap_and_scale(given.config), unpadded_size(given.config)
    if isinstance(layer, Tensor):
        weight, bias = layer, None
    elif isinstance(getattr(base := getattr(layer, "base_layer", layer), "weight", None), Tensor):
        _check_adapter(layer)
        weight, bias = effective_weight(layer), getattr(base, "bias", None)
    else:
        raise ModelError(
            f"head is a {type(layer).__name__}: give the model, its linear output layer, that layer's weight [V, d], or a Head"
        )
    if isinstance(weight, DTensor) or weight.ndim != 2:
        raise ModelError(
            f"the head's weight is {list(weight.shape)}{', split over ranks' if isinstance(weight, DTensor) else ''}, and it is "
            "read whole, [V, d]: gather it first, or let the model make logits and take on_logits"
        )
    if size is not None and size < len(weight):  # the backward of a slice copies the whole gradient
        weight, bias = weight[:size], None if bias is None else bias[:size]
    return Head(weight, bias, softcap, scale)


def _check_adapter(layer: Any) -> None:
    """Of adapters on the head only a plain LoRA that drops nothing is the product that is added."""
    if not hasattr(layer, "base_layer"):
        return
    if not hasattr(layer, "lora_A") or any(getattr(layer, "use_dora", {}).values()):
        raise ModelError(
            f"the head is a {type(layer).__name__}: of adapters on it only plain LoRA can be read; take on_logits"
        )
    drops = [one for one in getattr(layer, "lora_dropout", {}).values() if getattr(one, "p", 0.0) and one.training]
    if drops:
        raise ModelError(
            "the head's LoRA adapter has dropout, which reading its weight would leave out: take on_logits"
        )


def _check_floats(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise DtypeError(f"{name} is {tensor.dtype}: they are floats")


def _check_temperature(temperature: float) -> None:
    if not (isinstance(temperature, int | float) and 0 < temperature < float("inf")):
        raise ModelError(f"a temperature must be a positive number, not {temperature}")
