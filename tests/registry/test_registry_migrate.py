"""Bringing the schema up to date apart from the registry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.process import StartupError
from services.registry.database import Database
from services.registry.migrate import migrate
from services.registry.settings import RegistrySettings


async def test_migrating_twice_leaves_a_registry_nothing_to_do(settings: RegistrySettings) -> None:
    await migrate(settings)
    await migrate(settings)
    database = Database(settings.database)
    await database.prepare()
    await database.close()


async def test_a_database_that_does_not_answer_is_given_up_in_time() -> None:
    settings = RegistrySettings(database_url="postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StartupError, match=r"given up after 0\.2 s: the database does not answer"):
        await migrate(settings, patience_s=0.2)


def test_the_command_ends_with_2_and_one_line_where_it_cannot(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.registry.migrate"],
        env={**os.environ, "APPORTION_REGISTRY_DATABASE_URL": "mysql://nobody@127.0.0.1/none"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (
        2,
        ["error: registry: database_url: 'mysql' is not supported; use sqlite or postgresql"],
    )
