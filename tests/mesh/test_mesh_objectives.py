"""Which objective can be had, through the whole mesh: before a push, at it, and after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.mesh.running import RunningMesh
from tests.mesh.tiny import echo


def objective(mesh: RunningMesh, *arguments: str) -> dict:
    return json.loads(mesh.command("model", "objective", *arguments, "--json"))


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_objective_that_can_be_had_is_told_before_at_and_after_a_push(mesh: RunningMesh, tmp_path: Path) -> None:
    mesh.create_tenant("objectives", reserve=0.2)
    path = echo(tmp_path / "e.onnx", "float32")
    warmup = ("--warmup", "in_float32=1x8", "--warmup", "in_float32=1x800", "--max-batch", "8")

    before = objective(mesh, "--file", str(path), "--reserve", "0.2", "--rate", "5", *warmup)
    (answer,) = before["answers"]
    assert answer["verdict"] == "OBJECTIVE_VERDICT_PROMISED"
    assert int(answer["least_objective_us"]) >= int(answer["burst_us"]) + int(answer["slices_us"])
    assert int(answer["slices_us"]) >= 10_000, "the executor's quantum of 5 ms, twice"
    assert "holds for the mesh's lanes" in before["holds"]
    assert json.loads(mesh.command("model", "list", "--tenant", "objectives", "--json")) == [], "it left no version"

    options = ("--tenant", "objectives", *warmup)
    done = mesh.apportion("model", "push", "echo", str(path), *options, "--slo-ms", "3", "--strict")
    assert done.returncode == 1
    assert "serves on" in done.stdout
    assert "warning: the objective of 3.0 ms cannot be promised: 0.2 devices hold" in " ".join(done.stderr.split())

    told = json.loads(mesh.command("model", "profile", "echo", "--tenant", "objectives", "--json"))
    (profile,) = told["profiles"]
    assert [(each["shape_bucket"], each["rows"]) for each in profile["points"]] == [
        (shape, rows) for shape in ("8", "800") for rows in (1, 2, 4, 8)
    ]
    assert all(int(each["activation_bytes"]) > 0 for each in profile["points"])
    drawn = mesh.command("model", "profile", "echo", "--tenant", "objectives")
    assert "throughput" in drawn
    assert "\x1b[" not in drawn

    after = objective(mesh, "echo", "--tenant", "objectives", "--slo-ms", "1000", "--burst", "2")
    (answer,) = [each for each in after["answers"] if each["serves"]]
    assert answer["verdict"] == "OBJECTIVE_VERDICT_PROMISED"
    (unpromised,) = [each for each in mesh.fleet()["unpromised"] if each["key"]["tenant"] == "objectives"]
    assert unpromised["verdict"] == "OBJECTIVE_VERDICT_TOO_TIGHT"
    fitting = ("--slo-ms", "1000", "--strict")
    assert mesh.push("fits", path, tenant="objectives", options=(*warmup, *fitting))["objective"]["verdict"] == (
        "OBJECTIVE_VERDICT_PROMISED"
    )
    refused = mesh.apportion("model", "objective", "echo", "--tenant", "objectives", "--reserve", "1.5")
    assert (refused.returncode, "--reserve: 1.5 devices are asked for" in refused.stderr) == (2, True)
    for name in ("echo", "fits"):
        mesh.command("model", "remove", name, "--tenant", "objectives")
    mesh.command("tenant", "remove", "objectives")
