"""The data types of the training API, with the field names and defaults of the Tinker SDK.

A `Datum` is one sequence: a `ModelInput` (N tokens) and `loss_fn_inputs`, tensors about its N positions.
`target_tokens[t]` is the token that position t predicts, so it is already shifted by one.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from .display import box, counted, few, one_line, rows_html, tokens_html
from .errors import DtypeError, ModelError, OptimizerError, ShapeError, TokenRangeError
from .inputs import KEY_DTYPES, TensorDtype
from .keywords import explained_constructor
from .routing import checked_routing
from .tensors import Beyond64Bits, TensorData, as_array, as_tensor_data

__all__ = [
    "KEY_DTYPES",
    "AdamParams",
    "Datum",
    "EncodedTextChunk",
    "ModelInput",
    "SamplingParams",
    "TensorData",
    "TensorDtype",
    "as_adam_params",
    "as_datum",
    "as_datums",
    "as_model_input",
    "as_tensor_data",
    "own_datums",
    "prompt_tokens",
    "token_array",
    "token_list",
]

_BUILDERS = "Build one with datum_from_tokens_weights, datum_from_messages or Datum(model_input, loss_fn_inputs={...})"
#: Fields of the Fireworks SDK's ModelInput that name files in its own storage.
HOSTED_REFERENCES = ("routing_references", "top_sampling_references", "sampling_mask_references")


@explained_constructor
@dataclass(frozen=True)
class EncodedTextChunk:
    """A run of token ids."""

    tokens: Sequence[int]
    type: Literal["encoded_text"] = "encoded_text"

    def __post_init__(self) -> None:
        if not hasattr(self.tokens, "__iter__"):
            raise DtypeError(f"tokens must be a list of token ids, not {self.tokens!r:.40}")
        object.__setattr__(self, "tokens", list(self.tokens))  # a copy: the caller may go on with the list

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def __repr__(self) -> str:
        return one_line(f"EncodedTextChunk({few(self.tokens)}, {counted(self.length, 'token')})")


@explained_constructor
@dataclass(frozen=True)
class ModelInput:
    """The tokens that the model reads: chunks of token ids, in order.

    routing_matrices: for a mixture of experts, one text a token that says to which experts it is sent, "" where the model's
    routers choose; see `routing.py`. Raises LengthMismatchError or DtypeError where they are not that.
    """

    chunks: Sequence[EncodedTextChunk] = ()
    routing_matrices: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunks", list(self.chunks))  # a copy, as of their tokens
        if any(isinstance(chunk, int) for chunk in self.chunks):
            raise DtypeError("chunks are EncodedTextChunks; token ids go to ModelInput.from_ints([...])")
        if self.routing_matrices is not None:
            object.__setattr__(self, "routing_matrices", checked_routing(self.routing_matrices, self.length))

    @classmethod
    def from_ints(cls, tokens: Any, routing_matrices: Sequence[str] | None = None) -> ModelInput:
        """One chunk of token ids, from a list, a numpy array or a torch tensor of integers."""
        return cls([EncodedTextChunk(tokens=token_list(tokens))], routing_matrices)

    @classmethod
    def empty(cls) -> ModelInput:
        """No tokens; grow it with `append_int` and `append`."""
        return cls(chunks=[])

    def append(self, chunk: EncodedTextChunk) -> ModelInput:
        """A new ModelInput with one more chunk; where there are routing matrices, the model routes its tokens itself."""
        routes = self.routing_matrices
        return ModelInput([*self.chunks, chunk], None if routes is None else [*routes, *[""] * chunk.length])

    def append_int(self, token: int) -> ModelInput:
        """A new ModelInput with one more token."""
        return self.append(EncodedTextChunk(tokens=token_list([token])))

    def to_ints(self) -> list[int]:
        """All token ids, the chunks joined."""
        return list(map(int, itertools.chain.from_iterable(chunk.tokens for chunk in self.chunks)))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return sum(chunk.length for chunk in self.chunks)

    def __repr__(self) -> str:
        chunks = "" if len(self.chunks) == 1 else f" in {counted(len(self.chunks), 'chunk')}"
        routes = "" if self.routing_matrices is None else ", with routing matrices"
        return one_line(f"ModelInput({few(self.to_ints())}, {counted(self.length, 'token')}{chunks}{routes})")


@explained_constructor
@dataclass(frozen=True)
class Datum:
    """One sequence of N tokens with the inputs of a loss at its N positions.

    `loss_fn_inputs` values may be numbers, lists, numpy arrays, torch tensors or TensorData (also another SDK's). They
    are converted once, here. Raises ShapeError or DtypeError naming the key.
    """

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_input", as_model_input(self.model_input))
        if not isinstance(self.loss_fn_inputs, Mapping):
            kind = type(self.loss_fn_inputs).__name__
            raise DtypeError(f"loss_fn_inputs are arrays by name, such as {{'target_tokens': [...]}}, not a {kind}")
        converted = {key: as_tensor_data(value, key) for key, value in self.loss_fn_inputs.items()}
        object.__setattr__(self, "loss_fn_inputs", converted)

    def __repr__(self) -> str:
        inputs = "".join(f", {key} {_kind(value)}" for key, value in self.loss_fn_inputs.items())
        return one_line(
            f"Datum({counted(self.model_input.length, 'token')} {few(self.model_input.to_ints(), 3)}{inputs})"
        )

    def _repr_html_(self) -> str:
        tokens, targets = self.model_input.to_ints(), self.loss_fn_inputs.get("target_tokens")
        title, weights = f"Datum of {counted(len(tokens), 'token')}", self.loss_fn_inputs.get("weights")
        rows = [(key, _kind(value), repr(value)) for key, value in self.loss_fn_inputs.items()]
        if getattr(targets, "shape", None) != [len(tokens)]:  # several targets per position are no one text
            return box(title, tokens_html(tokens, [0.0] * len(tokens)), rows_html(rows, "loss_fn_inputs"))
        numbers = [1.0] * len(tokens) if weights is None else as_tensor_data(weights, "weights").data
        following = map(int, as_tensor_data(targets, "target_tokens").data)
        strip = tokens_html([*tokens[:1], *following], [0.0, *numbers])
        return box(
            title,
            "tokens, coloured by the weight with which they are learned",
            strip,
            rows_html(rows, "loss_fn_inputs"),
        )


def _kind(value: Any) -> str:
    """`float32[3999]`; of a value that was put in later and is no TensorData yet, its type."""
    return f"{value.dtype}{value.shape}" if isinstance(value, TensorData) else type(value).__name__


@explained_constructor
@dataclass(frozen=True, kw_only=True)
class AdamParams:
    """One AdamW step (decoupled weight decay). `grad_clip_norm=0` means no clipping."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@explained_constructor
@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to sample. `stop=None` stops at the end-of-sequence token, `stop=[]` only at `max_tokens`."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | Sequence[int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


def token_list(tokens: Any) -> list[int]:
    """Token ids as a list of Python integers. Raises as `token_array` does."""
    return token_array(tokens).tolist()


def token_array(tokens: Any) -> np.ndarray:
    """[N] int64. Raises DtypeError for floats, TokenRangeError for ids beyond 64 bits, ShapeError unless 1-D."""
    if isinstance(tokens, str):
        raise DtypeError(f"tokens must be numbers, got str: give tokenizer.encode({tokens!r:.40})")
    try:
        array = as_array(tokens, "int64", "tokens")
    except Beyond64Bits as error:
        raise TokenRangeError(f"{error}: no vocabulary reaches that far") from None
    if array.ndim != 1:
        raise ShapeError(f"tokens must be one flat list of ids, not an array of shape {list(array.shape)}")
    return array


def as_adam_params(params: Any) -> AdamParams:
    """A copy of our AdamParams, or of another SDK's by structure. Raises OptimizerError for anything else."""
    try:
        return AdamParams(**{name: getattr(params, name) for name in AdamParams.__dataclass_fields__})
    except AttributeError as error:
        raise OptimizerError(
            f"optim_step takes AdamParams(learning_rate=...), got {type(params).__name__}: {error}"
        ) from None


def as_model_input(value: Any) -> ModelInput:
    """A ModelInput from ours, a list of token ids, or another SDK's object with `chunks` of `tokens`.

    Raises DtypeError for what a model here cannot read: chunks of images, and references to files of a hosted service.
    """
    if isinstance(value, ModelInput):
        return value
    chunks = getattr(value, "chunks", None)
    if chunks is None:
        return ModelInput.from_ints(value)
    for name in HOSTED_REFERENCES:
        if getattr(value, name, None) is not None:
            raise DtypeError(f"model_input carries {name}, which refers to files that Fireworks alone can read")
    own = [EncodedTextChunk(tokens=token_list(list(_tokens(chunk)))) for chunk in chunks]
    return ModelInput(own, getattr(value, "routing_matrices", None))


def prompt_tokens(prompt: Any) -> list[int]:
    """The tokens of a prompt, as `as_model_input` takes it. Raises ModelError for one with routing matrices: samplers choose."""
    given = as_model_input(prompt)
    if given.routing_matrices is not None:
        raise ModelError(
            "a prompt carries routing_matrices, but a sampler sends its tokens to experts itself: give the tokens alone, or ask "
            "for logprobs by forward"
        )
    return given.to_ints()


def _tokens(chunk: Any) -> Sequence[int]:
    if not hasattr(chunk, "tokens"):
        raise DtypeError(f"model_input holds a {type(chunk).__name__}: only text tokens are supported")
    return chunk.tokens


def as_datum(value: Any) -> Datum:
    """A Datum from ours, another SDK's (by its attributes), or a mapping with the same two names."""
    if isinstance(value, Datum):
        is_whole = all(isinstance(one, TensorData) for one in value.loss_fn_inputs.values())
        return (
            value if is_whole else replace(value)
        )  # a raw value that was put in later is converted, or refused by name
    if isinstance(value, Mapping):
        if "model_input" not in value:
            raise DtypeError(f"a datum needs 'model_input', but this mapping holds {', '.join(map(str, value))}")
        return Datum(model_input=value["model_input"], loss_fn_inputs=value.get("loss_fn_inputs", {}))
    if hasattr(value, "model_input"):
        return Datum(model_input=value.model_input, loss_fn_inputs=getattr(value, "loss_fn_inputs", {}))
    raise DtypeError(f"expected a Datum (model_input, loss_fn_inputs), got {type(value).__name__}. {_BUILDERS}")


def own_datums(data: Iterable[Any]) -> list[Datum]:
    """As `as_datum` for each, with copies of all that the caller could change later: tokens, `loss_fn_inputs`, shapes.

    Values that were put into `loss_fn_inputs` as they are become TensorData here. Raises as `as_datum` does.
    """
    return [_own(datum) for datum in as_datums(data)]


def as_datums(data: Any) -> list[Datum]:
    """`as_datum` for each. Raises DtypeError for anything but a list of datums, such as a single datum."""
    if hasattr(data, "model_input") or (isinstance(data, Mapping) and "model_input" in data):
        raise DtypeError("data is a list of datums, but this is a single one: write [datum]")
    if isinstance(data, str) or not isinstance(data, Iterable) or isinstance(data, Mapping):
        raise DtypeError(f"data is a list of datums, not a {type(data).__name__}. {_BUILDERS}")
    return [as_datum(value) for value in data]


def _own(datum: Datum) -> Datum:
    own = copy.copy(datum)  # of a subclass, with attributes of its own, too
    chunks = [EncodedTextChunk(tokens=list(_tokens(chunk))) for chunk in datum.model_input.chunks]
    inputs = {key: as_tensor_data(value, key).copied() for key, value in datum.loss_fn_inputs.items()}
    object.__setattr__(own, "model_input", ModelInput(chunks, datum.model_input.routing_matrices))
    object.__setattr__(own, "loss_fn_inputs", inputs)
    return own
