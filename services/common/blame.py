"""Which stage is to blame for a request that took too long, told from its spans alone. PURE.

`blame(server, spans)` takes spans as any backend gives them back: times in nanoseconds of one clock, ids of any one type,
attributes by the names of `services.common.attributes`. A `services.tracestore.core.spans.SpanView` will do, and so will the
records that the services emit.

server: the span that bears the verdict. It is read for SLO_OBJECTIVE_US, SLO_OUTCOME, ERROR_TYPE, SLO_ENDED_IN and its
duration. spans: any spans of its trace, in any order, `server` among them or not; only its own stages count, which are the
spans below it with SLO_STAGE, other requests in the same trace apart.

The time of a request is divided into parts, each nanosecond in one of them. Most parts are a stage's span. Of these, taken
out and put into parts of their own: SLO_COPY_US of any stage (copy), SLO_NEIGHBOUR_US of any stage (neighbour). What no span
explains is `unaccounted`. Of compute, what BATCH_PREEMPTED_US says beyond the neighbours' part is the queue's: other work of the
same tenant came between. To blame is the part with the largest *excess*: what it took beyond what it should take. That is
nothing for every part but compute, which should take BATCH_EXPECTED_US, or half of the objective where nothing was expected. So
a model that usually takes 40 of 50 ms is not to blame when it waited for 15. Where the compute time alone exceeds
the objective, and was expected to, compute is to blame whatever else happened. Stages lie beside one another, never within.

A request that ended in an error is `refused` or `failed`, unless it had spent its time before it was dropped; one that found no
replica of its model loaded is a `cold start`, and so is a batch that took too long with nothing known of its shape (BATCH_COLD).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import services.common.attributes as names

_US = 1_000

_PART_OF_STAGE = {
    names.STAGE_ADMIT: names.CAUSE_FRONTEND,
    names.STAGE_SEND: names.CAUSE_FRONTEND,
    names.STAGE_TRANSPORT: names.CAUSE_TRANSPORT,
    names.STAGE_DECODE: names.CAUSE_DECODE,
    names.STAGE_QUEUE: names.CAUSE_QUEUE,
    names.STAGE_BATCH_WAIT: names.CAUSE_BATCH,
    names.STAGE_COMPUTE: names.CAUSE_COMPUTE,
    names.STAGE_ENCODE: names.CAUSE_ENCODE,
    names.STAGE_DELIVER: names.CAUSE_FRONTEND,
    names.STAGE_UNACCOUNTED: names.CAUSE_UNACCOUNTED,
}
_COLD = frozenset({"MODEL_NOT_READY", "MODEL_UNPLACED"})
_BROKEN = frozenset({"MODEL_FAILED", "WORKER_LOST", "EXECUTOR_LOST", "INTERNAL", "OUT_OF_MEMORY"})
_TIMED_OUT = frozenset({"DEADLINE_EXCEEDED", "CANCELLED"})
_SPENT = 0.5
"""A request that was dropped after this part of its budget has waited, and was not merely refused."""
_WAITED_IN = {
    "admit": names.CAUSE_FRONTEND,
    "credit": names.CAUSE_FRONTEND,
    "connect": names.CAUSE_TRANSPORT,
    "transport": names.CAUSE_TRANSPORT,
    "decode": names.CAUSE_DECODE,
    "queue": names.CAUSE_QUEUE,
}
"""What is to blame where a dropped request has no spans below it: by SLO_ENDED_IN."""


class Span(Protocol):
    """What is read of a span."""

    @property
    def span_id(self) -> Any:
        """Its id."""

    @property
    def parent_span_id(self) -> Any:
        """Its parent's, None or empty: none."""

    @property
    def start_ns(self) -> int:
        """When it began."""

    @property
    def end_ns(self) -> int:
        """When it ended, on the same clock."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """By name."""


@dataclass(frozen=True, slots=True)
class Blame:
    """Why a request took as long as it did.

    cause: one of services.common.attributes.CAUSES. took_ns: that part's time; excess_ns: what of it was too much.
    parts_ns: the whole request by part, adding up to its duration, or to more where spans overlap. unaccounted_ns: of it, what no
    span explains. missing: what the trace cannot show, as it says itself or as its executor's silence does; "" where it is whole.
    """

    cause: str
    took_ns: int
    excess_ns: int
    parts_ns: Mapping[str, int]
    unaccounted_ns: int
    missing: str = ""


def blame(server: Span, spans: Iterable[Span]) -> Blame:
    """Says what is to blame for the time, or the end, of one request; see the top of this file. Never raises for odd spans."""
    stages = below(server, spans)
    duration_ns = max(0, server.end_ns - server.start_ns)
    parts = parts_of(duration_ns, stages)
    objective_ns = _microseconds(server, names.SLO_OBJECTIVE_US) * _US
    expected_ns = _expected(stages)
    excess = dict(parts)
    excess[names.CAUSE_COMPUTE] = _too_much(parts[names.CAUSE_COMPUTE], expected_ns, objective_ns)
    if 0 < objective_ns < min(expected_ns or 0, parts[names.CAUSE_COMPUTE]):
        # No stage but this one could have kept the promise.
        excess[names.CAUSE_COMPUTE] = parts[names.CAUSE_COMPUTE]
        cause = _ended(server, parts, duration_ns) or names.CAUSE_COMPUTE
    else:
        cause = _ended(server, parts, duration_ns) or _largest(excess, stages)
    missing = "; ".join(dict.fromkeys(_missing(server, stages)))
    took_ns, excess_ns = parts.get(cause, 0), excess.get(cause, 0)
    if cause == names.CAUSE_COLD_START and not took_ns:
        took_ns, excess_ns = parts.get(names.CAUSE_COMPUTE, 0), excess.get(names.CAUSE_COMPUTE, 0)
    return Blame(cause, took_ns, excess_ns, parts, parts[names.CAUSE_UNACCOUNTED], missing)


def _missing(server: Span, stages: Iterable[Span]) -> Iterator[str]:
    """What the trace says that it cannot show, and what it does not show though its executor has answered."""
    there = set()
    for span in (server, *stages):
        told = span.attributes.get(names.SLO_MISSING)
        if told:
            yield str(told)
        there.add(span.attributes.get(names.SLO_STAGE))
    if names.STAGE_DELIVER in there and names.STAGE_DECODE not in there:
        yield f"executor {server.attributes.get(names.EXECUTOR_ID, '')!r}: it answered, and its spans did not come"


def below(server: Span, spans: Iterable[Span]) -> list[Span]:
    """The stages of one request: spans below its own that name a stage, by start. Other requests of the trace are left out."""
    children: dict[Any, list[Span]] = {}
    for span in spans:
        if span.parent_span_id:
            children.setdefault(span.parent_span_id, []).append(span)
    found: list[Span] = []
    seen, waiting = {server.span_id}, [server.span_id]
    while waiting:
        for span in children.get(waiting.pop(), ()):
            if span.span_id in seen or names.SLO_VIOLATED in span.attributes:
                continue
            seen.add(span.span_id)
            waiting.append(span.span_id)
            if span.attributes.get(names.SLO_STAGE) in _PART_OF_STAGE:
                found.append(span)
    return sorted(found, key=lambda span: (span.start_ns, span.end_ns))


def parts_of(duration_ns: int, stages: Iterable[Span]) -> dict[str, int]:
    """The time of a request by cause. What the stages do not explain of `duration_ns` is unaccounted."""
    parts = dict.fromkeys(names.CAUSES, 0)
    explained_ns = 0
    for span in stages:
        took_ns = max(0, span.end_ns - span.start_ns)
        part = _PART_OF_STAGE[span.attributes[names.SLO_STAGE]]
        explained_ns += took_ns if part != names.CAUSE_UNACCOUNTED else 0
        for name, other in ((names.SLO_COPY_US, names.CAUSE_COPY), (names.SLO_NEIGHBOUR_US, names.CAUSE_NEIGHBOUR)):
            inside_ns = min(took_ns, _microseconds(span, name) * _US)
            parts[other] += inside_ns
            took_ns -= inside_ns
        if part == names.CAUSE_COMPUTE:
            # What it was interrupted for, beyond what other tenants had, it waited for work of its own tenant.
            preempted_us = _microseconds(span, names.BATCH_PREEMPTED_US) - _microseconds(span, names.SLO_NEIGHBOUR_US)
            waited_ns = min(took_ns, max(0, preempted_us) * _US)
            parts[names.CAUSE_QUEUE] += waited_ns
            took_ns -= waited_ns
        parts[part] += took_ns if part != names.CAUSE_UNACCOUNTED else 0
    parts[names.CAUSE_UNACCOUNTED] = max(0, duration_ns - explained_ns)
    return parts


def _expected(stages: Iterable[Span]) -> int | None:
    """What the batch should have taken; None where nothing says so."""
    told = [
        _microseconds(span, names.BATCH_EXPECTED_US) * _US
        for span in stages
        if span.attributes.get(names.SLO_STAGE) == names.STAGE_COMPUTE and names.BATCH_EXPECTED_US in span.attributes
    ]
    return sum(told) if told else None


def _too_much(computed_ns: int, expected_ns: int | None, objective_ns: int) -> int:
    """What of the compute time is an excess. Where nothing was expected, half of what was promised is not too much."""
    return max(0, computed_ns - (objective_ns // 2 if expected_ns is None else expected_ns))


def _ended(server: Span, parts: Mapping[str, int], duration_ns: int) -> str | None:
    """What is to blame for a request's error; None: there was none, or it was dropped after its time had been spent."""
    reason = str(server.attributes.get(names.ERROR_TYPE, ""))
    if not reason:
        return None
    if reason in _COLD:
        return names.CAUSE_COLD_START
    if reason in _BROKEN:
        return names.CAUSE_FAILED
    if reason not in _TIMED_OUT:
        return names.CAUSE_REFUSED
    budgets = [_microseconds(server, name) for name in (names.SLO_DEADLINE_US, names.SLO_OBJECTIVE_US)]
    if duration_ns < _SPENT * min((each for each in budgets if each), default=0) * _US:
        return names.CAUSE_REFUSED
    if parts[names.CAUSE_UNACCOUNTED] > _SPENT * duration_ns:
        return _WAITED_IN.get(str(server.attributes.get(names.SLO_ENDED_IN, "")))
    return None


def _largest(excess: Mapping[str, int], stages: Iterable[Span]) -> str:
    """The part with the largest excess: of equals the first in the order of CAUSES, which dictionaries keep."""
    cause = max(excess, key=lambda part: excess[part])
    if cause == names.CAUSE_COMPUTE and any(span.attributes.get(names.BATCH_COLD) is True for span in stages):
        return names.CAUSE_COLD_START
    return cause


def _microseconds(span: Span, name: str) -> int:
    value = span.attributes.get(name)
    return max(0, int(value)) if isinstance(value, int | float) and not isinstance(value, bool) else 0
