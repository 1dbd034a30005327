"""A trace as lines for a terminal: a tree, and a bar for when each span ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import services.common.attributes as names
from services.tracestore.core.lane import Neighbour, neighbours
from services.tracestore.core.spans import Node, Scalar, SpanView, tree
from services.tracestore.core.verdicts import Request, requests

SHOWN = (
    (names.TENANT_NAME, "tenant"),
    (names.TENANT_NEIGHBOUR, "tenant"),
    (names.MODEL_NAME, "model"),
    (names.MODEL_VERSION, "version"),
    (names.SLO_OUTCOME, "outcome"),
    (names.SLO_ADMISSION, "admitted"),
    (names.EXECUTOR_ID, "executor"),
    (names.LANE_ID, "lane"),
    (names.LANE_PARTITION, "on"),
    (names.BATCH_ID, "batch"),
    (names.BATCH_ROWS, "rows"),
    (names.ERROR_TYPE, "error"),
    (names.SLO_MISSING, "missing"),
)
"""Attributes that a line names, in this order, and the word for each."""
BAR_COLUMNS = 28
MOST_DEPTH = 12
"""Deeper spans are not indented further."""
MOST_VALUE_CHARS = 60


@dataclass(frozen=True, slots=True)
class _Scale:
    start_ns: int
    end_ns: int

    def bar(self, span: SpanView) -> str:
        """Where the span lies, in BAR_COLUMNS characters; never less than one mark."""
        whole = max(1, self.end_ns - self.start_ns)
        at = [(BAR_COLUMNS * (time - self.start_ns)) // whole for time in (span.start_ns, span.end_ns)]
        first = min(max(at[0], 0), BAR_COLUMNS - 1)
        last = min(max(at[1], first + 1), BAR_COLUMNS)
        return " " * first + "━" * (last - first) + " " * (BAR_COLUMNS - last)


def render(spans: Sequence[SpanView], linked: Sequence[SpanView] = (), *, columns: int = 120) -> list[str]:
    """The lines of one trace, who shared its lane, and beneath it the traces in `linked` (its batch, those of its neighbours), on the
    same time scale.

    columns: the width of a line at most. No spans, no lines.
    """
    if not spans:
        return []
    scale = _Scale(min(span.start_ns for span in spans), max(span.end_ns for span in spans))
    label_columns = _label_columns([*spans, *linked], columns)
    lines = [_heading(spans), *_rows(spans, scale, label_columns)]
    for request in requests(spans):
        lines += [_spent(request), *_blamed(request)]
    lines += [_shared(each) for each in neighbours(spans, linked)]
    kinds = {link.trace_id: str(link.attributes.get(names.LINK_KIND, "")) for span in spans for link in span.links}
    traces: dict[str, list[SpanView]] = {}
    for span in linked:
        traces.setdefault(span.trace_id, []).append(span)
    for trace_id, members in sorted(traces.items(), key=lambda item: min(span.start_ns for span in item[1])):
        lines += ["", _link_heading(trace_id, kinds.get(trace_id, ""), members), *_rows(members, scale, label_columns)]
    return [line[:columns].rstrip() for line in lines]


def _blamed(request: Request) -> Iterator[str]:
    """Why a request that violated did, and what its trace cannot show."""
    if request.recorded:
        took = f" {duration_text(request.why.took_ns)}" if request.why.took_ns else ""
        beyond = f", {duration_text(request.why.excess_ns)} too much" if request.why.excess_ns else ""
        yield f"to blame: {printable(request.cause)}{took}{beyond}"
    if request.why.missing:
        yield f"missing: {printable(request.why.missing)}"


def _shared(neighbour: Neighbour) -> str:
    stretches = "1 stretch" if neighbour.stretches == 1 else f"{neighbour.stretches} stretches"
    known = f" ({', '.join(map(printable, neighbour.names))})" if neighbour.names else ""
    return f"shared the lane: {printable(neighbour.label)}{known} {duration_text(neighbour.took_ns)} in {stretches}"


def _link_heading(trace_id: str, kind: str, members: Sequence[SpanView]) -> str:
    if kind == names.LINK_NEIGHBOUR:
        return f"a neighbour's batch {trace_id}"
    if kind != names.LINK_BATCH:
        return f"linked {trace_id}"
    batch = next((span for span in members if span.name == names.SPAN_BATCH), members[0])
    kept = sum(link.attributes.get(names.LINK_KIND) == names.LINK_MEMBER for link in batch.links)
    parts = [f"rode in batch {trace_id}"]
    for key, word in ((names.BATCH_REQUESTS, "request"), (names.BATCH_ROWS, "row"), (names.BATCH_SLICES, "slice")):
        if key in batch.attributes:
            count = _text(batch.attributes[key])
            parts.append(f"{count} {word}{'' if count == '1' else 's'}")
    if kept:
        parts.append(f"{kept} with a trace")
    return ", ".join(parts)


def duration_text(nanoseconds: int) -> str:
    """A duration in the unit that suits it: "1.23 ms"."""
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1_000)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.2f} {unit}"
    return f"{nanoseconds} ns"


def printable(text: str) -> str:
    """Text that cannot steer a terminal: whatever is not printable becomes "·"; long text is cut."""
    cut = text if len(text) <= MOST_VALUE_CHARS else text[: MOST_VALUE_CHARS - 1] + "…"
    return "".join(char if char.isprintable() else "·" for char in cut)


def _heading(spans: Sequence[SpanView]) -> str:
    whole = max(span.end_ns for span in spans) - min(span.start_ns for span in spans)
    count = "1 span" if len(spans) == 1 else f"{len(spans)} spans"
    parts = [f"trace {spans[0].trace_id}", count, duration_text(whole)]
    judged = [span.attributes[names.SLO_VIOLATED] for span in spans if names.SLO_VIOLATED in span.attributes]
    if judged:
        parts.append("VIOLATED" if any(judged) else "within its objective")
    return "  ".join(parts)


def _label_columns(spans: Sequence[SpanView], columns: int) -> int:
    longest = max(len(_label(node)) for node in tree(list(spans)))
    return max(8, min(longest, columns - BAR_COLUMNS - 14, 56))


def _label(node: Node) -> str:
    mark = " (parent missing)" if node.orphan else ""
    return "  " * min(node.depth, MOST_DEPTH) + f"{printable(node.span.name)} · {printable(node.span.service)}{mark}"


def _rows(spans: Sequence[SpanView], scale: _Scale, label_columns: int) -> list[str]:
    return [
        f"{_label(node)[:label_columns]:{label_columns}} |{scale.bar(node.span)}| "
        f"{duration_text(node.span.duration_ns):>9}  {_notes(node.span)}"
        for node in tree(list(spans))
    ]


def _notes(span: SpanView) -> str:
    said = [f"{word}={_text(span.attributes[key])}" for key, word in SHOWN if key in span.attributes]
    objective_us = span.attributes.get(names.SLO_OBJECTIVE_US)
    if isinstance(objective_us, int | float) and not isinstance(objective_us, bool):
        within = span.duration_ns <= objective_us * 1000
        said.append(f"objective={duration_text(int(objective_us * 1000))}{' ✓' if within else ' ✗'}")
    if span.error is not None:
        said.append(f"error: {printable(span.error)}")
    return " ".join(said)


def _spent(request: Request) -> str:
    """Where one request's time went: its stages in their order, and what none of them explains."""
    order = {stage: place for place, stage in enumerate(names.STAGES)}
    stages = sorted(request.stages_ns.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))
    return "spent: " + ", ".join(f"{printable(stage)} {duration_text(max(0, ns))}" for stage, ns in stages)


def _text(value: Scalar) -> str:
    return printable(str(value))
