"""Answers as the SDK reads them: protobuf for losses and samples, JSON for the rest, and the names of metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from pydantic import BaseModel

from ...tinker.types import ForwardBackwardOutput, SampledSequence, SampleResponse, TensorData, TopkLogprobs
from .messages import messages
from .metrics import wire_metrics
from .tensors import write_tensor


def forward_backward_bytes(output: ForwardBackwardOutput) -> bytes:
    """A `ForwardBackwardOutput` message: datums of equal columns in a row as one record, and metrics by their wire names.

    All records have all outputs; a datum without one has an empty array there, because the SDK counts datums by it.
    """
    message = messages().ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=wire_metrics(output.metrics))
    names = sorted({name for datum in output.loss_fn_outputs for name in datum})

    def layout(datum: Mapping[str, TensorData]) -> list[Any]:
        return [(datum[name].dtype, datum[name].shape[1:]) if name in datum else None for name in names]

    for _, datums in groupby(output.loss_fn_outputs, layout):
        _write_record(message.loss_fn_outputs.add(), list(datums), names)
    return message.SerializeToString()


def _write_record(record: Any, datums: Sequence[Mapping[str, TensorData]], names: Sequence[str]) -> None:
    record.type_tag, record.num_datums = "ArrayRecord", len(datums)
    for name in names:
        arrays = [datum[name].to_numpy() if name in datum else np.zeros(0, np.float32) for datum in datums]
        field = record.fields[name]
        is_float = arrays[0].dtype == np.float32
        field.dtype = messages().DTYPE_FLOAT32 if is_float else messages().DTYPE_INT64
        field.trailing_shape.extend(arrays[0].shape[1:])
        field.offsets = np.cumsum([0, *(array.nbytes for array in arrays)]).astype("<i8").tobytes()
        field.data = b"".join(array.astype("<f4" if is_float else "<i8", copy=False).tobytes() for array in arrays)


def sample_bytes(response: SampleResponse, sequence_ids: Sequence[str]) -> bytes:
    """A `SampleResponse` message. The sequences' ids are not in it: the submission's answer carried them.

    Raises ValueError where there are not as many sequences as ids, on which the SDK would fail without a word.
    """
    if len(response.sequences) != len(sequence_ids):
        raise ValueError(f"{len(response.sequences)} sequences for {len(sequence_ids)} ids that were promised")
    message = messages().SampleResponse(prompt_cache_hit_tokens=response.prompt_cache_hit_tokens)
    for sequence in response.sequences:
        _write_sequence(sequence, message.sequences.add())
    if response.prompt_logprobs is not None:
        message.prompt_logprobs = np.array(response.prompt_logprobs, "<f4").tobytes()  # None becomes NaN
    if response.topk_prompt_logprobs_np is not None:
        _write_top(response.topk_prompt_logprobs_np, message.topk_prompt_logprobs)
    if response.target_prompt_logprobs is not None:
        write_tensor(response.target_prompt_logprobs, message.target_prompt_logprobs)
    if (drawn := response.prompt_alt_tokens) is not None:
        write_tensor(drawn.tokens, message.prompt_alt_tokens.tokens, int32=True)
        write_tensor(drawn.logprobs, message.prompt_alt_tokens.logprobs)
    return message.SerializeToString()


def _write_sequence(sequence: SampledSequence, message: Any) -> None:
    is_stop = sequence.stop_reason == "stop"
    message.stop_reason = messages().STOP_REASON_STOP if is_stop else messages().STOP_REASON_LENGTH
    message.tokens = np.array(sequence.tokens, "<i4").tobytes()
    if sequence.logprobs is not None:
        message.logprobs = np.array(sequence.logprobs, "<f4").tobytes()
    if sequence.topk_logprobs_np is not None:
        _write_top(sequence.topk_logprobs_np, message.topk_sampled_logprobs)


def _write_top(top: TopkLogprobs, message: Any) -> None:
    message.length, message.k = top.token_ids.shape
    message.token_ids = top.token_ids.astype("<i4").tobytes()
    message.logprobs = top.logprobs.astype("<f4").tobytes()


def json_bytes(value: Any) -> bytes:
    """A JSON answer, also of a pydantic model. Numbers that JSON does not have are left out of objects, and null in lists."""
    return json.dumps(_plain(value), allow_nan=False, separators=(",", ":"), default=_scalar).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if not _is_non_finite(each)}
    if isinstance(value, list | tuple):
        return [None if _is_non_finite(each) else _plain(each) for each in value]
    return None if _is_non_finite(value) else value


def _is_non_finite(value: Any) -> bool:
    return isinstance(value, float | np.floating) and not math.isfinite(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")
