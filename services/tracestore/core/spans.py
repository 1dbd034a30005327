"""A span as it is read: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Scalar = str | bool | int | float


@dataclass(frozen=True, slots=True)
class Link:
    """A span that points to another one. Ids are lower-case hexadecimal."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at one moment: Unix nanoseconds."""

    name: str
    at_ns: int
    attributes: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanView:
    """One span. Times are Unix nanoseconds, ids lower-case hexadecimal; kind is "server", "internal" …"""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    service: str
    start_ns: int
    end_ns: int
    kind: str = "internal"
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()
    error: str | None = None

    @property
    def duration_ns(self) -> int:
        """From start to end."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class Node:
    """A span's place in its trace, in the order of reading."""

    span: SpanView
    depth: int
    orphan: bool
    """Its parent is not among the spans, though it should be. A server span's parent may be a caller elsewhere."""


def tree(spans: list[SpanView]) -> list[Node]:
    """The spans of one trace, each below its parent and siblings by start; every span exactly once.

    Spans with a parent that is missing, and spans whose parents go in a circle, stand at the top.
    """
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns, span.span_id))
    ids = {span.span_id for span in ordered}
    children: dict[str | None, list[SpanView]] = {}
    for span in ordered:
        parent = span.parent_span_id if span.parent_span_id in ids else None
        children.setdefault(parent, []).append(span)
    nodes: list[Node] = []
    placed: set[int] = set()
    for root in [*children.get(None, []), *ordered]:
        if id(root) not in placed:
            orphan = root.parent_span_id is not None and root.kind != "server"
            _place(root, orphan, children, nodes, placed)
    return nodes


def _place(
    root: SpanView, orphan: bool, children: Mapping[str | None, list[SpanView]], nodes: list[Node], placed: set[int]
) -> None:
    waiting = [Node(root, 0, orphan)]
    while waiting:
        node = waiting.pop()
        if id(node.span) in placed:
            continue
        placed.add(id(node.span))
        nodes.append(node)
        below = children.get(node.span.span_id, [])
        waiting += [Node(span, node.depth + 1, False) for span in reversed(below)]
