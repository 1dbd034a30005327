"""Device time in a whole mesh: what the books say is what ran, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from tests.mesh.calling import Caller, request
from tests.mesh.running import RunningMesh, running, wait_until
from tests.mesh.tiny import slow

pytestmark = pytest.mark.slow

TENANTS = ("acme", "umbrella")
TURNS = 300
"""Some tens of milliseconds, in one slice."""
LONGEST = 3
"""A slice may take so many times what they take on average."""
AROUND_A_SLICE_S = 0.0005
"""What may lie between the lane's clock around a slice and the times that its batch is told with."""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[RunningMesh]:
    with running(tmp_path / "data") as mesh:
        path = slow(tmp_path / "slow.onnx")
        for tenant in TENANTS:
            mesh.create_tenant(tenant, reserve=0.2)
            mesh.push("slow", path, tenant=tenant)
        yield mesh


@contextmanager
def load(mesh: RunningMesh) -> Iterator[list[float]]:
    """Each tenant always has one request in hand; how long each answer took, over all of them."""
    stop, took = threading.Event(), list[float]()

    def ask(tenant: str) -> None:
        asked = request("slow", {"turns": np.array([TURNS], np.int64)})
        with Caller(mesh, tenant) as caller:
            while not stop.is_set():
                started = time.monotonic()
                try:
                    caller.send(asked, timeout_s=30)
                except grpc.RpcError:
                    stop.wait(0.05)
                else:
                    took.append(time.monotonic() - started)

    threads = [threading.Thread(target=ask, args=(tenant,)) for tenant in TENANTS]
    for thread in threads:
        thread.start()
    try:
        yield took
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def answered(mesh: RunningMesh, tenant: str) -> tuple[float, int]:
    """The device time of the batches behind a tenant's answers as its callers were told, in seconds, and how many."""
    us = mesh.total("nv_inference_compute_infer_duration_us", tenant=tenant)
    return us / 1e6, int(mesh.total("nv_inference_request_success", tenant=tenant))


def counted(mesh: RunningMesh) -> dict[str, float]:
    """The device time that the scheduler knows of, in seconds; nothing while it cannot be asked."""
    done = mesh.apportion("top", "--json")
    return {each["tenant"]: each["device_s"] for each in json.loads(done.stdout)["tenants"]} if done.stdout else {}


def kill(mesh: RunningMesh, victim: str) -> None:
    if victim == "worker":
        mesh.workers()[0].send_signal(signal.SIGKILL)
        return
    pid = mesh.pids()[victim]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: mesh.pids().get(victim) not in (None, pid), what=f"the return of the {victim}")


def killed_under_load(mesh: RunningMesh, victim: str) -> None:
    """Traffic, a death in the middle of it, and traffic again."""
    with load(mesh) as took:
        wait_until(lambda: len(took) >= 40, timeout_s=60, what="traffic")
        kill(mesh, victim)
        most = len(took) + 10
        wait_until(lambda: len(took) >= most, timeout_s=60, what=f"service after the {victim}'s death")


def settled(mesh: RunningMesh) -> bool:
    """Whether nothing more is counted."""
    before = counted(mesh)
    time.sleep(1.2)
    return bool(before) and before == counted(mesh)


def compared(mesh: RunningMesh, *, deaths: int) -> dict[str, Any]:
    """By tenant what its callers were told and what is counted, and whether they agree to the slice that ran at each death."""
    found, story = counted(mesh), {}
    for tenant in TENANTS:
        seconds, requests = answered(mesh, tenant)
        around_s = requests * AROUND_A_SLICE_S
        # Of what was counted and not told there is at most the one slice, for each death, whose answer never came.
        most_s = seconds + around_s + deaths * LONGEST * seconds / requests
        exact = seconds - around_s <= found[tenant] <= most_s
        story[tenant] = {"told_s": seconds, "counted_s": found[tenant], "requests": requests, "exact": exact}
    return story


def test_whoever_is_killed_under_load_what_was_used_is_counted_to_the_slice(busy: RunningMesh) -> None:
    for victim in ("executor", "worker", "scheduler", "executor"):
        killed_under_load(busy, victim)
    wait_until(lambda: settled(busy), what="the last report")
    story = compared(busy, deaths=3)
    assert all(each["exact"] for each in story.values()), story
    metrics = busy.addresses["executor_metrics"]
    for tenant, each in story.items():
        exposed = busy.total("apportion_executor_device_seconds_total", metrics, tenant=tenant, model="slow")
        assert exposed == pytest.approx(each["counted_s"], abs=1e-6)


def test_an_executor_that_is_told_to_stop_takes_nothing_with_it(busy: RunningMesh) -> None:
    with load(busy) as took:
        wait_until(lambda: len(took) >= 20, timeout_s=60, what="traffic")
    pid = busy.pids()["executor"]
    psutil.Process(pid).terminate()
    wait_until(lambda: busy.pids().get("executor") not in (None, pid), what="the return of the executor")
    for tenant in TENANTS:
        seconds, requests = answered(busy, tenant)
        wait_until(
            lambda tenant=tenant, least=seconds - requests * AROUND_A_SLICE_S: counted(busy).get(tenant, 0.0) >= least,
            what="what it used",
        )
        assert counted(busy)[tenant] <= seconds + requests * AROUND_A_SLICE_S


def test_models_that_are_removed_leave_their_time_to_their_tenant_and_their_names_to_nobody(tmp_path: Path) -> None:
    path = slow(tmp_path / "slow.onnx")
    with running(tmp_path / "data", environment={"APPORTION_SCHEDULER_FOLD_S": "0.5"}) as mesh:
        mesh.create_tenant("acme", reserve=0.2)
        for number in range(4):
            mesh.push(f"slow-{number}", path, tenant="acme")
            asked = request(f"slow-{number}", {"turns": np.array([TURNS], np.int64)})
            with Caller(mesh, "acme") as caller:
                for _ in range(3):
                    caller.send(asked, timeout_s=30)
            mesh.command("model", "remove", f"slow-{number}", "--tenant", "acme")

        def device_s() -> dict[str, float]:
            told = mesh.metrics(mesh.addresses["executor_metrics"])
            name = "apportion_executor_device_seconds_total"
            return {
                found["model"]: value for what, found, value in told if (what, found.get("tenant")) == (name, "acme")
            }

        wait_until(lambda: list(device_s()) == [""], what="no model's name in the executor's counts")
        seconds, requests = answered(mesh, "acme")
        used_s = device_s()[""]
        assert requests == 12
        assert abs(used_s - seconds) <= requests * AROUND_A_SLICE_S
        for victim in ("scheduler", "executor"):
            kill(mesh, victim)
            wait_until(lambda: counted(mesh).get("acme", 0.0) > 0, what="the tenant's use")
            assert counted(mesh)["acme"] == pytest.approx(used_s, abs=1e-6)
