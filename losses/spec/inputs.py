"""The `loss_fn_inputs` keys that a loss reads, as the annotations of its parameters describe them."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor

from ...datums.errors import LossContractError
from ...datums.inputs import VECTOR_ENDING, KeyKind, key_kind

#: Other keys that answer to an input's name.
INPUT_ALIASES = {"sampling_logprobs": ("logprobs",)}
#: The key that says which datums belong together, an integer per datum: members of a group may stand anywhere in a call.
GROUP_KEY = "group"
_PER_DATUM = "one value per datum"
#: Annotation for an input that holds one number per datum: `def kto(logprobs: Tensor, label: PerDatum, ...)`.
PerDatum = Annotated[Tensor, _PER_DATUM]
_FLAG = "0 or 1"
#: The same for a number that must be 0 or 1, such as a label.
FlagPerDatum = Annotated[Tensor, _PER_DATUM, _FLAG]
_ID = "an integer"
#: The same for an id, which is compared and must be an integer: float32 takes 16,777,217 for 16,777,216.
IdPerDatum = Annotated[Tensor, _PER_DATUM, _ID]
_VECTOR = "a vector"
#: The same for a vector [D], such as another model's embedding of the datum: packed, [N, D]. Its name ends in "_embedding".
VectorPerDatum = Annotated[Tensor, _PER_DATUM, _VECTOR]


@dataclass(frozen=True)
class Input:
    """One `loss_fn_inputs` key that a loss reads.

    kind: "logprob", "prob", "flag" or "number", from its annotation or else its name. is_flag: annotated as 0 or 1, so that
    any other number in the data is an error. is_id: annotated as an integer. is_vector: annotated as a vector.
    """

    name: str
    required: bool
    per: Literal["token", "datum"]
    is_flag: bool = False
    is_id: bool = False
    is_vector: bool = False

    @property
    def kind(self) -> KeyKind:
        """What its numbers are."""
        return "flag" if self.is_flag else key_kind(self.name)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that answer to it, its own name first."""
        return (self.name, *INPUT_ALIASES.get(self.name, ()))


def input_of(name: str, hint: Any, *, required: bool) -> Input:
    """The input that a parameter with this resolved annotation (None without one) reads. Raises LossContractError."""
    annotations = (hint, *typing.get_args(hint))  # also inside `PerDatum | None`
    words = {word for a in annotations for word in getattr(a, "__metadata__", ())}
    per = "datum" if _PER_DATUM in words else "token"
    if _VECTOR in words and not name.endswith(VECTOR_ENDING):
        raise LossContractError(
            f"the input {name!r} is a vector per datum, and only keys that end in {VECTOR_ENDING!r} may have another length than "
            f"their datum: call it {name.removesuffix(VECTOR_ENDING.strip('_')).rstrip('_')}{VECTOR_ENDING}"
        )
    return Input(name, required, per, is_flag=_FLAG in words, is_id=_ID in words, is_vector=_VECTOR in words)
