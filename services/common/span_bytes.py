"""Finished spans as the bytes of OTLP's `Span`, written directly.

Most of what a kept trace costs is its encoding. Building protobuf messages for it makes an object for each attribute, three
deep; here the few hundred pairs that spans say again and again are bytes already, and the rest is put between them. What comes
of it is held against the messages themselves by a property (tests/common/test_common_span_bytes.py). Source of the numbers of
fields: opentelemetry/proto/trace/v1/trace.proto, common.proto; of the encoding: Protocol Buffers, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from struct import Struct

from services.common.spans import SpanRecord, Value

KEPT_CHARS = 128
"""Longer texts are not kept for the next span: errors, which differ."""
SMALL = 256
"""Counts below it are kept for the next span."""
_INT64_MOST = (1 << 63) - 1
_UINT64 = (1 << 64) - 1
_TIMES = Struct("<BQBQ")
_EVENT_TIME = Struct("<BQ")
_DOUBLE = Struct("<Bd")
_BYTE = [bytes((value,)) for value in range(128)]
_OF_RESOURCE, _OF_SPAN, _OF_EVENT, _OF_LINK = b"\x0a", b"\x4a", b"\x1a", b"\x22"
"""The tags of `attributes` in each message."""
_STATUS_ERROR = b"\x18\x02"
_SCOPE = b"\x0a\x0b\x0a\x09apportion"


def varint(value: int) -> bytes:
    """A non-negative integer, seven bits a byte, the least first."""
    if value < 128:
        return _BYTE[value]
    if value < 16384:
        return bytes((value & 127 | 128, value >> 7))
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


def encoded(record: SpanRecord, offset_ns: int) -> bytes:
    """A record as OTLP's Span; `offset_ns` is what turns the monotonic clock into Unix time. struct.error for times that no
    clock tells, UnicodeEncodeError for texts that are none."""
    parent, trace_state = record.parent_span_id, record.trace_state
    parts = [
        b"\n",
        varint(len(record.trace_id)),
        record.trace_id,
        b"\x12",
        varint(len(record.span_id)),
        record.span_id,
        _name(b"\x2a", record.name),
        b"\x30",
        _BYTE[record.kind],
        _TIMES.pack(0x39, record.start_ns + offset_ns, 0x41, record.end_ns + offset_ns),
    ]
    if parent:
        parts += (b"\x22", varint(len(parent)), parent)
    if trace_state:
        parts.append(_field(b"\x1a", trace_state.encode()))
    _pairs(parts, _OF_SPAN, record.attributes)
    for name, at_ns, attributes in record.events:
        event = [_EVENT_TIME.pack(0x09, at_ns + offset_ns), _name(b"\x12", name)]
        _pairs(event, _OF_EVENT, attributes)
        parts.append(_field(b"\x5a", b"".join(event)))
    for trace_id, span_id, attributes in record.links:
        link = [_field(b"\x0a", trace_id), _field(b"\x12", span_id)]
        _pairs(link, _OF_LINK, attributes)
        parts.append(_field(b"\x6a", b"".join(link)))
    if record.error is not None:
        parts.append(_field(b"\x7a", _field(b"\x12", record.error.encode()) + _STATUS_ERROR))
    return b"".join(parts)


def request_for(resource: Mapping[str, Value], spans: Iterable[bytes]) -> bytes:
    """One ExportTraceServiceRequest of one process."""
    of_scope = [_SCOPE]
    for span in spans:
        of_scope += (b"\x12", varint(len(span)), span)
    about: list[bytes] = []
    _pairs(about, _OF_RESOURCE, resource)
    of_resource = _field(b"\x0a", b"".join(about)) + _field(b"\x12", b"".join(of_scope))
    return _field(b"\x0a", of_resource)


def _pairs(parts: list[bytes], tag: bytes, attributes: Mapping[str, Value]) -> None:
    """Adds attributes, each with its tag."""
    for key, value in attributes.items():
        kind = type(value)
        if kind is str and len(value) <= KEPT_CHARS:  # type: ignore[arg-type]
            parts += (tag, _text(key, value))
        elif kind is int:
            parts += (tag, _small(key, value) if 0 <= value < SMALL else _integer(key, value))  # type: ignore[arg-type, operator]
        elif kind is bool:
            parts += (tag, _flag(key, value))
        else:
            parts += (tag, _pair(key, _any(value)))


@lru_cache(4096)
def _text(key: str, value: str) -> bytes:
    return _pair(key, _field(b"\x0a", value.encode()))


@lru_cache(4096)
def _small(key: str, value: int) -> bytes:
    return _pair(key, b"\x18" + varint(value))


@lru_cache(512)
def _flag(key: str, value: bool) -> bytes:
    return _pair(key, b"\x10\x01" if value else b"\x10\x00")


@lru_cache(512)
def _key(key: str) -> bytes:
    return _field(b"\x0a", key.encode())


@lru_cache(512)
def _name(tag: bytes, name: str) -> bytes:
    return _field(tag, name.encode())


def _integer(key: str, value: int) -> bytes:
    """A pair whose value is not worth keeping."""
    if not -_INT64_MOST <= value <= _INT64_MOST:
        return _pair(key, _any(str(value)))
    named, written = _key(key), varint(value & _UINT64)
    size = len(written) + 1
    return b"".join((varint(len(named) + size + 2), named, b"\x12", _BYTE[size], b"\x18", written))


def _pair(key: str, value: bytes) -> bytes:
    """A KeyValue with its length before it. value: an AnyValue."""
    pair = _key(key) + _field(b"\x12", value)
    return varint(len(pair)) + pair


def _any(value: object) -> bytes:
    """An AnyValue; an integer beyond 64 bits and anything of another kind become text."""
    if isinstance(value, str):
        return _field(b"\x0a", value.encode())
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int) and -_INT64_MOST <= value <= _INT64_MOST:
        return b"\x18" + varint(value & _UINT64)
    if isinstance(value, float):
        return _DOUBLE.pack(0x21, value)
    if isinstance(value, Sequence):
        items = (_field(b"\x0a", str(item).encode()) for item in value)
        return _field(b"\x2a", b"".join(_field(b"\x0a", item) for item in items))
    return _field(b"\x0a", str(value).encode())


def _field(tag: bytes, content: bytes) -> bytes:
    """A field of bytes with its tag and length."""
    return tag + varint(len(content)) + content
