"""One pass over the top level of a serialised inference.ModelInferRequest, tensors left untouched.

The frontend forwards requests as the bytes that came, so it reads only what it decides by: the model's name and version,
and the parameters that set time and rank. What protobuf says of repeated and unknown fields holds here too: the last
value wins, whatever the order; a known field of another wire type is skipped. Every loop is bounded, so that a hostile
message costs its sender a refusal and nobody else the event loop.
"""

from __future__ import annotations

import math
import struct

import msgspec

from services.common.errors import Reason, Refusal, invalid

MICROSECOND_NS = 1_000
MOST_NS = 7 * 86_400 * 1_000_000_000
"""Longer budgets than a week are read as a week, so that no arithmetic on the wire overflows."""
LONGEST_TEXT_BYTES = 64
ENTRY_FIELDS = 16
"""Fields of one parameter that are read: canonical messages have 2."""
LOWEST_PRIORITY = (1 << 32) - 1

_OF_INTEREST = frozenset((b"timeout", b"priority", b"slo_ms", b"sequence_id", b"sequence_start", b"sequence_end"))
SHARED_REGION = b"shared_memory_region"
"""The parameter of a tensor that lies in a region of shared memory."""
_SHARED_BYTES = len(SHARED_REGION)
_DOUBLE = struct.Struct("<d")
_BOOL, _INT64, _STRING, _DOUBLE_KIND, _UINT64 = "bool", "int64", "string", "double", "uint64"
_Value = tuple[str, int | float | bytes]


class Limits(msgspec.Struct, frozen=True):
    """How much one request may hold. fields: of the top level in all; parameters: entries of `parameters`; tensors: inputs
    and requested outputs together; name_bytes: of a model's name, its version, and the request's id."""

    fields: int = 4096
    parameters: int = 128
    tensors: int = 1024
    name_bytes: int = 256


class Head(msgspec.Struct, gc=False):
    """What the frontend reads of a request.

    model_version: as the client wrote it; empty: the server's choice. request_id: not checked, its executor does.
    timeout_ns, objective_ns: budgets from the arrival; None: the request names none.
    priority: the order of the Execute contract, where higher goes first and 0 is usual.
    shared: some tensor may name a region of shared memory; whoever looks closer may find that none does.
    """

    model_name: str
    model_version: str = ""
    request_id: bytes = b""
    timeout_ns: int | None = None
    objective_ns: int | None = None
    priority: int = 0
    shared: bool = False


def scan(data: bytes, limits: Limits) -> Head:
    """Reads a request's head. Raises Refusal (FIELD_INVALID, UNSUPPORTED) and nothing else, whatever the bytes."""
    name = version = request_id = b""
    entries: list[bytes] | None = None
    shared = False
    position, end, tensors = 0, len(data), 0
    left = limits.fields
    try:
        while position < end:
            if left == 0:
                raise invalid("request", f"has more than {limits.fields} fields", limit=limits.fields)
            left -= 1
            tag = data[position]
            position += 1
            if tag > 0x7F:
                tag, position = _varint(data, position - 1)
            if tag & 7 != 2:
                position = _skipped(data, position, tag)
                continue
            size = data[position]
            position += 1
            if size > 0x7F:
                size, position = _varint(data, position - 1)
            start, position = position, position + size
            if position > end or tag < 8:
                raise _malformed(start)
            if tag == 0x0A:
                name = data[start:position]
            elif tag == 0x22:
                if entries is None:
                    entries = []
                entries.append(data[start:position])
            elif tag == 0x2A or tag == 0x32:
                tensors += 1
                # Without that parameter a tensor's head is shorter than the parameter alone would be.
                if size > _SHARED_BYTES and data.find(SHARED_REGION, start, position) >= 0:
                    shared = True
            elif tag == 0x12:
                version = data[start:position]
            elif tag == 0x1A:
                request_id = data[start:position]
    except IndexError:
        raise _malformed(end) from None
    if tensors > limits.tensors:
        raise invalid("inputs", f"has {tensors} tensors with outputs, more than {limits.tensors}", limit=limits.tensors)
    most = limits.name_bytes
    if len(request_id) > most:
        raise invalid("id", f"has {len(request_id)} bytes, more than {most}", limit=most)
    head = Head(_text("model_name", name, most), _text("model_version", version, most) if version else "", request_id)
    head.shared = shared
    if entries is not None:
        if len(entries) > limits.parameters:
            raise invalid("parameters", f"has {len(entries)} entries, more than {limits.parameters}")
        _apply(head, _parameters(entries))
    return head


def _malformed(position: int) -> Refusal:
    return invalid("request", f"is no ModelInferRequest: its bytes break off or go wrong near byte {position}")


def _text(field: str, raw: bytes, most: int) -> str:
    if len(raw) > most:
        raise invalid(field, f"has {len(raw)} bytes, more than {most}", limit=most)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise invalid(field, "is not UTF-8") from None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """(value of 64 bits, position after it). IndexError where the bytes end first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise _malformed(position)


def _skipped(data: bytes, position: int, tag: int) -> int:
    """The position after a field that is not length-delimited."""
    kind = tag & 7
    if tag < 8 or kind not in (0, 1, 5):
        raise _malformed(position)
    if kind == 0:
        return _varint(data, position)[1]
    position += 8 if kind == 1 else 4
    if position > len(data):
        raise _malformed(len(data))
    return position


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """(tag, value) of each field of a small message: an integer for varints, else bytes."""
    fields: list[tuple[int, int | bytes]] = []
    position, end = 0, len(data)
    try:
        while position < end:
            if len(fields) == ENTRY_FIELDS:
                raise invalid("parameters", f"an entry has more than {ENTRY_FIELDS} fields", limit=ENTRY_FIELDS)
            tag, position = _varint(data, position)
            if tag & 7 == 0 and tag >= 8:
                number, position = _varint(data, position)
                fields.append((tag, number))
                continue
            if tag & 7 == 2 and tag >= 8:
                size, start = _varint(data, position)
                position = start + size
                if position > end:
                    raise _malformed(end)
            else:
                start, position = position, _skipped(data, position, tag)
            fields.append((tag, data[start:position]))
    except IndexError:
        raise invalid("parameters", "an entry breaks off") from None
    return fields


def _parameters(entries: list[bytes]) -> dict[bytes, _Value | None]:
    """The parameters that the frontend goes by, the last entry of a name winning; None: one without a value."""
    found: dict[bytes, _Value | None] = {}
    for entry in entries:
        key, value = b"", b""
        for tag, content in _fields(entry):
            if tag == 0x0A and isinstance(content, bytes):
                key = content
            elif tag == 0x12 and isinstance(content, bytes):
                # Messages that come twice are merged: the members of a oneof after one another, the last one winning.
                value += content
        if key in _OF_INTEREST:
            found[key] = _chosen(value)
    return found


def _chosen(value: bytes) -> _Value | None:
    """The member of InferParameter's oneof that was set last."""
    chosen: _Value | None = None
    for tag, content in _fields(value):
        if isinstance(content, int):
            if tag == 0x08:
                chosen = (_BOOL, int(content != 0))
            elif tag == 0x10:
                chosen = (_INT64, content - (1 << 64) if content >> 63 else content)
            elif tag == 0x28:
                chosen = (_UINT64, content)
        elif tag == 0x1A:
            chosen = (_STRING, content)
        elif tag == 0x21:
            chosen = (_DOUBLE_KIND, _DOUBLE.unpack(content)[0])
    return chosen


def _apply(head: Head, parameters: dict[bytes, _Value | None]) -> None:
    for name, value in parameters.items():
        if value is None:
            continue
        field = f'parameters["{name.decode()}"]'
        if name == b"timeout":
            head.timeout_ns = _timeout_ns(field, value)
        elif name == b"slo_ms":
            head.objective_ns = _objective_ns(field, value)
        elif name == b"priority":
            head.priority = _priority(field, value)
        elif value[1] not in (0, b"", b"0"):
            raise Refusal(
                Reason.UNSUPPORTED,
                f"{field}: sequences are not served; send the state as an input and take it from an output",
                field=field,
            )


def _whole(field: str, value: _Value) -> int:
    kind, content = value
    if kind in (_INT64, _UINT64) and isinstance(content, int):
        return content
    if kind == _STRING and isinstance(content, bytes) and len(content) <= LONGEST_TEXT_BYTES:
        try:
            return int(content.decode())
        except ValueError:
            pass
    raise invalid(field, "must be a whole number, as int64, uint64 or text")


def _timeout_ns(field: str, value: _Value) -> int | None:
    microseconds = _whole(field, value)
    if microseconds < 0:
        raise invalid(field, f"must be 0 (none) or more microseconds, not {microseconds}")
    return min(microseconds * MICROSECOND_NS, MOST_NS) if microseconds else None


def _objective_ns(field: str, value: _Value) -> int:
    kind, content = value
    try:
        if kind == _STRING and isinstance(content, bytes) and len(content) <= LONGEST_TEXT_BYTES:
            milliseconds = float(content.decode())
        elif kind in (_INT64, _UINT64, _DOUBLE_KIND):
            milliseconds = float(content)
        else:
            raise ValueError
    except ValueError:
        raise invalid(field, "must be a number of milliseconds, as double, int64, uint64 or text") from None
    if math.isnan(milliseconds) or milliseconds <= 0:
        raise invalid(field, f"must be more than 0 milliseconds, not {milliseconds:g}")
    # Whole microseconds, as on every wire: whoever recomputes the verdict has the same number.
    return max(1, int(min(milliseconds * 1_000, MOST_NS // MICROSECOND_NS))) * MICROSECOND_NS


def _priority(field: str, value: _Value) -> int:
    """Triton's order (1 first, 0: the usual) as the Execute contract's (higher first, 0 the usual, which goes last)."""
    level = _whole(field, value)
    if not 0 <= level < 1 << 64:
        raise invalid(field, f"must be 0 (the usual) or more, 1 being the highest, not {level}")
    return LOWEST_PRIORITY - min(level, LOWEST_PRIORITY) + 1 if level else 0


def request_id(data: bytes, limits: Limits) -> bytes:
    """A request's id as it came; empty where there is none, or no request."""
    try:
        return scan(data, limits).request_id
    except Refusal:
        return b""


def framed(response: bytes, more: bytes) -> bytes:
    """A serialised inference.ModelStreamInferResponse that holds this response, with `more` of its fields behind it."""
    size, prefix = len(response) + len(more), bytearray(b"\x12")
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return b"".join((prefix, response, more))
