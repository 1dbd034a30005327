"""Reading the store: in threads of its own, page by page, within a time limit."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, TracesData

from services.common import attributes
from services.common.errors import Reason, Refusal
from services.tracestore.rows import MOST_INDEXED_CHARS, MOST_NS, text_of
from services.tracestore.schema import open_reader

PAGE_SPANS = 500
PAGE_BYTES = 2 << 20
"""A part of an answer holds at most this and one span: within what any gRPC client takes by default."""
READERS = 2
STEPS_PER_CHECK = 20_000
"""Instructions of SQLite's machine between two looks at the clock: a millisecond or so."""
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Search:
    """Which spans a trace must have one of. Times are Unix nanoseconds, `start_max_ns` exclusive; None: any."""

    start_min_ns: int
    start_max_ns: int
    service: str | None = None
    operation: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    duration_min_ns: int | None = None
    duration_max_ns: int | None = None
    limit: int = 100


# Attributes that have a column; all others are read out of the spans.
COLUMNS: dict[str, tuple[str, Callable[[str], object]]] = {
    attributes.TENANT_NAME: ("tenant", lambda text: text),
    attributes.MODEL_NAME: ("model", lambda text: text),
    attributes.SLO_VIOLATED: ("violated", lambda text: text == "true"),
    # Jaeger's name for a span whose status is an error.
    "error": ("error", lambda text: text == "true"),
}


class Queries:
    """What can be asked of the spans in the database at `path`. Every answer may raise Refusal (DEADLINE_EXCEEDED)."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._path, self._timeout_s = path, timeout_s
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="trace-reader")
        self._own = threading.local()

    def close(self) -> None:
        """Waits for the queries that run."""
        self._threads.shutdown()

    async def trace(
        self, trace_id: bytes, *, start_ns: int = 0, end_ns: int = MOST_NS, tenant: str | None = None
    ) -> AsyncIterator[TracesData]:
        """The spans of a trace, in parts of at most PAGE_SPANS and about PAGE_BYTES; no part where none is held.

        tenant: only spans of this one's; None: all. Another tenant's trace is read as one that is not held.
        """
        after = b""
        while True:
            page = await self._ask(
                partial(_page, trace_id=trace_id, after=after, start_ns=start_ns, end_ns=end_ns, tenant=tenant)
            )
            if not page:
                return
            yield _traces_data(page)
            after = page[-1][0]

    async def find(self, search: Search) -> list[bytes]:
        """Ids of the traces that have a span which matches, by the latest match; at most `limit`."""
        return await self._ask(lambda connection: _find(connection, search))

    async def services(self) -> list[str]:
        """Names of all services, sorted."""
        rows = await self._ask(lambda c: c.execute("SELECT DISTINCT service FROM resources ORDER BY 1").fetchall())
        return [row[0] for row in rows]

    async def operations(self, service: str, kind: int | None) -> list[tuple[str, int]]:
        """(span name, kind) of a service, sorted."""
        sql = """SELECT DISTINCT operation, kind FROM spans
                 WHERE resource IN (SELECT id FROM resources WHERE service = ?) AND (? IS NULL OR kind = ?) ORDER BY 1, 2"""
        return await self._ask(lambda c: c.execute(sql, (service, kind, kind)).fetchall())

    async def _ask(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, question)

    def _answer(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = open_reader(self._path)
        end = time.monotonic() + self._timeout_s
        connection.set_progress_handler(lambda: time.monotonic() > end, STEPS_PER_CHECK)
        try:
            return question(connection)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            message = f"query: it reads for longer than {self._timeout_s:g} s; narrow the time range or name a service"
            raise Refusal(Reason.DEADLINE_EXCEEDED, message, facts={"query_timeout_s": self._timeout_s}) from None


def _page(
    connection: sqlite3.Connection, trace_id: bytes, after: bytes, start_ns: int, end_ns: int, tenant: str | None
) -> list[tuple[bytes, int, bytes, bytes]]:
    sql = """SELECT s.span_id, s.resource, r.body, s.body FROM spans s JOIN resources r ON r.id = s.resource
             WHERE s.trace_id = ? AND s.span_id > ? AND s.start_ns BETWEEN ? AND ?
             AND (? IS NULL OR s.tenant = ?) ORDER BY s.span_id LIMIT ?"""
    page, size_bytes = [], 0
    with closing(connection.execute(sql, (trace_id, after, start_ns, end_ns, tenant, tenant, PAGE_SPANS))) as rows:
        for row in rows:
            page.append(row)
            size_bytes += len(row[3])
            if size_bytes >= PAGE_BYTES:
                break
    return page


def _traces_data(page: list[tuple[bytes, int, bytes, bytes]]) -> TracesData:
    groups: dict[int, ResourceSpans] = {}
    for _, resource, head, body in page:
        if resource not in groups:
            groups[resource] = ResourceSpans.FromString(head)
        groups[resource].scope_spans[0].spans.append(Span.FromString(body))
    return TracesData(resource_spans=groups.values())


def _find(connection: sqlite3.Connection, search: Search) -> list[bytes]:
    rest = {key: value for key, value in search.attributes.items() if key not in COLUMNS}
    found: dict[bytes, None] = {}
    for row, trace_id in _candidates(connection, search):
        if trace_id not in found and (not rest or _matches(connection, row, rest)):
            found[trace_id] = None
            if len(found) >= search.limit:
                break
    return list(found)


def _candidates(connection: sqlite3.Connection, search: Search) -> Iterator[tuple[int, bytes]]:
    """(row, trace id) of spans that match in everything that has a column, the latest first."""
    conditions: list[tuple[str, Any]] = [
        ("start_ns >= ?", search.start_min_ns),
        ("start_ns < ?", search.start_max_ns),
        ("resource IN (SELECT id FROM resources WHERE service = ?)", search.service),
        ("operation = ?", search.operation and search.operation[:MOST_INDEXED_CHARS]),
        ("end_ns - start_ns >= ?", search.duration_min_ns),
        ("end_ns - start_ns <= ?", search.duration_max_ns),
        *_on_columns(search.attributes),
    ]
    asked = [(condition, value) for condition, value in conditions if value is not None]
    where = " AND ".join(condition for condition, _ in asked)
    sql = f"SELECT id, trace_id FROM spans WHERE {where} ORDER BY start_ns DESC"
    yield from connection.execute(sql, [value for _, value in asked])


def _on_columns(wanted: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    for key, text in wanted.items():
        if key == attributes.SLO_VIOLATED and text == "true":
            # An index over a part of the rows is used only where its condition is spelt out.
            yield "violated AND ?", 1
        elif key in COLUMNS:
            column, convert = COLUMNS[key]
            yield f"{column} = ?", convert(text)


def _matches(connection: sqlite3.Connection, row: int, wanted: Mapping[str, str]) -> bool:
    sql = "SELECT r.body, s.body FROM spans s JOIN resources r ON r.id = s.resource WHERE s.id = ?"
    found = connection.execute(sql, (row,)).fetchone()
    if found is None:
        return False
    resource, span = ResourceSpans.FromString(found[0]).resource, Span.FromString(found[1])
    for key, value in wanted.items():
        held = text_of(span.attributes, key)
        if (text_of(resource.attributes, key) if held is None else held) != value:
            return False
    return True
