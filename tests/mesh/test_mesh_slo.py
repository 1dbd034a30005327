"""Objectives judged on a whole mesh: what was counted, what traces say, and what a gate is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh.calling import Caller, request
from tests.mesh.running import RunningMesh, running

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
GOOD, LATE = 60, 8
IMPOSSIBLE_MS = 0.001


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A mesh that tells its counts often; `acme` has had LATE requests that could not be kept, `bolt` none, `idle` no request."""
    folder = tmp_path_factory.mktemp("judged")
    linear = folder / "linear.onnx"
    linear.write_bytes(linear_onnx())
    with running(folder / "data", environment={"APPORTION_FRONTEND_METRICS_EXPORT_S": "0.2"}) as mesh:
        for tenant in ("acme", "bolt", "idle"):
            mesh.create_tenant(tenant)
            mesh.push("linear", linear, tenant=tenant, options=("--slo-ms", "60000"))
        mesh.command("slo", "set", "linear", "90 % within 30 s over 1 h", "--tenant", "bolt", "--name", "fast")
        mesh.command("slo", "set", "linear", "99.9 % over 7 days", "--tenant", "bolt", "--name", "promised")
        eventually(lambda: "fast" in mesh.command("slo", "list", "--tenant", "bolt"))
        for tenant, late in (("acme", LATE), ("bolt", 0)):
            with Caller(mesh, tenant) as caller:
                for number in range(GOOD + late):
                    asked = {"slo_ms": IMPOSSIBLE_MS} if number >= GOOD else {}
                    caller.send(request("linear", {"x": ROWS}, **asked))
        eventually(lambda: counts(mesh, "acme") == GOOD + LATE and kept(mesh) == LATE)
        yield mesh


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it never came to hold"
        time.sleep(0.2)


def report(mesh: RunningMesh, *flags: str) -> tuple[int, Any]:
    done = mesh.apportion("slo", "report", "--json", *flags)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def model(told: Any, tenant: str) -> Any:
    return next(each for each in told["models"] if each["tenant"] == tenant)


def counts(mesh: RunningMesh, tenant: str) -> int:
    found = [each["requests"] for each in report(mesh, "--no-traces")[1]["models"] if each["tenant"] == tenant]
    return sum(found)


def kept(mesh: RunningMesh) -> int:
    return model(report(mesh)[1], "acme")["completeness"]["kept"]


def test_a_promise_that_was_not_kept_fails_the_gate_and_the_three_sources_agree(judged: RunningMesh) -> None:
    status, told = report(judged, "--tenant", "acme")
    assert (status, told["broken"]) == (1, True)
    found = model(told, "acme")
    assert (found["requests"], found["met"], found["missed"], found["violated"]) == (GOOD + LATE, GOOD, LATE, LATE)
    (promise,) = found["objectives"]
    assert (promise["name"], promise["broken"], promise["missed"]) == ("promise", True, LATE)
    assert [burn["fires"] for burn in promise["burn_rates"]] == [False, True, True]
    assert (found["causes_from"], sum(found["causes"].values())) == ("traces", LATE)
    assert found["completeness"]["kept"] == found["completeness"]["counted"] == LATE
    assert found["completeness"]["orphans"] == 0
    assert [check["agrees"] for check in found["checks"]] == [True] * len(found["checks"])
    assert 0 < found["quantiles_s"]["p50"] <= found["quantiles_s"]["p99"] < 30
    worst = found["worst"][0]["trace_id"]
    assert f"trace {worst}" in judged.command("trace", "show", worst)


def test_objectives_that_were_kept_pass_the_gate_each_counted_by_itself(judged: RunningMesh) -> None:
    status, told = report(judged, "--tenant", "bolt", "--strict")
    found = model(told, "bolt")
    assert (status, told["broken"], told["doubtful"]) == (0, False, False), found
    assert {each["name"]: (each["met"], each["missed"]) for each in found["objectives"]} == {
        "fast": (GOOD, 0),
        "promised": (GOOD, 0),
    }
    assert [each["tenant"] for each in told["models"]] == ["bolt"], "nobody else's name is told"


def test_nothing_counted_is_nothing_broken_and_nothing_proved(judged: RunningMesh) -> None:
    assert report(judged, "--tenant", "idle")[0] == 0
    status, told = report(judged, "--tenant", "idle", "--strict")
    assert (status, told["doubtful"]) == (3, True)


def test_the_report_is_text_and_one_page(judged: RunningMesh, tmp_path: Path) -> None:
    done = judged.apportion("slo", "report")
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
    assert "acme/linear" in done.stdout
    written = tmp_path / "report.html"
    assert judged.apportion("slo", "report", "--html", str(written)).returncode == 1
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.handle_startendtag = parser.handle_starttag  # type: ignore[method-assign]
    parser.feed(written.read_text())
    assert tags.count("section") == 3
    assert "svg" in tags
    assert "script" not in tags


def test_objectives_are_exported_for_other_tools_and_their_counters_exist(judged: RunningMesh) -> None:
    documents = list(yaml.safe_load_all(judged.command("slo", "export", "--format", "openslo")))
    assert [each["kind"] for each in documents].count("SLO") == 4
    rules = yaml.safe_load(judged.command("slo", "export", "--format", "prometheus", "--tenant", "bolt"))
    assert len(rules["groups"]) == 2
    total = judged.total("apportion_frontend_slo_requests_total", tenant="bolt", objective_us="30000000", met="true")
    assert total == GOOD


def test_an_objective_that_is_taken_away_judges_no_longer(judged: RunningMesh) -> None:
    judged.command("slo", "set", "linear", "50 % within 1 s", "--tenant", "idle")
    assert "50 % within 1 s over 30 days" in judged.command("slo", "list", "--tenant", "idle")
    judged.command("slo", "remove", "linear", "--tenant", "idle")
    assert "promise" in judged.command("slo", "list", "--tenant", "idle")
    assert judged.apportion("slo", "remove", "linear", "--tenant", "idle").returncode == 1
    assert judged.apportion("slo", "set", "linear", "most of the time", "--tenant", "idle").returncode == 2
