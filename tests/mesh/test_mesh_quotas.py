"""Quotas in a whole mesh: held over two frontends, also with the scheduler gone; and who used how much, as the registry has it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from tests.mesh.calling import Caller, request
from tests.mesh.flooding import CHANNELS, Sent, send
from tests.mesh.running import RunningMesh, running, wait_until
from tests.mesh.tiny import echo

pytestmark = pytest.mark.slow

RATE, BURST = 40, 4
ASKED = request("echo", {"in_float32": np.ones((1, 4), np.float32)})
REFUSED = "QUOTA_EXCEEDED requests_per_s"


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


def _answered(caller: Caller) -> bool:
    try:
        caller.send(ASKED)
    except Exception:
        return False
    return True
