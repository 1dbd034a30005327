"""Objectives with a real Prometheus: it takes the rules that are exported, and a report from its counters says the same.

Needs `prometheus` and `promtool` (`deploy/lint/prometheus.sh`); without them nothing here runs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.lint.rules import tool_of_prometheus
from services.cli.slo import exports
from services.tracestore.core.budgets import Objective
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh.calling import Caller, request
from tests.mesh.running import RunningMesh, running

SERVER, TOOL = tool_of_prometheus("prometheus"), tool_of_prometheus("promtool")
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
GOOD, LATE = 80, 5
DAY_S = 86_400

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SERVER is None or TOOL is None, reason="no prometheus on this machine"),
]


def test_rules_are_rules_to_prometheus_whatever_the_names(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    objectives = [
        Objective("acme", "m", "fast", 990_000, 50_000, 30 * DAY_S),
        Objective("acme", "m", "promise", 999_900, None, 28 * DAY_S),
        Objective('a"}\\ {{ $x', "m\n", "#'", 1_000_000, 1, 90),
    ]
    rules.write_text(exports.prometheus(objectives))
    done = subprocess.run([str(TOOL), "check", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "23 rules found" in done.stdout
    assert "duplicate" not in done.stdout


def test_an_alert_fires_for_whom_it_should_and_for_nobody_else(tmp_path: Path) -> None:
    objectives = [
        Objective(tenant, "m", "fast", 990_000, 50_000, 30 * DAY_S) for tenant in ("burns", "calm", "{{ calm }}")
    ]
    (tmp_path / "rules.yml").write_text(exports.prometheus(objectives))
    series = [
        {"series": exports.selector(each, met=met), "values": f"0+{rate}x600"}
        for each, bad in zip(objectives, (20, 0, 0), strict=True)
        for met, rate in ((True, 100 - bad), (False, bad))
    ]
    expected = [
        {
            "exp_labels": {"tenant": "burns", "model": "m", "slo": "fast", "severity": severity, "window": window},
            "exp_annotations": {
                "summary": f"burns/m fast spends {spent} % of its budget within {window}",
                "description": "99 % within 50 ms over 30 days",
            },
        }
        for severity, window, spent in (("page", "1h", 2), ("page", "6h", 5), ("ticket", "3d", 10))
    ]
    told = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "alert_rule_test": [
                    {"eval_time": "9h", "alertname": "ApportionSloBudgetBurn", "exp_alerts": expected},
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(json.dumps(told))
    done = subprocess.run(
        [str(TOOL), "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


@contextmanager
def scraping(target: str, folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes one frontend every second; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    jobs = [{"job_name": "frontend", "static_configs": [{"targets": [target]}]}]
    (folder / "prometheus.yml").write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    flags = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(SERVER), *flags, f"--web.listen-address={address}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def asked(url: str, query: str) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/query?query={query}", timeout=5) as answer:
        return json.loads(answer.read())["data"]["result"]


def eventually(holds: Any, seconds: float = 40.0) -> None:
    ends = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except (OSError, IndexError):
            pass
        assert time.monotonic() < ends, "it never came to hold"
        time.sleep(0.5)


def model(mesh: RunningMesh, *flags: str) -> Any:
    done = mesh.apportion("slo", "report", "--json", "--last", "10m", *flags)
    assert done.stdout, done.stderr
    (found,) = json.loads(done.stdout)["models"]
    return done.returncode, found


def test_a_report_from_prometheus_says_what_one_from_the_store_says(tmp_path: Path) -> None:
    linear = tmp_path / "linear.onnx"
    linear.write_bytes(linear_onnx())
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with running(tmp_path / "data", environment={"APPORTION_FRONTEND_METRICS_EXPORT_S": "0.5"}) as mesh:
        mesh.create_tenant("acme")
        mesh.push("linear", linear, tenant="acme", options=("--slo-ms", "60000"))
        mesh.command("slo", "set", "linear", "99 % within 30 s over 2 hours", "--tenant", "acme", "--name", "fast")
        mesh.command("slo", "set", "linear", "99 % over 1 day", "--tenant", "acme", "--name", "promised")
        with scraping(mesh.addresses["metrics"], folder) as url:
            eventually(lambda: asked(url, "up")[0]["value"][1] == "1")
            time.sleep(2)
            with Caller(mesh, "acme") as caller:
                for number in range(GOOD + LATE):
                    own = {"slo_ms": 0.001} if number >= GOOD else {}
                    caller.send(request("linear", {"x": ROWS}, **own))
            total = "sum(apportion_frontend_requests_total)"
            eventually(lambda: asked(url, total)[0]["value"][1] == str(GOOD + LATE))
            eventually(lambda: model(mesh)[1]["requests"] == GOOD + LATE)
            (status, ours), (other_status, theirs) = model(mesh), model(mesh, "--prometheus", url)
    assert status == other_status == 1
    for key in ("requests", "outcomes", "met", "missed", "violated"):
        assert ours[key] == theirs[key], key
    assert [(each["name"], each["met"], each["missed"], each["broken"]) for each in theirs["objectives"]] == [
        ("fast", GOOD + LATE, 0, False),
        ("promised", GOOD, LATE, True),
    ]
    assert theirs["causes"] == ours["causes"]
    assert theirs["completeness"] == ours["completeness"]
    assert ours["quantiles_s"]["p50"] <= theirs["quantiles_s"]["p50"] * 1.05
