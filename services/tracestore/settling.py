"""What spans say of requests, added up before the spans are gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

import structlog
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import services.common.attributes as names
from services.common.blame import blame
from services.common.errors import Refusal
from services.tracestore.core.rollups import Counts, Slot, Worst, plus
from services.tracestore.rollups import MINUTE_S, Rollups
from services.tracestore.rows import MOST_INDEXED_CHARS, text_of
from services.tracestore.views import scalar

log = structlog.get_logger()

SETTLED_AFTER_S = 30
"""A trace's spans come from several processes: so long after its frontend's nothing more is waited for."""
PASS_REQUESTS = 200
MOST_TRACE_SPANS = 1000
"""Of a trace with more, whose id a caller has used again and again, those that came at about the same time are looked at."""
MOST_ASKEW_S = 3600
"""A span whose time is further from its arrival than this counts when it arrived."""
REQUESTS = f"""SELECT id, trace_id, received_s, violated, body FROM spans
               WHERE id > ? AND id <= ? AND kind = {Span.SPAN_KIND_SERVER} AND tenant IS NOT NULL ORDER BY id LIMIT ?"""
TRACE = f"SELECT body FROM spans WHERE trace_id = ? ORDER BY abs(id - ?) LIMIT {MOST_TRACE_SPANS}"
READ = ("slo.", "batch.", "error.")
"""What attributes begin with that say where time went."""


class Settling:
    """Reads requests out of spans and adds them to the rollups, each once, in the order of their arrival.

    For the writer's thread alone: `connection` is the one that is passed to each call.
    """

    def __init__(self, rollups: Rollups, connection: sqlite3.Connection) -> None:
        self._rollups = rollups
        self._through = rollups.settled
        latest = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'spans'").fetchone()
        if self._through > (latest[0] if latest else 0):
            # The spans' database was made anew, and counts from the beginning.
            rollups.settle([], 0)
            self._through = 0

    def ripe(self, connection: sqlite3.Connection, now_s: int) -> bool:
        """Settles some of what has been here long enough; says whether there is more."""
        sql = "SELECT max(id) FROM spans WHERE id > ? AND received_s <= ?"
        held = connection.execute(sql, (self._through, now_s - SETTLED_AFTER_S)).fetchone()[0]
        return held is not None and not self._settle(connection, held)

    def before(self, connection: sqlite3.Connection, span: int) -> None:
        """Settles all requests up to this span, which is about to be deleted: also where what it says cannot be kept, since
        the spans that come need the room."""
        try:
            while self._through < span:
                self._settle(connection, span)
        except Refusal as refusal:
            log.error("what old spans said is lost: the rollups take nothing", error=refusal.message)
            self._through = span

    def _settle(self, connection: sqlite3.Connection, last: int) -> bool:
        """Settles the next requests up to span `last`; says whether those were all."""
        found = connection.execute(REQUESTS, (self._through, last, PASS_REQUESTS)).fetchall()
        through = found[-1][0] if len(found) == PASS_REQUESTS else last
        slots: dict[tuple[str, str, int], Counts] = {}
        for span, trace_id, received_s, violated, body in found:
            own = Span.FromString(body)
            if text_of(own.attributes, names.SLO_VIOLATED) is None:
                continue
            key = _slot(own, received_s)
            counts = _violated(connection, trace_id, span, own) if violated else Counts(kept=1)
            slots[key] = plus(slots.get(key, Counts()), counts)
        self._rollups.settle([Slot(*key, MINUTE_S, counts) for key, counts in slots.items()], through)
        self._through = through
        return through == last


def _slot(span: Span, received_s: int) -> tuple[str, str, int]:
    """(tenant, model, minute)"""
    tenant, model = (text_of(span.attributes, name) or "" for name in (names.TENANT_NAME, names.MODEL_NAME))
    ended_s = span.end_time_unix_nano // 1_000_000_000
    at_s = ended_s if abs(ended_s - received_s) <= MOST_ASKEW_S else received_s
    return tenant[:MOST_INDEXED_CHARS], model[:MOST_INDEXED_CHARS], at_s // MINUTE_S * MINUTE_S


def _violated(connection: sqlite3.Connection, trace_id: bytes, number: int, own: Span) -> Counts:
    """What one request that violated adds: its cause is told by the spans below its own."""
    try:
        cause = blame(_brief(own), _below(connection, trace_id, number)).cause
    except sqlite3.Error:
        raise
    except Exception as error:
        # Spans are what anybody sent: none may stop the thread that writes all others.
        log.warning("a trace that cannot be read", trace=trace_id.hex(), error=repr(error))
        cause = names.CAUSE_UNACCOUNTED
    took_us = (own.end_time_unix_nano - own.start_time_unix_nano) // 1000
    return Counts(kept=1, kept_violated=1, causes={cause: 1}, worst=[Worst(took_us, trace_id.hex(), cause)])


def _below(connection: sqlite3.Connection, trace_id: bytes, near: int) -> Iterator[Brief]:
    for (body,) in connection.execute(TRACE, (trace_id, near)):
        span = Span.FromString(body)
        if span.parent_span_id:
            yield _brief(span)


class Brief(NamedTuple):
    """What `blame` reads of a span, and no more: this is done for every violator."""

    span_id: bytes
    parent_span_id: bytes
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]


def _brief(span: Span) -> Brief:
    facts = {pair.key: scalar(pair.value) for pair in span.attributes if pair.key.startswith(READ)}
    return Brief(span.span_id, span.parent_span_id, span.start_time_unix_nano, span.end_time_unix_nano, facts)
