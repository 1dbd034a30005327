"""Counts on disk, apart from the spans: by minute, then by hour. They outlive the spans, and a full disk loses none of them,
since frontends tell everything from its beginning every time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog
from prometheus_client import Gauge

from services.common.errors import Reason, Refusal
from services.tracestore.core.rollups import Counts, Slot, beyond, most, plus, total
from services.tracestore.metering import Series
from services.tracestore.schema import open_reader, open_writer

log = structlog.get_logger()

USED = Gauge("apportion_tracestore_rollup_bytes", "Bytes of the rollups' database in use.")
VERSION = 1
SCHEMA = """
CREATE TABLE slots (
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    start_s INTEGER NOT NULL,
    width_s INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (tenant, model, start_s, width_s)
) WITHOUT ROWID;
CREATE INDEX slots_start ON slots (start_s, width_s);
-- The most that each process has told of each model, so that an export heard twice counts once.
CREATE TABLE series (
    instance TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    heard_s INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (instance, start_ns, tenant, model)
) WITHOUT ROWID;
CREATE INDEX series_heard ON series (heard_s);
CREATE TABLE settled (one INTEGER PRIMARY KEY CHECK (one = 1), span INTEGER NOT NULL);
INSERT INTO settled VALUES (1, 0);
"""
MINUTE_S, HOUR_S = 60, 3600
FINE_S = 3 * 86_400
"""How old minutes become before they are made into hours: what the longest window of an alert may be."""
SILENT_S = 7 * 86_400
"""A process that has told nothing for so long is gone."""
SLICE = 500
PUT = """INSERT INTO slots VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (tenant, model, start_s, width_s) DO UPDATE SET body = excluded.body"""

_encode = msgspec.msgpack.encode
_decoder = msgspec.msgpack.Decoder(Counts)


class Rollups:
    """Blocking; any thread may call. retention_s, retention_bytes: older, or too much, is deleted, the oldest first.

    Methods raise Refusal (STORAGE_FULL) where the disk takes no more: then nothing has changed.
    """

    def __init__(self, path: Path, *, retention_s: int, retention_bytes: int) -> None:
        self.path = path
        self._retention_s, self._retention_bytes = retention_s, retention_bytes
        self._lock = threading.Lock()
        self._connection = open_writer(path, SCHEMA, VERSION)
        self._page_bytes = self._pragma("page_size")
        self._connection.execute(f"PRAGMA max_page_count = {(retention_bytes * 5 // 4) // self._page_bytes + 256}")

    def close(self) -> None:
        """Ends."""
        with self._lock:
            self._connection.close()

    def count(self, told: Mapping[Series, Counts], now_s: int) -> None:
        """Adds what processes have counted since they told it last to this minute."""
        start_s = now_s // MINUTE_S * MINUTE_S
        with self._writing() as connection:
            for series, counts in told.items():
                grown = self._grown(connection, series, counts, now_s)
                if grown != Counts():
                    self._add(connection, Slot(series.tenant, series.model, start_s, MINUTE_S, grown))

    @property
    def settled(self) -> int:
        """The span up to which `settle` has been told everything."""
        with self._lock:
            return int(self._connection.execute("SELECT span FROM settled").fetchone()[0])

    def settle(self, slots: list[Slot], through: int) -> None:
        """Adds what spans up to the one numbered `through` said, once: both are written in one step."""
        with self._writing() as connection:
            for slot in slots:
                self._add(connection, slot)
            connection.execute("UPDATE settled SET span = ?", (through,))

    def trim(self, now_s: int) -> None:
        """Makes old minutes into hours, and deletes what is too old or too much; a slice at a time."""
        try:
            with self._writing() as connection:
                self._fold(connection, now_s - FINE_S)
                connection.execute("DELETE FROM series WHERE heard_s < ?", (now_s - SILENT_S,))
                oldest = f"SELECT tenant, model, start_s, width_s FROM slots ORDER BY start_s LIMIT {SLICE}"
                deleting = f"DELETE FROM slots WHERE (tenant, model, start_s, width_s) IN (SELECT * FROM ({oldest}) "
                connection.execute(f"{deleting} WHERE start_s + width_s < ?)", (now_s - self._retention_s,))
                used = self._used_bytes()
                if used > self._retention_bytes:
                    connection.execute(f"{deleting})")
            with self._lock:
                self._connection.execute("PRAGMA incremental_vacuum(2000)").fetchall()
            USED.set(used)
        except (sqlite3.Error, Refusal) as error:
            log.error("old rollups could not be deleted", error=str(error))

    def models(self, start_s: int, end_s: int) -> list[tuple[str, str]]:
        """(tenant, model) of all slots that overlap [start_s, end_s), sorted."""
        sql = "SELECT DISTINCT tenant, model FROM slots WHERE start_s < ? AND start_s + width_s > ? ORDER BY 1, 2"
        with _reading(self.path) as connection:
            return connection.execute(sql, (end_s, start_s)).fetchall()

    def slots(self, tenant: str, model: str, start_s: int, end_s: int) -> list[Slot]:
        """One model's slots that overlap [start_s, end_s), by time."""
        sql = """SELECT start_s, width_s, body FROM slots WHERE tenant = ? AND model = ? AND start_s < ?
                 AND start_s + width_s > ? ORDER BY start_s"""
        with _reading(self.path) as connection:
            found = connection.execute(sql, (tenant, model, end_s, start_s)).fetchall()
        return [Slot(tenant, model, start, width, _decoder.decode(body)) for start, width, body in found]

    def _grown(self, connection: sqlite3.Connection, series: Series, told: Counts, now_s: int) -> Counts:
        sql = "SELECT body FROM series WHERE instance = ? AND start_ns = ? AND tenant = ? AND model = ?"
        held = connection.execute(sql, series).fetchone()
        before = Counts() if held is None else _decoder.decode(held[0])
        connection.execute(
            """INSERT INTO series VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (instance, start_ns, tenant, model)
               DO UPDATE SET heard_s = excluded.heard_s, body = excluded.body""",
            (*series, now_s, _encode(most(told, before))),
        )
        return beyond(told, before)

    def _add(self, connection: sqlite3.Connection, slot: Slot) -> None:
        """Adds to the hour where this time has been made into hours already."""
        hour_s = slot.start_s // HOUR_S * HOUR_S
        sql = """SELECT start_s, width_s, body FROM slots WHERE tenant = ? AND model = ?
                 AND ((start_s = ? AND width_s = ?) OR (start_s = ? AND width_s = ?)) ORDER BY width_s DESC"""
        where = (slot.tenant, slot.model, hour_s, HOUR_S, slot.start_s, slot.width_s)
        held = connection.execute(sql, where).fetchone() or (slot.start_s, slot.width_s, None)
        counts = slot.counts if held[2] is None else plus(_decoder.decode(held[2]), slot.counts)
        connection.execute(PUT, (slot.tenant, slot.model, held[0], held[1], _encode(counts)))

    def _fold(self, connection: sqlite3.Connection, before_s: int) -> None:
        cut_s = before_s // HOUR_S * HOUR_S
        sql = """SELECT tenant, model, start_s, body FROM slots WHERE start_s < ? AND width_s = ?
                 ORDER BY tenant, model, start_s LIMIT ?"""
        hours: dict[tuple[str, str, int], list[tuple[int, bytes]]] = {}
        for tenant, model, start_s, body in connection.execute(sql, (cut_s, MINUTE_S, SLICE)).fetchall():
            hours.setdefault((tenant, model, start_s // HOUR_S * HOUR_S), []).append((start_s, body))
        for (tenant, model, hour_s), minutes in hours.items():
            connection.executemany(
                "DELETE FROM slots WHERE tenant = ? AND model = ? AND start_s = ? AND width_s = ?",
                [(tenant, model, start_s, MINUTE_S) for start_s, _ in minutes],
            )
            counts = total(_decoder.decode(body) for _, body in minutes)
            self._add(connection, Slot(tenant, model, hour_s, HOUR_S, counts))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise Refusal(Reason.STORAGE_FULL, f"{self.path.name}: {error}") from None
                raise

    def _used_bytes(self) -> int:
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._page_bytes

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_reader(path)
    try:
        yield connection
    finally:
        connection.close()
