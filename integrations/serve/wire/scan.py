"""A look at a `ForwardBackwardRequest` before it is parsed: how many messages it holds.

A message of two bytes becomes an object of a hundred, so that a body within its limit could fill the memory when it is parsed. Here
its parts are counted without making anything of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from ..refusals import Refused
from ..settings import Limits

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: The most bytes that a tensor's shape may take, packed.
_SHAPE_BYTES = 80


@dataclass(frozen=True)
class _Part:
    """A field that holds messages: what they are called, the limit on their number in one message, and their own such fields."""

    name: str
    limit: str
    parts: dict[int, _Part] = field(default_factory=dict)


_TENSOR = {4: _Part("the shape", "")}
_INPUT = {2: _Part("tensors", "inputs", _TENSOR)}
_DATUM = {
    1: _Part("chunks", "chunks"),
    2: _Part("loss_fn_inputs", "inputs", _INPUT),
    3: _Part("model_input_spans", "chunks"),
    4: _Part("loss_fn_input_spans", "chunks"),
}
_REQUEST = {
    3: _Part("datums", "datums", _DATUM),
    5: _Part("loss_fn_config", "inputs"),
    7: _Part("loss_fn_config_v2", "inputs"),
}


@dataclass
class Scan:
    """What was seen: the fields so far, and the request's model_id and seq_id ("" and 0 until they came)."""

    raw: bytes
    limits: Limits
    fields: int = 0
    model_id: str = ""
    seq_id: int = 0

    def run(self) -> None:
        """Raise Refused where a limit is passed, or where this is no protobuf."""
        self._walk(0, len(self.raw), _REQUEST)

    def _walk(self, position: int, end: int, parts: dict[int, _Part]) -> None:
        counts = dict.fromkeys(parts, 0)
        raw = self.raw
        while position < end:
            tag, position = self._varint(position, end) if raw[position] > 127 else (raw[position], position + 1)
            number, kind = tag >> 3, tag & 7
            self.fields += 1
            if self.fields > self.limits.json_values:
                raise Refused(400, f"the request has more than {self.limits.json_values} values, the limit json_values")
            start = position
            if kind == _BYTES:
                size, start = self._varint(position, end)
                position = start + size
            elif kind == _VARINT:
                value, position = self._varint(position, end)
                if parts is _REQUEST and number == 2:
                    self.seq_id = value
            elif kind in (_FIXED32, _FIXED64):
                position += 4 if kind == _FIXED32 else 8
            else:
                _undecodable(f"wire type {kind}")
            if position > end:
                _undecodable("a field ends behind the message")
            if number in parts:
                counts[number] += 1
                self._part(parts[number], counts[number], start, position, kind)
            elif parts is _REQUEST and number == 1 and kind == _BYTES:
                self.model_id = self.raw[start : min(position, start + 257)].decode(errors="replace")

    def _part(self, part: _Part, count: int, start: int, end: int, kind: int) -> None:
        if not part.limit:
            if count * (end - start) > _SHAPE_BYTES:
                raise Refused(400, f"a tensor has a shape of more than {_SHAPE_BYTES} bytes")
            return
        if count > (limit := getattr(self.limits, part.limit)):
            raise Refused(
                400, f"there are more than {limit} {part.name}, the limit {part.limit}: send several requests"
            )
        if kind == _BYTES and part.parts:
            self._walk(start, end, part.parts)

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < 70:
            byte = self.raw[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, position
            shift += 7
        _undecodable("a number without an end")


def _undecodable(why: str) -> NoReturn:
    raise Refused(400, f"the body is no ForwardBackwardRequest of protobuf: {why}")
