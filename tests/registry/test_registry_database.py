"""Databases and processes: migrations, several registries at once, a database that is away."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import grpc
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from grpc_health.v1 import health_pb2, health_pb2_grpc
from registry_databases import fresh_database
from registry_world import Process, World, refusal, served
from sqlalchemy import Connection, make_url, text

from services.common.channel import connect
from services.common.errors import Reason
from services.common.process import StartupError
from services.registry.catalogue import Tenants
from services.registry.database import MIGRATIONS, Database
from services.registry.serve import SERVICE, artefacts_of, serve
from services.registry.settings import RegistrySettings
from services.registry.store import Store
from services.registry.tables import metadata

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_migrations_make_exactly_the_tables_that_the_code_knows(settings: RegistrySettings) -> None:
    database = Database(settings.database)
    await database.prepare()

    def differences(connection: Connection) -> list[object]:
        return compare_metadata(MigrationContext.configure(connection), metadata)

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_a_catalogue_of_an_earlier_release_is_brought_up_to_date_with_every_model_served(
    settings: RegistrySettings,
) -> None:
    async with served(settings) as world:
        await world.tenant()
        await world.push()
        before = await world.snapshot()
    database = Database(settings.database)

    def back(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")

    async with database.write() as connection:
        await connection.run_sync(back)
    await database.close()
    async with served(settings) as world:
        assert (await world.snapshot()).same_as(before)
        assert not before.models["acme", "m"].unloaded


async def test_registries_that_start_at_once_migrate_once(settings: RegistrySettings) -> None:
    stores = [Store(Database(settings.database), history=100) for _ in range(5)]
    await asyncio.gather(*(store.prepare() for store in stores))
    made = await asyncio.gather(*(Tenants(store).create(f"t{number}", 0, 1) for number, store in enumerate(stores)))
    assert sorted(tenant.revision for tenant, _ in made) == [1, 2, 3, 4, 5]
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_second_registry_on_the_same_data_finds_everything_as_it_was(settings: RegistrySettings) -> None:
    async with served(settings) as world:
        await world.tenant()
        await world.push()
        before = await world.snapshot()
    async with served(settings) as world:
        assert (await world.snapshot()).same_as(before)
        assert await world.download(b"weights") == b"weights"


async def test_a_database_of_a_later_release_is_refused_in_one_line(settings: RegistrySettings) -> None:
    database = Database(settings.database)
    await database.prepare()
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartupError, match="another release"):
        await database.prepare()
    await database.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite://", "sqlite:///:memory:"])
def test_a_database_url_that_cannot_be_used_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(StartupError, match="database_url"):
        Database(url)


def test_an_artefact_url_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="artefacts_url"):
        artefacts_of(RegistrySettings(data=tmp_path, artefacts_url="nonsense://x"))


async def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = RegistrySettings(data=tmp_path / "file" / "below", listen="127.0.0.1:0")
    with pytest.raises(StartupError, match="registry: cannot"):
        await serve(settings, asyncio.Event())


def test_settings_are_read_from_the_variables_all_services_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPORTION_DATA", "/srv/a")
    assert RegistrySettings().database == "sqlite:////srv/a/registry.db"
    assert RegistrySettings().artefacts == "/srv/a/artefacts"
    monkeypatch.setenv("APPORTION_REGISTRY_DATA", "/srv/b")
    monkeypatch.setenv("APPORTION_REGISTRY_DATABASE_URL", "postgresql://db/x")
    assert RegistrySettings().database == "postgresql://db/x"
    assert str(RegistrySettings().data) == "/srv/b"


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request, wait_for_ready=True, timeout=10)).status


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_a_registry_stays_up_while_its_database_is_away(tmp_path: Path) -> None:
    port, stop = free_port(), asyncio.Event()
    settings = RegistrySettings(
        data=tmp_path,
        listen=f"127.0.0.1:{port}",
        database_url="postgresql://nobody@127.0.0.1:1/none",
        ready_file=str(tmp_path / "ready"),
        drain_s=1.0,
    )
    running = asyncio.create_task(serve(settings, stop))
    async with connect(f"127.0.0.1:{port}") as channel:
        assert await health(channel) == NOT_SERVING
        assert await health(channel, SERVICE) == NOT_SERVING
        await refusal(World(channel, settings).tenant(), Reason.NOT_SERVING, grpc.StatusCode.UNAVAILABLE)
        assert not (tmp_path / "ready").exists()
    stop.set()
    await running


async def test_a_registry_outlives_its_database_and_finds_it_again(postgresql, tmp_path: Path) -> None:
    url = fresh_database(postgresql)
    name = make_url(url).database
    settings = RegistrySettings(data=tmp_path, database_url=url)
    async with served(settings) as world:
        await world.tenant()
        stream = world.watch()
        await stream.read()
        admin = Database(postgresql.get_uri())
        try:
            async with admin.write() as connection:
                await connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
            async with admin.write() as connection:
                end = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
                await connection.execute(end, {"name": name})
            await refusal(world.tenant("eve"), Reason.NOT_SERVING, grpc.StatusCode.UNAVAILABLE)
            async with admin.write() as connection:
                await connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
        finally:
            await admin.close()
        await world.tenant("eve")
        assert (await stream.read()).changes.tenants[0].name == "eve"


async def test_the_process_says_when_it_is_ready_and_drains_when_told(tmp_path: Path) -> None:
    process = Process(tmp_path)
    async with connect(await process.address()) as channel:
        assert await health(channel) == SERVING
        assert await health(channel, SERVICE) == SERVING
        stream = World(channel, RegistrySettings(data=tmp_path)).watch()
        await stream.read()
        assert await asyncio.to_thread(process.stop) == 0
        assert await stream.read() is grpc.aio.EOF
