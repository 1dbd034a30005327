"""Spans on disk: one thread writes, in transactions, and keeps the file within its age and size."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from prometheus_client import Counter, Gauge

from services.common.errors import Reason, Refusal
from services.tracestore.rollups import Rollups
from services.tracestore.rows import Row
from services.tracestore.schema import open_writer
from services.tracestore.settling import Settling

log = structlog.get_logger()

SPANS = Counter("apportion_tracestore_spans", "Spans that arrived, by what became of them.", ["outcome"])
USED = Gauge("apportion_tracestore_bytes", "Bytes of the trace database in use.")
TRANSACTION_ROWS = 4096
TRIM_ROWS = 1000
"""Rows deleted at once: small, so that writes never wait long behind retention."""
TRIM_PAGES = 2000
TRIM_EVERY_S = 1.0
ROLL_EVERY_S = 10.0
INSERT = """
INSERT INTO spans (received_s, trace_id, span_id, resource, operation, kind, start_ns, end_ns, tenant, model, violated,
                   error, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
OLDEST = f"SELECT id, received_s FROM spans ORDER BY id LIMIT {TRIM_ROWS}"


@dataclass(slots=True)
class _Batch:
    rows: Sequence[Row]
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


class Store:
    """Takes rows from an event loop and writes them in a thread of its own.

    retention_s, retention_bytes: what is older or too much is deleted, the oldest arrivals first, a slice at a time.
    rollups: gets what requests' spans say, before they are deleted; None: nobody does. Raises StartupError where `path` cannot be written.
    """

    def __init__(
        self, path: Path, *, retention_s: int, retention_bytes: int, queue_spans: int, rollups: Rollups | None = None
    ) -> None:
        self.path = path
        self._retention_s, self._retention_bytes, self._queue_spans = retention_s, retention_bytes, queue_spans
        self._connection = open_writer(path)
        self._page_bytes = self._pragma("page_size")
        # Retention keeps the file near its size; beyond this, SQLite itself says that it is full.
        self._connection.execute(f"PRAGMA max_page_count = {(retention_bytes * 5 // 4) // self._page_bytes + 256}")
        self._rollups = rollups
        self._settling = Settling(rollups, self._connection) if rollups is not None else None
        self._rolled_at = 0.0
        self._resources: dict[bytes, int] = {}
        self._queue: deque[_Batch] = deque()
        self._waiting = 0
        self._change, self._closing = threading.Condition(), False
        self._trimmed_at, self._too_much = 0.0, True
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    async def insert(self, rows: Sequence[Row]) -> None:
        """Stores rows; returns when they are committed. Spans that are held already are ignored.

        Raises Refusal: OVERLOADED where too many wait, STORAGE_FULL where the disk takes no more; both count as lost.
        """
        loop = asyncio.get_running_loop()
        batch = _Batch(rows, loop.create_future(), loop)
        with self._change:
            full = self._closing or (self._waiting and self._waiting + len(rows) > self._queue_spans)
            if not full:
                self._queue.append(batch)
                self._waiting += len(rows)
                self._change.notify()
        if full:
            SPANS.labels("lost").inc(len(rows))
            facts = {"waiting": self._waiting, "limit": self._queue_spans}
            message = f"queue_spans: {self._waiting} spans wait to be written, and {self._queue_spans} may"
            raise Refusal(Reason.OVERLOADED, message, facts=facts, retry_after_s=1.0)
        await batch.done

    @property
    def used_bytes(self) -> int:
        """Bytes of the database that hold something. Only for the writer's thread, or once it is closed."""
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._page_bytes

    def close(self) -> None:
        """Writes what waits and ends. Blocks."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()
        self._connection.close()

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _run(self) -> None:
        while True:
            with self._change:
                if not self._queue and not self._closing and not self._too_much:
                    self._change.wait(TRIM_EVERY_S)
                batches = self._take()
                if not batches and self._closing:
                    return
            if batches:
                self._write(batches)
            if batches or self._too_much or time.monotonic() - self._trimmed_at >= TRIM_EVERY_S:
                self._too_much = self._retain()

    def _take(self) -> list[_Batch]:
        batches: list[_Batch] = []
        rows = 0
        while self._queue and rows < TRANSACTION_ROWS:
            batches.append(self._queue.popleft())
            rows += len(batches[-1].rows)
        self._waiting -= rows
        return batches

    def _write(self, batches: Sequence[_Batch]) -> None:
        rows = [row for batch in batches for row in batch.rows]
        failure: Refusal | None = None
        try:
            stored = self._transact(rows)
            SPANS.labels("stored").inc(stored)
            SPANS.labels("duplicate").inc(len(rows) - stored)
        except Exception as error:
            failure = self._failure(error, len(rows))
        for batch in batches:
            # A loop that has ended waits for nothing.
            with suppress(RuntimeError):
                batch.loop.call_soon_threadsafe(_settle, batch.done, failure)

    def _transact(self, rows: Sequence[Row]) -> int:
        now_s = int(time.time())
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            values = [
                (
                    now_s, row.trace_id, row.span_id, self._resource(row), row.operation, row.kind, row.start_ns,
                    row.end_ns, row.tenant, row.model, row.violated, row.error, row.body,
                )
                for row in rows
            ]  # fmt: skip
            stored = self._connection.executemany(INSERT, values).rowcount
            self._connection.execute("COMMIT")
        except BaseException:
            self._resources.clear()
            self._rollback()
            raise
        return stored

    def _resource(self, row: Row) -> int:
        found = self._resources.get(row.resource)
        if found is not None:
            return found
        select = "SELECT id FROM resources WHERE body = ?"
        held = self._connection.execute(select, (row.resource,)).fetchone()
        if held is None:
            insert = "INSERT INTO resources (body, service) VALUES (?, ?) RETURNING id"
            held = self._connection.execute(insert, (row.resource, row.service)).fetchone()
        if len(self._resources) >= 1024:
            self._resources.clear()
        self._resources[row.resource] = held[0]
        return int(held[0])

    def _failure(self, error: Exception, spans: int) -> Refusal:
        SPANS.labels("lost").inc(spans)
        log.error("spans are lost: the trace database takes none", spans=spans, error=repr(error))
        if isinstance(error, sqlite3.OperationalError):
            return Refusal(Reason.STORAGE_FULL, f"traces.db: {error}", facts={"spans": spans})
        return Refusal(Reason.INTERNAL, "traces.db: the spans could not be written; the store's log says why")

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _retain(self) -> bool:
        """Deletes a slice of what is too old and a slice of what is too much; says whether there is more."""
        self._trimmed_at = time.monotonic()
        try:
            deleted = self._delete(int(time.time()) - self._retention_s)
            if self.used_bytes > self._retention_bytes:
                deleted = max(deleted, self._delete(None))
            if deleted:
                self._connection.execute(f"PRAGMA incremental_vacuum({TRIM_PAGES})").fetchall()
            USED.set(self.used_bytes)
            more = self._roll_up()
        except (sqlite3.Error, Refusal) as error:
            self._rollback()
            log.error("old traces could not be deleted", error=str(error))
            return False
        return more or deleted == TRIM_ROWS

    def _roll_up(self) -> bool:
        """Settles some requests; from time to time makes room among the rollups. Says whether there is more."""
        if self._settling is None or self._rollups is None:
            return False
        now = time.monotonic()
        if now - self._rolled_at >= ROLL_EVERY_S:
            self._rolled_at = now
            self._rollups.trim(int(time.time()))
        return self._settling.ripe(self._connection, int(time.time()))

    def _delete(self, before_s: int | None) -> int:
        """Deletes the oldest arrivals: those before a time, or a slice of any age. Returns how many."""
        oldest = f"SELECT id FROM ({OLDEST})" + ("" if before_s is None else f" WHERE received_s < {before_s}")
        last = self._connection.execute(f"SELECT max(id) FROM ({oldest})").fetchone()[0]
        if last is None:
            return 0
        if self._settling is not None:
            self._settling.before(self._connection, last)
        self._connection.execute("BEGIN IMMEDIATE")
        deleted = self._connection.execute(f"DELETE FROM spans WHERE id IN ({oldest})").rowcount
        if deleted:
            unused = "SELECT id FROM resources WHERE NOT EXISTS (SELECT 1 FROM spans WHERE resource = resources.id)"
            if self._connection.execute(f"DELETE FROM resources WHERE id IN ({unused} LIMIT {TRIM_ROWS})").rowcount:
                self._resources.clear()
        self._connection.execute("COMMIT")
        return deleted


def _settle(done: asyncio.Future[None], failure: Refusal | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
