"""A finished span as a record, and the ids and the header by which traces hang together."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

Value = str | bool | int | float | Sequence[str]
"""What an attribute may hold. Integers are 64 bits, signed."""


class Kind(IntEnum):
    """The kinds of OTLP's Span.SpanKind."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


@dataclass(slots=True)
class SpanRecord:
    """One finished span. Times are nanoseconds of this process' monotonic clock (`time.monotonic_ns`).

    trace_id: 16 bytes; span_id and parent_span_id: 8 bytes. Not changed once it has been handed on.
    """

    name: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes | None
    start_ns: int
    end_ns: int
    kind: Kind = Kind.INTERNAL
    attributes: dict[str, Value] = field(default_factory=dict)
    events: list[tuple[str, int, dict[str, Value]]] = field(default_factory=list)
    """(name, monotonic ns, attributes)"""
    links: list[tuple[bytes, bytes, dict[str, Value]]] = field(default_factory=list)
    """(trace id, span id, attributes)"""
    error: str | None = None
    """What went wrong, for people; None: nothing did."""
    trace_state: str = ""
    """The W3C `tracestate` that came with the parent."""


def new_trace_id() -> bytes:
    """16 random bytes, never all zero. Ids name things and protect nothing: a fast generator will do."""
    return (random.getrandbits(128) or 1).to_bytes(16, "big")


def new_span_id() -> bytes:
    """8 random bytes, never all zero."""
    return (random.getrandbits(64) or 1).to_bytes(8, "big")


_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST_TRACEPARENT = 256


def parse_traceparent(text: str) -> tuple[bytes, bytes, int] | None:
    """(trace id, parent span id, flags) of a W3C `traceparent`; None for anything that is not one.

    Source: W3C Trace Context, level 1: lower case only, no zero ids, version ff refused, further fields allowed in
    versions that we do not know yet and in no other.
    """
    if len(text) > _LONGEST_TRACEPARENT:
        return None
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace, parent, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    trace_id, parent_span_id = bytes.fromhex(trace), bytes.fromhex(parent)
    if not any(trace_id) or not any(parent_span_id):
        return None
    return trace_id, parent_span_id, int(flags, 16)


_LONGEST_TRACESTATE = 512
_TRACESTATE = re.compile(r"[\x20-\x7e\t]*")


def parse_tracestate(text: str) -> str:
    """A W3C `tracestate` as it is passed on; "" for one that is too long or holds what no header may."""
    return text if len(text) <= _LONGEST_TRACESTATE and _TRACESTATE.fullmatch(text) else ""


def format_traceparent(trace_id: bytes, span_id: bytes, *, sampled: bool = True) -> str:
    """The W3C `traceparent` of a span: "00-…-…-01"."""
    return f"00-{trace_id.hex()}-{span_id.hex()}-{'01' if sampled else '00'}"
