"""Bodies are taken whole and within limits, or refused: compression, and what JSON leaves open."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.settings import Limits
from lossbook.integrations.serve.wire.body import canonical_hash, read_body, read_json

zstandard = pytest.importorskip("zstandard", reason="what the SDK compresses with")

LIMITS = Limits(body_bytes=100_000)
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=20,
)


def compressed(data: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=sized).compress(data)


def claiming(size: int) -> bytes:
    """A frame of one empty block whose header says that it holds `size` bytes."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"


@pytest.mark.parametrize("encoding", [None, "", "identity", " Identity "])
def test_a_body_without_an_encoding_stays(encoding: str | None) -> None:
    assert read_body(b"abc", encoding, LIMITS) == b"abc"


@pytest.mark.parametrize("sized", [True, False])
@settings(max_examples=30)
@given(data=st.binary(max_size=2000))
def test_what_the_sdk_compresses_is_read(sized: bool, data: bytes) -> None:
    assert read_body(compressed(data, sized=sized), "zstd", LIMITS) == data


def test_a_body_may_be_as_large_as_the_limit_and_no_larger() -> None:
    assert len(read_body(compressed(bytes(100_000)), "ZSTD", LIMITS)) == 100_000
    for body, encoding in [(bytes(100_001), None), (compressed(bytes(100_001)), "zstd")]:
        with pytest.raises(Refused, match="100000 bytes, the limit body_bytes") as refused:
            read_body(body, encoding, LIMITS)
        assert refused.value.status == 413


BOMB = bytes(50 * 2**20)


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        pytest.param(compressed(BOMB), "zstd", 413, id="50 MiB of zeros, which the header says"),
        pytest.param(compressed(BOMB, sized=False), "zstd", 413, id="50 MiB of zeros, which it does not say"),
        pytest.param(claiming(8 * 2**30), "zstd", 413, id="a header that says 8 GiB"),
        pytest.param(claiming(2**40), "zstd", 413, id="a header that says 1 TiB"),
        pytest.param(claiming(2**63 + 5), "zstd", 413, id="a header that says more than int64 holds"),
        pytest.param(claiming(5), "zstd", 400, id="a header that says more than there is"),
        pytest.param(compressed(b"abc" * 100)[:-3], "zstd", 400, id="truncated"),
        pytest.param(compressed(b"abc" * 100)[:5], "zstd", 400, id="truncated in its header"),
        pytest.param(compressed(b"abc") * 2, "zstd", 400, id="two frames"),
        pytest.param(compressed(b"abc") + b"!", "zstd", 400, id="bytes behind the frame"),
        pytest.param(SKIPPABLE, "zstd", 400, id="nothing but a skippable frame"),
        pytest.param(compressed(b"abc") + SKIPPABLE, "zstd", 400, id="a skippable frame behind"),
        pytest.param(b"", "zstd", 400, id="nothing"),
        pytest.param(b"abc", "zstd", 400, id="no frame"),
        pytest.param(b"\x28\xb5\x2f\xfd" + bytes(range(200)), "zstd", 400, id="a damaged frame"),
        pytest.param(b"abc", "gzip", 415, id="gzip"),
        pytest.param(b"abc", "zstd, zstd", 415, id="encoded twice"),
        pytest.param(b"abc", "x" * 10_000, 415, id="a long name"),
    ],
)
def test_other_bodies_are_refused_in_one_short_line(body: bytes, encoding: str, status: int) -> None:
    with pytest.raises(Refused) as refused:
        read_body(body, encoding, LIMITS)
    assert refused.value.status == status
    assert len(refused.value.message) < 300
    assert "\n" not in refused.value.message


def test_a_body_that_was_compressed_twice_is_decompressed_once() -> None:
    assert read_body(compressed(compressed(b"abc")), "zstd", LIMITS) == compressed(b"abc")


@pytest.mark.slow
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("window", [21, 25, 30])
def test_a_bomb_takes_no_more_memory_than_the_limit_and_64_mib(sized: bool, window: int) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=window, write_content_size=sized)
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(500 * 2**20))
    code = """
import resource, sys
from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.settings import Limits
from lossbook.integrations.serve.wire.body import read_body
body = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_body(body, "zstd", Limits(body_bytes=64 * 2**20))
except Refused as refused:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 128 * 2**20


@settings(max_examples=30)
@given(value=st.dictionaries(st.text(), JSON, max_size=4), pretty=st.booleans(), escaped=st.booleans())
def test_every_object_of_json_is_read_as_it_is(value: dict[str, object], pretty: bool, escaped: bool) -> None:
    text = json.dumps(value, indent=1 if pretty else None, ensure_ascii=escaped)
    assert read_json(text.encode(), Limits()) == value


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json_depth", id="100,000 levels"),
        pytest.param(b'{"a": ' + b"[" * 100_000, "json_depth", id="100,000 levels that are not closed"),
        pytest.param(b"[" * 2_000_000, "json_values", id="2,000,000 brackets"),
        pytest.param(b'{"a":' * 100_000, "json_depth", id="100,000 objects within objects"),
        pytest.param(b'{"a": 0' + b', "a": 0' * (10**6 - 1) + b"}", "json_values", id="1,000,000 keys"),
        pytest.param(b'{"a": 1, "b": 2, "a": 3}', "'a' twice", id="a key twice"),
        pytest.param(b'{"b": {"a": 1, "\\u0061": 2}}', "'a' twice", id="a key twice, once escaped"),
        pytest.param(b'{"a": "\\ud800"}', "surrogate", id="half a surrogate pair"),
        pytest.param(b'{"a": ["\\uDfff x"]}', "surrogate", id="its other half"),
        pytest.param(b'{"\\ud800": 1}', "surrogate", id="half a surrogate pair as key"),
        pytest.param(b'{"a": NaN}', "NaN", id="NaN"),
        pytest.param(b'{"a": -Infinity}', "Infinity", id="Infinity"),
        pytest.param(b'{"a": 1e999}', "float64", id="a float beyond float64"),
        pytest.param(b'{"a": -1E+00999}', "float64", id="a float beyond float64, with zeros"),
        pytest.param(b'{"a": 1' + b"0" * 400 + b".5}", "float64", id="a float beyond float64, written out"),
        pytest.param(b'{"a": 9223372036854775808}', "64 bits", id="2^63"),
        pytest.param(b'{"a": -9223372036854775809}', "64 bits", id="-2^63 - 1"),
        pytest.param(b'{"a": 1' + b"0" * 100_000 + b"}", "64 bits", id="an integer of 100,001 digits"),
        pytest.param(b'{"a": "' + b'\\"' * 1_000_000, "no JSON", id="a text without an end"),
        pytest.param(b'{"a": "\xff"}', "UTF-8", id="no UTF-8"),
        pytest.param('{"a": 1}'.encode("utf-16"), "UTF-8", id="UTF-16"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', "no JSON", id="a byte order mark"),
        pytest.param(b"", "no JSON", id="nothing"),
        pytest.param(b"{", "no JSON", id="half an object"),
        pytest.param(b'{"a": 1} {}', "no JSON", id="two objects"),
        pytest.param(b"[]", "array, not an object", id="an array"),
        pytest.param(b"null", "null, not an object", id="null"),
        pytest.param(b"7", "number, not an object", id="a number"),
    ],
)
def test_json_that_could_be_misread_is_refused_by_its_reason(body: bytes, message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        read_json(body, Limits())
    assert refused.value.status == 400
    assert len(refused.value.message) < 300
    assert "\n" not in refused.value.message


def test_brackets_and_numbers_within_texts_do_not_count() -> None:
    text = "[" * 1000 + '"\\' + ", 99999999999999999999999 1e999 NaN"
    assert read_json(json.dumps({text: text}).encode(), Limits()) == {text: text}


def test_whole_surrogate_pairs_are_one_character() -> None:
    assert read_json(b'{"a": "\\ud83d\\ude00"}', Limits()) == {"a": "\U0001f600"}


def test_the_limits_count_exactly() -> None:
    limits = Limits(json_values=6, json_depth=3)
    assert read_json(b'{"a": [1, [2, 3]]}', limits)  # an object, two arrays and three numbers
    with pytest.raises(Refused, match="json_values"):
        read_json(b'{"a": [1, [2, 3, 4]]}', limits)
    with pytest.raises(Refused, match="json_depth"):
        read_json(b'{"a": [[[1]]]}', limits)


def test_a_hash_is_of_what_is_asked_and_not_of_the_order_of_keys() -> None:
    assert canonical_hash("sample", {"a": 1, "b": [2]}) == canonical_hash("sample", {"b": [2], "a": 1})
    assert canonical_hash("sample", {"a": 1}) != canonical_hash("sample", {"a": 2})
    assert canonical_hash("sample", {"a": 1}) != canonical_hash("save_weights", {"a": 1})
    assert canonical_hash("forward", b"a") != canonical_hash("forward", b"b")
