"""What a model reads: chunks, in order. Models of lossbook read `EncodedTextChunk`s; they refuse the others by name."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, SerializerFunctionWrapHandler, model_serializer, model_validator

from ....datums.errors import DtypeError
from ....datums.routing import checked_routing
from .base import StrictBase


def _decoded(value: Any) -> Any:
    return base64.b64decode(value) if isinstance(value, str) else value


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


#: Bytes that may be given as base64, and are dumped as base64.
_Base64 = Annotated[bytes, BeforeValidator(_decoded), PlainSerializer(_encoded)]


class EncodedTextChunk(StrictBase):
    """A run of token ids, copied: the caller may go on with the list."""

    tokens: Sequence[int]
    type: Literal["encoded_text"] = "encoded_text"

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


class _Picture(StrictBase):
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None

    @property
    def length(self) -> int:
        """`expected_tokens`. Raises ValueError without them."""
        if self.expected_tokens is None:
            raise ValueError(f"{type(self).__name__}.expected_tokens must be set, because `length` is read from it")
        return self.expected_tokens


class ImageChunk(_Picture):
    """An image. No model of lossbook reads it."""

    data: _Base64
    type: Literal["image"] = "image"


class ImageAssetPointerChunk(_Picture):
    """Where an image lies. No model of lossbook reads it."""

    location: str
    type: Literal["image_asset_pointer"] = "image_asset_pointer"


class DmelChunk(StrictBase):
    """Tokens of speech. No model of lossbook reads them."""

    dmel: _Base64
    type: Literal["dmel"] = "dmel"

    @property
    def length(self) -> int:
        """Raises DtypeError: no tokenizer of lossbook knows how long speech is."""
        raise DtypeError("the length of a DmelChunk is not known here: lossbook's models read only EncodedTextChunk")


ModelInputChunk = EncodedTextChunk | ImageAssetPointerChunk | ImageChunk | DmelChunk


class ModelInput(StrictBase):
    """Chunks, in order.

    routing_matrices: what Tinker does not have and Fireworks does, for a mixture of experts; as lossbook's ModelInput takes it.
    Raises ValidationError, a ValueError, where they are not one text a token.
    """

    chunks: list[ModelInputChunk]
    routing_matrices: Sequence[str] | None = None

    @model_validator(mode="after")
    def _check_routing(self) -> Self:
        if self.routing_matrices is not None:
            checked_routing(self.routing_matrices, self.length)
        return self

    @classmethod
    def from_ints(cls, tokens: Sequence[int], routing_matrices: Sequence[str] | None = None) -> ModelInput:
        """One chunk of token ids."""
        return cls(chunks=[EncodedTextChunk(tokens=tokens)], routing_matrices=routing_matrices)

    @classmethod
    def empty(cls) -> ModelInput:
        """No chunks; grow it with `append` and `append_int`."""
        return cls(chunks=[])

    def append(self, chunk: ModelInputChunk) -> ModelInput:
        """A new ModelInput with one more chunk; where there are routing matrices, the model routes its tokens itself."""
        routes = self.routing_matrices
        return ModelInput(
            chunks=[*self.chunks, chunk], routing_matrices=None if routes is None else [*routes, *[""] * chunk.length]
        )

    def append_int(self, token: int) -> ModelInput:
        """A new ModelInput with one more chunk, of one token."""
        return self.append(EncodedTextChunk(tokens=[token]))

    def to_ints(self) -> list[int]:
        """All token ids, the chunks joined. Raises ValueError for chunks that hold no text."""
        if kinds := sorted({type(chunk).__name__ for chunk in self.chunks if not isinstance(chunk, EncodedTextChunk)}):
            raise ValueError(f"to_ints needs EncodedTextChunks only, but this ModelInput holds {', '.join(kinds)}")
        return [token for chunk in self.chunks if isinstance(chunk, EncodedTextChunk) for token in chunk.tokens]

    @property
    def length(self) -> int:
        """Number of positions."""
        return sum(chunk.length for chunk in self.chunks)

    @model_serializer(mode="wrap")
    def _as_tinkers(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        return {name: value for name, value in fields.items() if name != "routing_matrices" or value is not None}

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(name, value) for name, value in super().__repr_args__() if name == "chunks" or value is not None]
