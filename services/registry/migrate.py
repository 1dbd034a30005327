"""`python -m services.registry.migrate`: brings the database's schema up to date and ends, for whoever upgrades a fleet."""

from __future__ import annotations

import asyncio
import sys
import time

import structlog

from services.common.channel import backoff
from services.common.errors import Refusal
from services.common.logs import configure
from services.common.process import StartupError
from services.registry.database import Database
from services.registry.settings import RegistrySettings

log = structlog.get_logger()
PATIENCE_S = 120.0
"""How long a database that does not answer is waited for."""


async def migrate(settings: RegistrySettings, patience_s: float = PATIENCE_S) -> None:
    """Takes the schema to this release's, under the lock that registries take as they start.

    Raises StartupError where that cannot succeed, or where the database has not answered within `patience_s`.
    """
    database, ends = Database(settings.database), time.monotonic() + patience_s
    try:
        for delay_s in backoff():
            try:
                await database.prepare()
            except Refusal as refusal:
                if time.monotonic() + delay_s > ends:
                    raise StartupError(f"migrate: given up after {patience_s:g} s: {refusal.message}") from None
                log.warning("database unreachable", error=refusal.message, retry_s=round(delay_s, 2))
                await asyncio.sleep(delay_s)
            else:
                log.info("the schema is up to date")
                return
    finally:
        await database.close()


def main() -> int:
    """Migrates what the registry's own variables name; returns the exit status."""
    settings = RegistrySettings()
    configure("migrate", form=settings.log_format, level=settings.log_level)
    try:
        asyncio.run(migrate(settings))
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
