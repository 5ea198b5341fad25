"""A request's bytes: decompressed, parsed as JSON, hashed. All within limits, whatever the bytes are."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from ..refusals import Refused
from ..settings import Limits

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: Bytes that are fed to the decompressor, and taken from it, at a time.
_STEP = 2**20
#: The largest window of a frame, as a power of 2: 32 MiB. Compressors choose at most 8 MiB below their "ultra" levels.
_WINDOW_LOG = 25
_INT64 = range(-(2**63), 2**63)
#: A string of JSON, or what begins like one and has no end.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
#: What may be an integer beyond int64, a float beyond float64, or half a surrogate pair. Rare, so that only then each is looked at.
_LONG_NUMBER = re.compile(rb"[0-9.]{19}|[0-9.][eE]\+?[0-9]{3}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def read_body(raw: bytes, encoding: str | None, limits: Limits) -> bytes:
    """A request's body without its Content-Encoding: None, identity or zstd.

    Memory: the body's size and at most 33 MiB, and never more than that beyond `limits.body_bytes`.
    Raises Refused: 413 above the limit, 415 for another encoding, 400 where it is not one whole frame.
    """
    name = (encoding or "identity").strip().lower()
    if name not in ("", "identity", "zstd"):
        raise Refused(415, f"Content-Encoding {name[:80]!a} is not known here: send zstd or identity")
    _check_size(len(raw), limits)
    return _decompressed(raw, limits) if name == "zstd" else raw


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.body_bytes:
        raise Refused(413, f"the body has more than {limits.body_bytes} bytes, the limit body_bytes: send it in parts")


def _decompressed(raw: bytes, limits: Limits) -> bytes:
    if not raw.startswith(_ZSTD_MAGIC):
        raise Refused(400, "the body is no zstd frame, though Content-Encoding says zstd")
    try:
        _check_size(zstd.get_frame_info(raw[:32]).decompressed_size or 0, limits)
        decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
        body, position = bytearray(), 0
        while not decompressor.eof:
            step = b""
            if decompressor.needs_input:
                if position >= len(raw):
                    raise Refused(400, f"the zstd frame ends too early, after {len(raw)} bytes")
                step, position = raw[position : position + _STEP], position + _STEP
            body += decompressor.decompress(step, _STEP)
            _check_size(len(body), limits)
    except zstd.ZstdError as error:
        raise Refused(400, f"the zstd frame is damaged: {str(error)[:200]}") from None
    if decompressor.unused_data or position < len(raw):
        raise Refused(400, "the body goes on after its zstd frame: send one frame")
    return bytes(body)


def read_json(raw: bytes, limits: Limits) -> dict[str, Any]:
    """A body that is one JSON object, with limits on its nesting and the number of its values.

    Raises Refused 400, also for what JSON leaves open: duplicate keys, NaN and Infinity, integers beyond 64 bits, floats beyond
    float64, and lone surrogates.
    """
    marks = _STRING.sub(b'"', raw)
    _check_structure(marks, limits)
    exact: dict[str, Any] = {"parse_int": _int, "parse_float": _float} if _LONG_NUMBER.search(marks) else {}
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_constant, **exact)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8, at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the body is a JSON {_KINDS.get(type(value), 'number')}, not an object")
    if _SURROGATE.search(raw):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Refused(400, "a text of the body holds half a surrogate pair (\\ud800 to \\udfff)") from None
    return value


_KINDS: dict[type, str] = {list: "array", str: "string", bool: "boolean", type(None): "null"}


def _check_structure(marks: bytes, limits: Limits) -> None:
    """Count values and levels of a body whose strings were cut out, before anything is made of it."""
    opened = marks.count(b"[") + marks.count(b"{")
    if opened + marks.count(b",") + 1 > limits.json_values:
        raise Refused(400, f"the body has more than {limits.json_values} values, the limit json_values")
    brackets = np.frombuffer(marks.translate(None, _NOT_BRACKETS), np.uint8)
    levels = np.cumsum(np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1))
    if len(levels) and int(levels.max()) > limits.json_depth:
        raise Refused(400, f"the body is nested deeper than {limits.json_depth} levels, the limit json_depth")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise Refused(400, f"the body has the key {ascii(twice)[:80]} twice in one object")
    return value


def _constant(text: str) -> NoReturn:
    raise Refused(400, f"the body holds {text}, which is no number of JSON")


def _int(text: str) -> int:
    if len(text) > 20 or (value := int(text)) not in _INT64:
        raise Refused(
            400, f"the body holds the integer {text[:24]}{'...' * (len(text) > 24)}, which needs more than 64 bits"
        )
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise Refused(400, f"the body holds {text[:24]}{'...' * (len(text) > 24)}, which is beyond float64")
    return value


def canonical_hash(kind: str, body: bytes | Mapping[str, Any]) -> str:
    """sha256 of a request: of its bytes, or of its JSON with sorted keys, so that the order of keys does not count."""
    if not isinstance(body, bytes):
        body = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    return hashlib.sha256(kind.encode() + b"\0" + body).hexdigest()
