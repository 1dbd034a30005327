"""Every file, command, port, variable and extra that images, Compose and the chart name is one that the project has."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import schema
from deploy.lint import chart, compose, dockerfiles
from services.cli import options
from services.cli.main import SERVICES

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PORTS = {"frontend": {8001, 8002}, "registry": {8101, 9101}, "scheduler": {8102, 9102}, "executor": {8110, 9110}}
"""gRPC and metrics of each service, as the documentation tells them."""
OF_OTHERS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_DEVICE_MAX_CONNECTIONS", "POD_NAME", "POD_IP", "NODE_NAME", "HOME", "PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_NO_CACHE_DIR"}  # fmt: skip
"""Variables that are read by libraries, or by the manifests themselves."""
HEALTH = set(re.findall(r'"(APPORTION_HEALTH\w*)"', (dockerfiles.FOLDER / "healthy.py").read_text()))
IMAGES = {path.name: path for path in dockerfiles.files()}


def variables() -> set[str]:
    """Every variable that a service or a command reads."""
    known = set(HEALTH) | {f"APPORTION_{name}" for name in (*(each.upper() for each in options.DEFAULTS), "MESH_TOKEN", "CREDENTIAL", "SIGN_PASSWORD", "DATA", "DEBUG")}  # fmt: skip
    for service in (*schema.COMPONENTS, "tracestore"):
        settings = schema.settings_class(service)
        prefix = settings.model_config["env_prefix"]
        known |= {f"{prefix}{name.upper()}" for name in settings.model_fields}
        known |= {f"APPORTION_{name.upper()}" for name in schema.ServiceSettings.model_fields}
    return known


def unknown(names: set[str]) -> set[str]:
    return names - variables() - OF_OTHERS


def sent(path: Path) -> bool:
    """Whether .dockerignore sends a file: everything is left out, then some is let in."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert patterns[0] == "*"
    name = path.relative_to(ROOT).as_posix()
    allowed = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return any(fnmatch.fnmatch(name, each) or name.startswith(f"{each}/") for each in allowed)


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_what_an_image_copies_exists_and_is_sent_to_the_builder(name: str) -> None:
    copied = [source for stage in dockerfiles.stages(IMAGES[name]) for source in dockerfiles.copied(stage)]
    assert {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "services", "gpu_sharing"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert sent(ROOT / source), f"{source} is not let in by .dockerignore"


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_an_image_starts_a_command_of_ours_with_variables_that_are_read(name: str) -> None:
    last = dockerfiles.stages(IMAGES[name])[-1]
    assert json.loads(dockerfiles.value(last, "ENTRYPOINT") or "") == ["apportion"]
    assert "apportion" in PROJECT["scripts"]
    (command,) = json.loads(dockerfiles.value(last, "CMD") or "")
    assert command in SERVICES
    ports = {int(port) for port in (dockerfiles.value(last, "EXPOSE") or "").split()}
    assert ports <= set().union(*PORTS.values())
    assert ports >= {min(PORTS[command])}
    told = {word.split("=")[0] for kind, text in last if kind == "ENV" for word in shlex.split(text)}
    assert unknown(told) == set()


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_an_image_installs_extras_that_there_are_and_only_executors_a_framework(name: str) -> None:
    run = " ".join(text for kind, text in dockerfiles.stages(IMAGES[name])[0] if kind == "RUN")
    (extras,) = re.findall(r'"\.\[([a-z0-9,-]+)\]"', run)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert ("s3" in extras.split(",")) == name.startswith("services")
    assert ("executor" in extras or "gpu" in extras) != name.startswith("services")
    assert "signing" in extras.split(",")


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_each_image_is_built_on_a_pinned_python_that_the_project_supports(name: str) -> None:
    (tag,) = [text.partition("=")[2] for kind, text in dockerfiles.instructions(IMAGES[name]) if text.startswith("PYTHON=")]  # fmt: skip
    found = re.fullmatch(r"(3\.1[123])\.\d+-slim-[a-z]+", tag)
    assert found, f"{tag} is not pinned to a patch"
    assert {text for kind, text in dockerfiles.instructions(IMAGES[name]) if kind == "FROM"} <= {"python:${PYTHON} AS build", "python:${PYTHON}"}  # fmt: skip


def test_the_chart_is_of_the_projects_version() -> None:
    described = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert described["appVersion"] == PROJECT["version"]
    assert f"APPORTION_VERSION={PROJECT['version']}" in compose.EXAMPLE.read_text().splitlines()


def test_compose_names_files_variables_ports_and_commands_that_there_are() -> None:
    text = (compose.FOLDER / "compose.yaml").read_text()
    written = yaml.safe_load(text)
    for name, service in written["services"].items():
        assert unknown({key for key in service.get("environment", {}) if key.startswith(("APPORTION_", "AWS_"))}) == set(), name  # fmt: skip
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert not source.startswith(".") or (compose.FOLDER / source).resolve().exists(), mount
            assert source.startswith(".") or source in written["volumes"], mount
        if "build" in service:
            assert (compose.FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file(), name
            words = service.get("entrypoint", []) + service.get("command", [])
            assert words[0] in (*SERVICES, "status", "python"), name
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text))
    offered = set(re.findall(r"^([A-Z_]+)=", compose.EXAMPLE.read_text(), re.MULTILINE))
    assert asked == offered - {"COMPOSE_PROFILES"}


def test_compose_talks_to_services_on_the_ports_that_they_listen_on() -> None:
    services = yaml.safe_load((compose.FOLDER / "compose.yaml").read_text())["services"]
    addresses = {
        (host, int(port))
        for service in services.values()
        for key, value in service.get("environment", {}).items()
        for host, port in re.findall(r"(?:^|//)([a-z-]+):(\d+)", str(value))
        if host in services and not key.endswith("_DSN")
    }
    ports = {"postgres": {5432}, "storage": {9000}, "otel-collector": {4317}, "jaeger": {16685}, "executor-cpu": PORTS["executor"], "executor-gpu": PORTS["executor"], **PORTS}  # fmt: skip
    assert addresses
    for host, port in addresses:
        assert port in ports[host], f"{host}:{port}"


def test_prometheus_scrapes_the_ports_that_compose_listens_on() -> None:
    config = yaml.safe_load((compose.FOLDER.parent / "observability/prometheus/prometheus.yaml").read_text())
    services = yaml.safe_load((compose.FOLDER / "compose.yaml").read_text())["services"]
    for job in config["scrape_configs"]:
        for found in job.get("dns_sd_configs", []):
            for name in found["names"]:
                listening = [
                    value for key, value in services[name]["environment"].items() if key.endswith("METRICS_LISTEN")
                ]
                assert listening == [f"0.0.0.0:{found['port']}"], name


def containers(manifests: list[chart.Manifest]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for manifest in manifests:
        template = manifest.get("spec", {}).get("template", {}).get("spec", {})
        for container in template.get("containers", []):
            yield container["name"], container, template


@pytest.mark.deploy
@pytest.mark.parametrize("name", sorted(chart.sets()))
def test_the_chart_names_variables_ports_commands_images_and_volumes_that_there_are(name: str) -> None:
    images = {path.removesuffix(".Dockerfile") for path in IMAGES}
    for component, container, template in containers(chart.rendered(chart.sets()[name])):
        assert unknown({entry["name"] for entry in container["env"]}) == set(), component
        names = [entry["name"] for entry in container["env"]]
        assert len(names) == len(set(names)), f"{component}: a variable is set twice"
        if component == "migration":
            assert container["args"] == ["-m", "services.registry.migrate"]
            assert (ROOT / "services/registry/migrate.py").is_file()
        else:
            assert (container["command"], container["args"]) == (["apportion"], [component])
            assert {port["containerPort"] for port in container["ports"] if port["name"] != "health"} == PORTS[
                component
            ]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        claimed = {"data"} if component == "executor" else set()
        assert mounted <= {volume["name"] for volume in template["volumes"]} | claimed, component
        assert container["image"].split(":")[0].removeprefix("apportion-") in images


@pytest.mark.deploy
def test_the_charts_settings_are_taken_by_the_services() -> None:
    for component, container, _ in containers(chart.rendered(chart.sets()["high-availability"])):
        if component == "migration":
            continue
        told = {entry["name"]: str(entry["value"]) for entry in container["env"] if "value" in entry}
        code = f"from deploy.schema import settings_class; print(settings_class({component!r})().model_dump_json())"
        done = subprocess.run([sys.executable, "-c", code], env={"PATH": "", **told}, cwd=ROOT, capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stderr
        taken = json.loads(done.stdout)
        wanted = chart.sets()["high-availability"].get(component, {}).get("settings", {})
        assert {key: taken[key] for key in wanted} == wanted
