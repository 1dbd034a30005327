"""The database: engines for SQLite and PostgreSQL, their transactions, migrations under a lock, errors as refusals."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.common.errors import Reason, Refusal
from services.common.process import StartupError

MIGRATIONS = Path(__file__).parent / "migrations"
# Any number will do, as long as every registry takes the same.
MIGRATION_LOCK = 0x4150_504F_5254
BUSY_MS = 10_000
WRITES = "registry_writes"


class Database:
    """Connections to one database. `read` and `write` are transactions; `prepare` comes first.

    Raises StartupError for a URL that is neither SQLite's nor PostgreSQL's.
    """

    def __init__(self, url: str) -> None:
        self._url = parsed(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._engine = _sqlite(self._url) if self.is_sqlite else _postgresql(self._url)
        # A reader sees one state throughout: SQLite's transactions are so anyway.
        self._readers = (
            self._engine
            if self.is_sqlite
            else self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        )

    async def prepare(self) -> None:
        """Brings the schema up to date; several processes may do so at once.

        Raises StartupError where that cannot succeed by waiting, a Refusal (NOT_SERVING) where it may.
        """
        try:
            if self.is_sqlite:
                await self._prepare_sqlite()
            with refusals(self):
                async with self._engine.connect() as connection:
                    await connection.execution_options(**{WRITES: True})
                    async with connection.begin():
                        if not self.is_sqlite:
                            await connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
                        await connection.run_sync(_upgrade)
        except CommandError as error:
            raise StartupError(f"registry: the database is of another release: {error}") from error

    async def _prepare_sqlite(self) -> None:
        path = Path(self._url.database or "")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(_make_wal, path)
        except (OSError, sqlite3.Error) as error:
            raise StartupError(f"registry: cannot open the database {path}: {error}") from error

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state of the database."""
        with refusals(self):
            async with self._readers.connect() as connection, connection.begin():
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits when the block ends, unless it raises. One writer at a time on SQLite."""
        with refusals(self):
            async with self._engine.connect() as connection:
                await connection.execution_options(**{WRITES: True})
                async with connection.begin():
                    if not self.is_sqlite:
                        await connection.execute(text(PATIENCE))
                    yield connection

    def free_bytes(self) -> int | None:
        """What is left on the disk below the database; None where it is not on this machine."""
        return shutil.disk_usage(Path(self._url.database or ".").parent).free if self.is_sqlite else None

    async def close(self) -> None:
        """Ends all connections."""
        await self._engine.dispose()


# A database host that vanishes without a word is noticed within half a minute.
DEAD_PEERS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
# A writer that has died or hangs must not stop the others for ever.
PATIENCE = (
    "SELECT set_config('lock_timeout', '10s', true), set_config('statement_timeout', '60s', true),"
    " set_config('idle_in_transaction_session_timeout', '30s', true)"
)


def parsed(url: str) -> URL:
    """The URL with the driver this registry uses. Raises StartupError for what it cannot use."""
    try:
        given = make_url(url)
    except ArgumentError:
        raise StartupError(
            "registry: database_url is no SQLAlchemy URL; write sqlite:///PATH or postgresql://…"
        ) from None
    backend = given.get_backend_name()
    if backend == "sqlite":
        if not given.database or given.database == ":memory:":
            raise StartupError("registry: database_url must name a file: sqlite:////var/lib/apportion/registry.db")
        return given.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        return given.set(drivername="postgresql+psycopg")
    raise StartupError(f"registry: database_url: {backend!r} is not supported; use sqlite or postgresql")


def _sqlite(url: URL) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=4, max_overflow=4, connect_args={"timeout": BUSY_MS / 1000})

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: object) -> None:
        # The driver begins transactions by itself, and late; here each begins when it says so.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (f"busy_timeout = {BUSY_MS}", "foreign_keys = ON", "synchronous = FULL"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Connection) -> None:
        # A writer takes the lock at once: a reader that becomes a writer halfway can only fail.
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: URL) -> AsyncEngine:
    return create_async_engine(
        url, pool_size=8, max_overflow=8, pool_pre_ping=True, pool_timeout=10, connect_args=DEAD_PEERS
    )


def _make_wal(path: Path) -> None:
    """Switches the file to write-ahead logging. Under a lock of its own, for the switch does not wait for others."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = sqlite3.connect(path, timeout=BUSY_MS / 1000)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def refusals(database: Database) -> Iterator[None]:
    """Turns what the database fails with into STORAGE_FULL or NOT_SERVING; what is a mistake of ours stays as it is."""
    try:
        yield
    except DBAPIError as error:
        if _is_full(error.orig):
            free = database.free_bytes()
            facts = {} if free is None else {"free_bytes": free}
            left = "" if free is None else f" ({free} bytes are free)"
            raise Refusal(Reason.STORAGE_FULL, f"the database's disk is full{left}", facts=facts) from error
        if isinstance(error, OperationalError) or error.connection_invalidated:
            raise _unreachable(error) from error
        raise
    except (PoolTimeout, OSError) as error:
        raise _unreachable(error) from error


def _is_full(error: object) -> bool:
    if getattr(error, "sqlstate", None) == "53100":
        return True
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _unreachable(error: Exception) -> Refusal:
    detail = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return Refusal(Reason.NOT_SERVING, f"the database does not answer: {detail}", retry_after_s=1.0)
