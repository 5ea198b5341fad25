"""The two bases of Tinker's pydantic models, and what a model's field of arrays needs."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
from pydantic import PlainSerializer, PlainValidator

from ....datums.tensors import TensorData, as_tensor_data


class _Model(pydantic.BaseModel):
    def __str__(self) -> str:
        return repr(self)


class StrictBase(_Model):
    """What a caller writes: frozen, and an unknown field is an error, so that a misspelt one is not lost."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class BaseModel(_Model):
    """What a call returns: frozen; unknown fields are dropped, as in Tinker, where a newer server may send more."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


def _tensor(value: Any) -> TensorData:
    return as_tensor_data(TensorData(**value) if isinstance(value, dict) else value, "")


def _fields(tensor: TensorData) -> dict[str, Any]:
    names = ("data", "dtype", "shape", "sparse_crow_indices", "sparse_col_indices")
    return {name: getattr(tensor, name) for name in names}


#: A `TensorData` as a field of a pydantic model: taken as whatever `TensorData` takes, dumped as its arguments.
TensorField = Annotated[TensorData, PlainValidator(_tensor), PlainSerializer(_fields)]
