"""Quotas in a whole mesh: held over two frontends, also with the scheduler gone; and who used how much, as the registry has it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.mesh import calling
from tests.mesh import test_mesh_metering as metering
from tests.mesh.calling import Caller, request
from tests.mesh.flooding import CHANNELS, Sent, send
from tests.mesh.running import RunningMesh, running, wait_until
from tests.mesh.tiny import echo, slow

pytestmark = pytest.mark.slow

RATE, BURST = 40, 4
ASKED = request("echo", {"in_float32": np.ones((1, 4), np.float32)})
REFUSED = "QUOTA_EXCEEDED requests_per_s"
SLACK_S = 1.0
"""Device time that may be used before it is reported."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("quotas")
    with running(folder / "data", "--frontends", "2") as mesh:
        mesh.create_tenant("flood")
        mesh.push("echo", echo(folder / "echo.onnx", "float32"), tenant="flood")
        mesh.command("quota", "set", "flood", "--rate", str(RATE), "--burst", str(BURST))
        wait_until(lambda: holders(mesh) == 2, what="two frontends with a part of the quota")
        yield mesh


def holders(mesh: RunningMesh) -> int:
    """Frontends that hold a part of the flood's quota."""
    listed = json.loads(mesh.command("quota", "show", "flood", "--json"))
    assert listed["quotas"][0]["limit"] == f"{RATE} (burst {BURST})"
    return int(listed["frontends"])


def flood(mesh: RunningMesh, seconds: float) -> Sent:
    sending = send(
        mesh.addresses["frontend"],
        mesh.metadata("flood"),
        ASKED,
        rate_per_s=10 * RATE,
        seconds=seconds,
        channels=CHANNELS,
    )
    return asyncio.run(sending)


def test_a_flood_through_two_frontends_is_admitted_at_its_quota(two: RunningMesh) -> None:
    sent = flood(two, 10.0)
    # The first seconds are those in which the frontends' parts come to what they are asked for.
    admitted = sent.within(3.0, 10.0)
    assert admitted == pytest.approx(7 * RATE, rel=0.05, abs=BURST)
    assert set(sent.refused) == {REFUSED}
    assert max(sent.retry_s) <= 1.0
    for address in ("metrics", "metrics-2"):
        refused = two.total(
            "apportion_frontend_requests_total", two.addresses[address], tenant="flood", outcome="QUOTA_EXCEEDED"
        )
        assert refused > 0, "both frontends had their part of it"


def test_with_the_scheduler_gone_the_quota_holds_and_goes_on_being_served(two: RunningMesh) -> None:
    scheduler = two.pids()["scheduler"]
    os.kill(scheduler, signal.SIGSTOP)
    try:
        sent = flood(two, 9.0)
    finally:
        os.kill(scheduler, signal.SIGCONT)
    # Leases have run out by now; each frontend has an even part, and neither is without callers.
    admitted = sent.within(4.0, 9.0)
    assert 0.85 * 5 * RATE <= admitted <= 1.05 * 5 * RATE + BURST
    wait_until(lambda: two.apportion("status").returncode == 0, what="the scheduler")


def test_what_was_used_is_in_the_registry_and_costs_what_was_said(two: RunningMesh) -> None:
    two.command("usage", "price", "set", "2.5")
    two.create_tenant("payer")
    with Caller(two, "flood") as caller:
        for _ in range(5):
            # A second's worth comes back in a second.
            wait_until(lambda: _answered(caller), what="an answer")

    def answered() -> float:
        return sum(
            two.total("apportion_frontend_requests_total", two.addresses[address], tenant="flood", outcome="ok")
            for address in ("metrics", "metrics-2")
        )

    def listed() -> list[dict[str, float]]:
        return json.loads(two.command("usage", "--tenant", "flood", "--by", "total", "--json"))["rows"]

    wait_until(lambda: sum(row["requests"] for row in listed()) >= answered(), timeout_s=40, what="all of the use")
    (row,) = listed()
    assert row["requests"] == answered()
    assert row["device_seconds"] > 0
    assert row["cost"] == pytest.approx(2.5 * row["device_seconds"], rel=1e-6)
    wait_until(lambda: listed()[0]["bytes_in"] > 0, timeout_s=40, what="the bytes")
    assert json.loads(two.command("usage", "--tenant", "payer", "--json"))["rows"] == []
    (as_csv,) = csv.DictReader(io.StringIO(two.command("usage", "--tenant", "flood", "--by", "total", "--csv")))
    assert float(as_csv["requests"]) >= row["requests"]
    assert "flood" in two.command("usage")


def test_device_time_is_over_comes_back_and_is_paid_back(two: RunningMesh, tmp_path: Path) -> None:
    two.create_tenant("heavy", reserve=0.1)
    two.push("slow", slow(tmp_path / "slow.onnx"), tenant="heavy")
    two.command("quota", "set", "heavy", "--device-time", "1", "--interval", "10")
    asked = request("slow", {"turns": np.array([300], np.int64)})
    refused: list[float] = []

    def is_refused() -> bool:
        try:
            caller.send(asked)
        except grpc.RpcError as error:
            code, refusal = calling.refused(error)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (refusal.reason, refusal.facts["quota"]) == ("QUOTA_EXCEEDED", "device_time")
            assert refusal.facts["limit"] == "1 device-seconds in 10 s"
            refused.append(refusal.retry_after_s or 0.0)
            return True
        return False

    with Caller(two, "heavy") as caller:
        wait_until(is_refused, timeout_s=60, what="the end of the device time")
        (line,) = json.loads(two.command("quota", "show", "heavy", "--json"))["quotas"]
        # Some of it comes back while the command starts.
        assert float(line["used"].split()[0]) >= 0.5
        assert refused[0] > 0
        wait_until(lambda: not is_refused(), timeout_s=60, what="its return")
        # From here on no more is used than comes back, whatever is asked for.
        began, before = time.monotonic(), used_s(two, "heavy")
        while time.monotonic() < began + 15:
            is_refused()
            time.sleep(0.02)
        wait_until(lambda: metering.settled(two), what="the last report")
        most_s = (time.monotonic() - began) / 10 + SLACK_S
        assert used_s(two, "heavy") - before <= most_s


def used_s(mesh: RunningMesh, tenant: str) -> float:
    """Device time so far."""
    return metering.counted(mesh)[tenant]


def _answered(caller: Caller) -> bool:
    try:
        caller.send(ASKED)
    except Exception:
        return False
    return True
