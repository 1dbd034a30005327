"""The database of spans: its tables, and how connections are opened."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import structlog

from services.common.process import StartupError

log = structlog.get_logger()

VERSION = 1
SCHEMA = """
CREATE TABLE resources (
    id INTEGER PRIMARY KEY,
    body BLOB NOT NULL UNIQUE,
    service TEXT NOT NULL
);
CREATE INDEX resources_service ON resources (service);
-- Ids count up, so the oldest arrivals come first whatever times the spans claim.
CREATE TABLE spans (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    received_s INTEGER NOT NULL,
    trace_id BLOB NOT NULL,
    span_id BLOB NOT NULL,
    resource INTEGER NOT NULL,
    operation TEXT NOT NULL,
    kind INTEGER NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    tenant TEXT,
    model TEXT,
    violated INTEGER NOT NULL,
    error INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (trace_id, span_id)
);
CREATE INDEX spans_start ON spans (start_ns);
CREATE INDEX spans_operation ON spans (resource, operation, kind, start_ns);
CREATE INDEX spans_tenant ON spans (tenant, model, start_ns) WHERE tenant IS NOT NULL;
CREATE INDEX spans_violated ON spans (start_ns) WHERE violated;
"""


def open_writer(path: Path, schema: str = SCHEMA, schema_version: int = VERSION) -> sqlite3.Connection:
    """The one connection that writes; makes the file where there is none.

    A file that is damaged or of another version is put aside, since traces are worth less than a store that runs.
    Raises StartupError where the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _open(path, schema, schema_version)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) or not path.exists():
                raise
            aside = path.with_name(f"{path.name}.unreadable-{int(time.time())}")
            log.error("the trace database is unreadable and put aside", aside=str(aside), error=str(error))
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            path.replace(aside)
            return _open(path, schema, schema_version)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"tracestore: cannot write {path}: {error}; choose another folder with --data") from None


def _open(path: Path, schema: str, schema_version: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {8 << 20}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, schema_version):
            raise sqlite3.DatabaseError(f"it has version {version}, not {schema_version}")
        if version == 0:
            connection.executescript(f"BEGIN; {schema} PRAGMA user_version = {schema_version}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that only reads."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5, isolation_level=None)
