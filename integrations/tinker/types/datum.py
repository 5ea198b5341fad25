"""One sequence with the inputs of a loss, and where its tokens come from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ....datums.tensors import TensorData, as_tensor_data
from .model_input import ModelInput

LossFnInputs = dict[str, TensorData]


@dataclass(frozen=True, kw_only=True)
class _Span:
    """`length` positions of a datum that are positions `offset` and on of something that a sampled sequence has."""

    sequence_id: str
    offset: int = 0
    length: int

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.length < 0 or self.offset < 0:
            raise ValueError(f"{name} needs length and offset >= 0, got length {self.length}, offset {self.offset}")
        if not self.sequence_id:
            raise ValueError(f"{name}.sequence_id is empty: give SampledSequence.sequence_id")


@dataclass(frozen=True, kw_only=True)
class PromptProvenanceSpan(_Span):
    """Positions that come from the prompt of the sequence's request."""


@dataclass(frozen=True, kw_only=True)
class SampledProvenanceSpan(_Span):
    """Positions that come from the sequence's sampled tokens."""


ProvenanceSpans = list[PromptProvenanceSpan | SampledProvenanceSpan]


@dataclass(frozen=True)
class Datum:
    """One sequence of N tokens with the inputs of a loss at its N positions.

    `loss_fn_inputs` values may be lists, numpy arrays, torch tensors or TensorData; they are converted once, here. The two
    lists of spans say where input tokens and targets come from; `with_provenance` sets both.

    Raises ShapeError or DtypeError naming the key, TypeError or ValueError for the spans.
    """

    model_input: ModelInput
    loss_fn_inputs: LossFnInputs = field(default_factory=dict)
    model_input_spans: ProvenanceSpans | None = None
    loss_fn_input_spans: ProvenanceSpans | None = None

    def __post_init__(self) -> None:
        inputs = {key: as_tensor_data(value, key) for key, value in self.loss_fn_inputs.items()}
        object.__setattr__(self, "loss_fn_inputs", inputs)
        _check_kinds("model_input_spans", self.model_input_spans)
        _check_kinds("loss_fn_input_spans", self.loss_fn_input_spans)
        if (self.model_input_spans is None) != (self.loss_fn_input_spans is None):
            raise ValueError("a Datum has both lists of spans or neither: set them with `with_provenance`")

    def with_provenance(self, model_input: ProvenanceSpans, loss_fn_inputs: ProvenanceSpans) -> Datum:
        """A copy with spans that cover the input tokens, and spans that cover `target_tokens`, in order.

        Raises ValueError when their lengths do not add up to the number of positions.
        """
        _check_sum("model_input", model_input, self.model_input.length)
        targets = self.loss_fn_inputs.get("target_tokens")
        if targets is not None and len(targets.shape) == 1:
            _check_sum("loss_fn_inputs", loss_fn_inputs, targets.shape[0])
        return replace(self, model_input_spans=model_input, loss_fn_input_spans=loss_fn_inputs)


def _check_kinds(name: str, spans: Any) -> None:
    for span in spans or ():
        if not isinstance(span, PromptProvenanceSpan | SampledProvenanceSpan):
            raise TypeError(f"{name} holds a {type(span).__name__}: give PromptProvenanceSpan or SampledProvenanceSpan")


def _check_sum(name: str, spans: ProvenanceSpans, length: int) -> None:
    total = sum(span.length for span in spans)
    if total != length:
        raise ValueError(f"with_provenance: the spans of {name} cover {total} positions, but it has {length}")
