"""`forward_backward`: datums from protobuf."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from ...tinker.types import Datum, EncodedTextChunk, ModelInput, PromptProvenanceSpan, SampledProvenanceSpan, TensorData
from ..refusals import Failed, Refused
from ..settings import Limits
from .messages import messages
from .samples import not_text
from .scan import Scan
from .tensors import array_of

_ID = re.compile(r"[!-~]{1,256}")
#: What each kind of provenance span is in the Tinker door.
_SPANS: dict[str, type[PromptProvenanceSpan | SampledProvenanceSpan]] = {
    "prompt_tokens": PromptProvenanceSpan,
    "sampled_tokens": SampledProvenanceSpan,
}


@dataclass(frozen=True)
class ForwardBackward:
    """A request to run a loss on datums.

    config   the loss's settings
    loss_id  of a custom loss, where loss_fn is "custom"
    problem  why the request's future fails although its bytes could be read; `data` is empty then
    """

    model_id: str
    seq_id: int
    forward_only: bool
    loss_fn: str
    config: dict[str, float | str]
    data: list[Datum] = field(repr=False)
    loss_id: str | None = None
    problem: Failed | None = None


def read_forward_backward(raw: bytes, limits: Limits) -> ForwardBackward:
    """A request from the bytes of a `ForwardBackwardRequest`.

    Raises Refused 400 for bytes that are none, and above a limit, which is named; `used` says the request's number, where it was
    read. What can be read but not run comes back with its `problem`.
    """
    if raw[:1] == b"{":
        raise Refused(
            400, "the body is JSON, as an old client sends it; protobuf is read here: pip install -U 'tinker>=0.38'"
        )
    scan = Scan(raw, limits)
    try:
        scan.run()
        message = messages().ForwardBackwardRequest.FromString(raw)
        if not _ID.fullmatch(message.model_id) or message.seq_id < 1:
            raise Refused(
                400, f"model_id and a seq_id of 1 or more are needed, not {message.model_id[:80]!a}, {message.seq_id}"
            )
        return _read(message, limits)
    except DecodeError:
        raise Refused(400, "the body is no ForwardBackwardRequest of protobuf", used=_used(scan)) from None
    except Refused as refused:
        refused.used = refused.used or _used(scan)
        raise


def _used(scan: Scan) -> tuple[str, Any, int] | None:
    is_number = 0 < scan.seq_id < 2**31
    return (scan.model_id, "seq", scan.seq_id) if _ID.fullmatch(scan.model_id) and is_number else None


def _read(message: Any, limits: Limits) -> ForwardBackward:
    data: list[Datum] = []
    config: dict[str, float | str] = {}
    problem = None
    try:
        config = _config(message)
        data = _Reader(limits).datums(message.data)
    except Failed as failed:
        problem = failed
    loss_id = config.get("loss_id") if message.loss_fn == "custom" else None
    return ForwardBackward(
        model_id=message.model_id,
        seq_id=message.seq_id,
        forward_only=message.forward_only,
        loss_fn=message.loss_fn,
        config=config,
        data=data,
        loss_id=loss_id if isinstance(loss_id, str) else None,
        problem=problem,
    )


def _config(message: Any) -> dict[str, float | str]:
    """The loss's settings: of the newer map, which can hold text, where it has any."""
    if not message.loss_fn_config_v2:
        config: dict[str, float | str] = dict(message.loss_fn_config)
    else:
        config = {}
        for name, value in message.loss_fn_config_v2.items():
            if (kind := value.WhichOneof("value")) is None:
                raise Failed(f"loss_fn_config[{name[:80]!a}] has neither a number nor a text", "user")
            config[name] = getattr(value, kind)
    for name, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise Failed(f"loss_fn_config[{name[:80]!a}] is {value}: give a finite number", "user")
    return config


class _Reader:
    """Reads the datums of one request and counts what they hold together."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tokens = self._numbers = 0

    def datums(self, messages: Any) -> list[Datum]:
        count = len(messages)
        return [self._datum(message, f"datum {i} of {count}") for i, message in enumerate(messages)]

    def _datum(self, message: Any, where: str) -> Datum:
        model_input = self._model_input(message.model_input, where)
        count = sum(len(chunk.tokens) for chunk in model_input.chunks if isinstance(chunk, EncodedTextChunk))
        inputs = {}
        for key, tensor in message.loss_fn_inputs.items():
            array = self._array(tensor, f"{where}, {key[:80]!a}")
            # Without a shape one value is a number or a list of one, and only a datum of one token can have the list.
            is_number = not tensor.shape and array.size == 1 and count != 1
            inputs[key] = TensorData.view(array.reshape(()) if is_number else array)
        try:
            spans = [_spans(message.model_input_spans), _spans(message.loss_fn_input_spans)]
            return Datum(model_input, inputs, *[each or None for each in spans])
        except (ValueError, TypeError) as error:  # the door's own words about keys and spans
            raise Failed(f"{where}: {error}", "user") from None

    def _model_input(self, chunks: Any, where: str) -> ModelInput:
        tokens: list[int] = []
        for i, chunk in enumerate(chunks):
            kind = chunk.WhichOneof("chunk")
            if kind != "encoded_text":
                raise Failed(not_text(f"{where}: chunk {i} of {len(chunks)}", kind or "of an unknown kind"), "user")
            raw = chunk.encoded_text.tokens
            if len(raw) % 4:
                raise Failed(
                    f"{where}: chunk {i} of {len(chunks)} has {len(raw)} bytes, which are no whole int32 tokens", "user"
                )
            self._tokens += len(raw) // 4
            if self._tokens > self._limits.tokens:
                raise Refused(
                    400, f"the request has more than {self._limits.tokens} tokens, the limit tokens, at {where}"
                )
            tokens += memoryview(raw).cast("i").tolist()
        return ModelInput.model_construct(
            chunks=[EncodedTextChunk.model_construct(tokens=tokens)], routing_matrices=None
        )

    def _array(self, tensor: Any, where: str) -> np.ndarray:
        array = array_of(tensor, where, self._limits)
        self._numbers += array.size
        if self._numbers > self._limits.numbers:
            raise Refused(
                400, f"the request has more than {self._limits.numbers} numbers, the limit numbers, at {where}"
            )
        return array


def _spans(messages: Any) -> list[PromptProvenanceSpan | SampledProvenanceSpan]:
    spans = []
    for message in messages:
        if (kind := message.WhichOneof("span")) is None:
            raise ValueError("a provenance span of an unknown kind")
        span = getattr(message, kind)
        spans.append(_SPANS[kind](sequence_id=span.sequence_id, offset=span.offset, length=span.length))
    return spans
