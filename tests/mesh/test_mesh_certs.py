"""A local mesh with certificates: every service has its own, commands find the operator's, and nothing is said in plain text."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from services.cli.certs import issuing
from services.cli.main import run
from tests.deploy.serving import TENANT, ask, served
from tests.mesh.running import running


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("up") / "certs"
    assert run(["certs", "init", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_mesh_with_certificates_serves_and_its_commands_find_them(certs: Path, tmp_path: Path) -> None:
    authority = grpc.ssl_channel_credentials((certs / "ca.pem").read_bytes())
    with running(tmp_path / "data", "--certs", str(certs), "--trace-sample", "1") as mesh:
        data, frontend = {"APPORTION_DATA": str(mesh.data)}, mesh.addresses["frontend"]
        key = served(data, frontend, mesh.data, open_channel=lambda where: grpc.secure_channel(where, authority))
        assert [each["attached"] for each in mesh.fleet()["executors"]] == [True]
        assert mesh.command("trace", "list", "--last", "5m").count(TENANT) >= 1
        for name in ("frontend", "registry", "scheduler", "executor", "query"):
            with grpc.insecure_channel(mesh.addresses[name]) as plain, pytest.raises(grpc.RpcError) as told:
                plain.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
            assert told.value.code() is grpc.StatusCode.UNAVAILABLE, name
        with pytest.raises(grpc.RpcError):
            ask(frontend, key)
        # Somebody who is told where the mesh is by other means shows nothing of its own accord.
        done = mesh.apportion("status", "--json", "--scheduler", mesh.addresses["scheduler"])
        assert done.returncode == 1
        assert "cannot reach the scheduler" in done.stderr
        assert json.loads((mesh.data / "mesh.json").read_text())["certs"] == str(certs)


def test_a_folder_without_certificates_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    issuing.begin(tmp_path, days=1)
    assert run(["up", "--certs", str(tmp_path), "--data", str(tmp_path / "data")]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told == f"error: --certs: cannot read {tmp_path}/frontend.pem: No such file or directory; `apportion certs init {tmp_path}` makes them"  # fmt: skip
    assert not (tmp_path / "data").exists()
