"""What is collected for a report, and what is not."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

from services.cli.commands.support import redacted
from tests.mesh.running import RunningMesh


def collected(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {name.removeprefix("apportion-support/"): archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]  # fmt: skip


def test_a_report_holds_the_fleet_metrics_and_versions_and_no_key(mesh: RunningMesh, tmp_path: Path) -> None:
    key = mesh.create_tenant("reporting")
    target = tmp_path / "report.tar.gz"
    mesh.command("support", str(target))
    parts = collected(target)
    assert parts["errors.txt"] == ""
    assert "reporting" in parts["tenants.json"]
    assert json.loads(parts["status.json"])["executors"]
    assert any("apportion_executor_replicas" in text for name, text in parts.items() if name.startswith("metrics/"))
    assert json.loads(parts["versions.json"])["packages"]["grpcio"]
    assert not [name for name, text in parts.items() if key in text]


def test_a_report_of_a_mesh_that_does_not_answer_says_so_and_is_made(tmp_path: Path) -> None:
    target = tmp_path / "report.tar.gz"
    environment = {
        "PATH": "",
        "APPORTION_MESH_TOKEN": "the-token",
        "APPORTION_REGISTRY": "127.0.0.1:1",
        "APPORTION_SCHEDULER": "127.0.0.1:1",
        "APPORTION_QUERY": "127.0.0.1:1",
    }
    done = subprocess.run([sys.executable, "-m", "services.cli", "support", str(target), "--metrics", "127.0.0.1:1", "--data", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=110)  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = collected(target)
    assert "status --json: cannot reach the scheduler" in parts["errors.txt"]
    assert "metrics of 127.0.0.1:1" in parts["errors.txt"]
    assert json.loads(parts["environment.json"])["APPORTION_MESH_TOKEN"] == "[set]"
    assert "the-token" not in "".join(parts.values())


def test_keys_tokens_and_passwords_are_taken_out() -> None:
    text = "ap_0123456789abcdef postgresql://user:pass@host/db Bearer abc.def the-secret"
    assert redacted(text, ["the-secret"]) == "[redacted] postgresql://[redacted]@host/db Bearer [redacted] [redacted]"
