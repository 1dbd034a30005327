"""Empty databases and schemas on the session's PostgreSQL."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
from sqlalchemy import make_url

numbers = itertools.count()


def fresh_database(server: Any) -> str:
    """The URL of a new, empty database."""
    name = f"registry_{next(numbers)}"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")  # type: ignore[arg-type]
    return server.get_uri(database=name)


def fresh_schema(server: Any) -> str:
    """The URL of a new, empty schema: a tenth of a database's time."""
    name = f"registry_{next(numbers)}"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[arg-type]
    return make_url(server.get_uri()).update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(False)
