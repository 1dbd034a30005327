"""Finding a request's parts without copying them: the top-level fields of a serialised inference.ModelInferRequest.

Only the top level is read; what it holds is told apart by tag and length. The bytes come from strangers: every length is
checked against what is there, and the number of fields is bounded, so that a scan costs little whatever it is given.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_FIELDS = 16_384
"""Top-level fields that one request may have."""

_ID_TAG = 3 << 3 | 2
_RAW_TAG = 7 << 3 | 2
_VARINT_BYTES = 10


class Malformed(Exception):
    """These bytes are not a protobuf message, or not one that is worth reading. The message says at which offset."""


class Scanned(NamedTuple):
    """A request's parts.

    head: every field but `id` and `raw_input_contents`, as they came. request_id: the last `id`, not yet checked to be UTF-8.
    spans: start and length of each of `raw_input_contents`, in order.
    """

    head: bytes
    request_id: bytes
    spans: tuple[tuple[int, int], ...]


def scan(payload: bytes | memoryview) -> Scanned:
    """Splits a whole payload. Raises Malformed."""
    at, end, kept_from, fields = 0, len(payload), 0, 0
    kept: list[bytes | memoryview] = []
    request_id = b""
    spans: list[tuple[int, int]] = []
    while at < end:
        start = at
        tag, at = _varint(payload, at, end)
        fields += 1
        if fields > MAX_FIELDS:
            raise Malformed(f"more than {MAX_FIELDS} top-level fields")
        if tag & 7 != 2 or tag < 8:
            at = _skip(payload, tag, at, end)
            continue
        length, at = _varint(payload, at, end)
        if length > end - at:
            raise Malformed(f"field {tag >> 3} at byte {start} claims {length} bytes where {end - at} are left")
        if tag in (_RAW_TAG, _ID_TAG):
            if start > kept_from:
                kept.append(payload[kept_from:start])
            kept_from = at + length
            if tag == _RAW_TAG:
                spans.append((at, length))
            else:
                request_id = bytes(payload[at : at + length])
        at += length
    if end > kept_from:
        kept.append(payload[kept_from:end])
    return Scanned(b"".join(kept), request_id, tuple(spans))


def first_raw_start(beginning: bytes | memoryview) -> int | None:
    """Where the first of `raw_input_contents` starts, as far as a payload's first bytes tell; None: they do not."""
    at, end = 0, len(beginning)
    try:
        for _ in range(MAX_FIELDS):
            tag, at = _varint(beginning, at, end)
            if tag & 7 != 2 or tag < 8:
                at = _skip(beginning, tag, at, end)
                continue
            length, at = _varint(beginning, at, end)
            if tag == _RAW_TAG:
                return at
            at += length
    except Malformed:
        return None
    return None


def varint(value: int) -> bytes:
    """A non-negative integer as protobuf writes it."""
    if value < 0x80:
        return bytes((value,))
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _varint(payload: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """The value at `at`, and where the next thing starts."""
    if at >= end:
        raise Malformed(f"it ends at byte {end}, inside a field")
    byte = payload[at]
    at += 1
    if byte < 0x80:
        return byte, at
    value, shift = byte & 0x7F, 7
    for place in range(at, min(end, at + _VARINT_BYTES - 1)):
        byte = payload[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + 1
        shift += 7
    raise Malformed(f"a number near byte {at} does not end")


def _skip(payload: bytes | memoryview, tag: int, at: int, end: int) -> int:
    """Where the next field starts, past one that is not length-delimited."""
    wire_type = tag & 7
    if tag < 8 or tag >> 32:
        raise Malformed(f"the field number before byte {at} is out of range")
    if wire_type == 0:
        return _varint(payload, at, end)[1]
    if wire_type not in (1, 5):
        raise Malformed(f"wire type {wire_type} before byte {at} has no place in a request")
    stop = at + (8 if wire_type == 1 else 4)
    if stop > end:
        raise Malformed(f"it ends at byte {end}, inside a field")
    return stop
