"""Which tensors a loss reads, by name: none is missing, and none is left unread."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ....datums.errors import MissingInput, UnknownInput, did_you_mean
from ...spec.settings import WEIGHTS_KEY
from ...spec.spec import OUTPUT_NAMES, LossSpec


class Part(Protocol):
    """What is needed of a `Loss`."""

    spec: LossSpec
    config: Any
    settings: dict[str, Any]
    reduction: str
    norm_length: int | None
    weights: str | None
    top_k: int
    layers: tuple[int, ...]

    @property
    def label(self) -> str:
        """Its id, with the key of its weights where it names one."""
        ...

    @property
    def name(self) -> str:
        """Its id."""
        ...


class Whole(Protocol):
    """What is needed of a `Loss` or a `Mixture`."""

    @property
    def name(self) -> str:
        """Its id."""
        ...

    @property
    def couples(self) -> str:
        """What must be seen together."""
        ...

    @property
    def parts(self) -> Sequence[tuple[float, Part]]:
        """(factor, loss) of each part; a `Loss` is its own only part."""
        ...


def check_names(loss: Whole, tensors: Mapping[str, Tensor], computed: Collection[str], counts_only: bool) -> None:
    """Check that some part reads every tensor, and that none is missing. computed: outputs computed from logits. counts_only: the
    outputs may be missing, and inputs that no denominator needs.

    Raises UnknownInput, MissingInput.
    """
    specs = [part.spec for _, part in loss.parts]
    known = {name for spec in specs for name in (*spec.outputs, *(one.name for one in spec.inputs))} - set(computed)
    known |= set(mask_keys(loss))
    takes_any = any(spec.is_batch_style for spec in specs)
    for key in tensors:
        if (
            key in known
            or (takes_any and key not in (*OUTPUT_NAMES, "weights"))
            or (counts_only and key in OUTPUT_NAMES)
        ):
            continue
        raise UnknownInput(
            f"{loss.name} does not read {key!r}.{_hint(loss, key, known, {*tensors, *computed})} It reads: {_listed(known)}"
        )
    for _, part in loss.parts:
        _check_present(part, tensors, {*tensors, *computed}, counts_only)


def mask_keys(loss: Whole) -> list[str]:
    """The keys of weights that are tensors of their own; weights under the usual key are `mask`."""
    keys = dict.fromkeys(part.weights for _, part in loss.parts)
    return [key for key in keys if key is not None and key != WEIGHTS_KEY]


def mask_name(part: Part) -> str:
    """What the tensor of a loss's weights is called."""
    return "mask" if part.weights in (None, WEIGHTS_KEY) else part.weights


def _check_present(part: Part, tensors: Mapping[str, Tensor], given: Collection[str], counts_only: bool) -> None:
    spec, settings = part.spec, part.spec.required_if
    required = {one.name: one.required for one in spec.inputs} | dict.fromkeys(spec.outputs, True)
    if counts_only:  # groups may count their values by what rows carry
        counted = spec.groups is not None or spec.per == "group" or part.reduction == "prompt-mean"
        of_rows = [one for one in spec.inputs if one.per == "datum"] if counted else ()
        required = {one.name: one.required for one in of_rows}
    if part.weights not in (None, WEIGHTS_KEY):
        required[part.weights] = True
    for name, always in required.items():
        if name in given or not (always or part.settings.get(settings.get(name, ""))):
            continue
        why = "" if always else f" with {settings[name]}={part.settings[settings[name]]}"
        raise MissingInput(f"{part.name}{why} reads {name!r}, which was not given. Given: {_listed(tensors)}")


def _hint(loss: Whole, key: str, known: Collection[str], there: Collection[str]) -> str:
    """The likeliest mend for an unknown key. there: what was given or is computed."""
    if key in OUTPUT_NAMES and key not in known and any(key in part.spec.outputs for _, part in loss.parts):
        return " It is computed here, from logits or hidden states."
    if key in (WEIGHTS_KEY, "attention_mask", "loss_mask", "response_mask"):
        return " Weights and masks are given as mask=."
    if any(key in part.spec.config.model_fields for _, part in loss.parts):
        return f" It is a setting: get_loss(..., {key}=...)."
    if key in ("labels", "target_tokens", "input_ids"):
        return " labels go with on_logits and on_hidden."
    return did_you_mean(key, set(known) - set(there)) or did_you_mean(key, known)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
