"""How a mesh begins, ends and begins again, and what becomes of it when one of its processes is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from services._proto.inference import grpc_service_pb2 as oip
from services.common.status import from_rpc_error
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh import tiny
from tests.mesh.calling import DEADLINE_S, Caller, request
from tests.mesh.running import RunningMesh, bearing, running, start, wait_until, wait_until_up

TENANT = "living"
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@dataclass
class TwoLives:
    """A mesh that was ended by Ctrl-C and started again on the same data."""

    took_s: float
    told: dict[str, Any]
    answered: np.ndarray
    first_status: int
    second: RunningMesh


def catalogue(mesh: RunningMesh) -> dict[str, Any]:
    """Tenants with their keys, and models with their versions, as commands tell them."""
    tenants, models = mesh.command("tenant", "list", "--json"), mesh.command("model", "list", "--json")
    return {"tenants": json.loads(tenants), "models": json.loads(models)}


def answer(mesh: RunningMesh) -> np.ndarray:
    """What the tenant's model says."""
    with Caller(mesh, TENANT) as caller:
        return caller.infer("linear", x=ROWS)["y"]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoLives]:
    folder = tmp_path_factory.mktemp("lives")
    linear, data = folder / "linear.onnx", folder / "data"
    linear.write_bytes(linear_onnx())
    begun = time.monotonic()
    first = start(data)
    try:
        wait_until_up(first)
        took_s = time.monotonic() - begun
        first.create_tenant(TENANT, reserve=0.25)
        first.push("linear", linear, tenant=TENANT, options=("--slo-ms", "60000", "--max-batch", "8"))
        told, answered = catalogue(first), answer(first)
    finally:
        status = first.stop(signal.SIGINT)
    with running(data) as second:
        second.keys = first.keys
        yield TwoLives(took_s, told, answered, status, second)
        assert second.stop(signal.SIGTERM) == 0


def test_a_mesh_says_when_it_is_ready_and_how_long_that_took(
    lives: TwoLives, record_property: Callable[[str, object], None]
) -> None:
    record_property("ready_s", lives.took_s)
    # How long is told and not judged: it is the machine's speed as much as ours.
    print(f"ready after {lives.took_s:.1f} s")
    assert "apportion is up after" in lives.second.said.read_text()


def test_ctrl_c_ends_it_in_order_and_leaves_nothing_behind(lives: TwoLives) -> None:
    """That no process and no shared memory is left has been looked at when it was stopped."""
    assert lives.first_status == 0


def test_a_second_up_serves_at_once_whom_it_served_before_by_the_same_key(lives: TwoLives) -> None:
    def serves() -> bool:
        try:
            return np.array_equal(answer(lives.second), lives.answered)
        except grpc.RpcError as error:
            found = from_rpc_error(error)
            assert found is not None
            assert found.reason in ("MODEL_NOT_READY", "MODEL_UNPLACED"), found.message
            return False

    wait_until(serves, timeout_s=20, what="the model's return")


def test_a_second_up_finds_tenants_keys_and_models_as_they_were(lives: TwoLives) -> None:
    assert catalogue(lives.second) == lives.told


@pytest.mark.slow
def test_nothing_outlives_an_up_that_is_killed_outright_and_the_next_one_starts(tmp_path: Path) -> None:
    linear, data = tmp_path / "linear.onnx", tmp_path / "data"
    linear.write_bytes(linear_onnx())
    with running(data) as first:
        first.create_tenant(TENANT)
        first.push("linear", linear, tenant=TENANT)
        assert first.workers()
        first.stop(signal.SIGKILL)
    with running(data) as second:
        second.keys = first.keys
        wait_until(lambda: serves_again(second), what="the model's return")


@pytest.mark.slow
def test_sigterm_ends_it_as_ctrl_c_does_even_with_requests_in_hand(tmp_path: Path) -> None:
    slow = tiny.slow(tmp_path / "slow.onnx")
    with running(tmp_path / "data") as mesh:
        mesh.create_tenant(TENANT)
        mesh.push("slow", slow, tenant=TENANT)
        with traffic(mesh, lambda: request("slow", {"turns": np.array([3000])}), callers=3):
            assert mesh.stop(signal.SIGTERM) == 0


# Kills.


@dataclass
class Seen:
    """What callers saw while something died."""

    good: int = 0
    bad: list[str] = field(default_factory=list)
    last_good_at: float = 0.0


@contextmanager
def traffic(mesh: RunningMesh, asked: Callable[[], Any], callers: int = 1) -> Iterator[Seen]:
    """Callers who ask again and again while the block runs."""
    seen, over, lock = Seen(), threading.Event(), threading.Lock()

    def ask() -> None:
        with Caller(mesh, TENANT) as caller:
            while not over.is_set():
                try:
                    caller.send(asked(), timeout_s=10)
                except grpc.RpcError as error:
                    found = from_rpc_error(error)
                    with lock:
                        seen.bad.append(found.reason if found is not None else error.code().name)
                else:
                    with lock:
                        seen.good, seen.last_good_at = seen.good + 1, time.monotonic()
                over.wait(0.005)

    threads = [threading.Thread(target=ask) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def serves_again(mesh: RunningMesh) -> bool:
    """Whether a request is answered now."""
    try:
        answer(mesh)
    except grpc.RpcError:
        return False
    return True


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A mesh whose processes may be killed, one test after the other."""
    folder = tmp_path_factory.mktemp("mortal")
    linear = folder / "linear.onnx"
    linear.write_bytes(linear_onnx())
    with running(folder / "data") as mesh:
        mesh.create_tenant(TENANT, reserve=0.2)
        mesh.push("linear", linear, tenant=TENANT)
        mesh.push("slow", tiny.slow(folder / "slow.onnx"), tenant=TENANT)
        yield mesh


def good() -> Any:
    """A request that is answered in a moment."""
    return request("linear", {"x": ROWS})


def kill(mesh: RunningMesh, name: str) -> None:
    """Kills a process, sees its successor come, and makes sure that nothing of it stays."""
    pid = mesh.workers()[0].pid if name == "worker" else mesh.pids()[name]
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    os.kill(pid, signal.SIGKILL)
    _, left = psutil.wait_procs(family, timeout=10)
    assert not left, f"outlived its {name}: {[one.cmdline() for one in left]}"
    if name == "worker":
        wait_until(lambda: mesh.workers() and mesh.workers()[0].pid != pid, what="the next worker")
    else:
        wait_until(lambda: mesh.pids()[name] != pid, what=f"the next {name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["worker", "executor", "frontend"])
def test_service_returns_by_itself_when_somebody_kills_its(mortal: RunningMesh, name: str) -> None:
    with traffic(mortal, good) as seen:
        wait_until(lambda: seen.good > 10, what="answers before the kill")
        kill(mortal, name)
        returned = time.monotonic()
        wait_until(lambda: seen.last_good_at > returned and serves_again(mortal), what="answers after the kill")
        bad, good_so_far = len(seen.bad), seen.good
        wait_until(lambda: seen.good > good_so_far + 50, what="further answers")
        assert len(seen.bad) == bad, "it goes on failing"
    # Whatever was refused meanwhile was refused with a reason, or by gRPC where nobody listened.
    assert set(seen.bad) <= {"WORKER_LOST", "EXECUTOR_LOST", "MODEL_NOT_READY", "UNAVAILABLE", "NOT_SERVING"}, seen.bad


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scheduler", "registry", "tracestore"])
def test_no_request_notices_the_death_of_the(mortal: RunningMesh, tmp_path: Path, name: str) -> None:
    with traffic(mortal, good) as seen:
        wait_until(lambda: seen.good > 10, what="answers before the kill")
        kill(mortal, name)
        wait_until(lambda: f"{name} is back" in mortal.said.read_text(), what="its return")
        # The whole fleet has found together again once something new can be served.
        mortal.push(f"after-{name}", tiny.echo(tmp_path / f"{name}.onnx", "float32"), tenant=TENANT)
        good_so_far = seen.good
        wait_until(lambda: seen.good > good_so_far + 50, what="further answers")
    assert not seen.bad
    model = f"after-{name}"
    with Caller(mortal, TENANT) as caller:
        # The frontend hears of it a moment after the scheduler knows.
        asked = oip.ModelReadyRequest(name=model)
        wait_until(
            lambda: caller.stub.ModelReady(asked, metadata=caller.metadata).ready, what=f"{model} at the frontend"
        )
        found = caller.infer(model, in_float32=ROWS)["out_float32"]
    assert np.array_equal(found, ROWS)


@pytest.mark.slow
def test_a_mesh_that_nobody_used_for_over_a_minute_has_kept_its_connections(mortal: RunningMesh) -> None:
    wait_until(lambda: serves_again(mortal), what="answers before the silence")
    log = mortal.data / "logs" / "frontend.log"
    before = log.read_text()
    time.sleep(75)
    with traffic(mortal, good) as seen:
        wait_until(lambda: seen.good > 20, what="answers after the silence")
    assert not seen.bad
    assert "unreachable" not in log.read_text().removeprefix(before)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reason"), [("worker", "WORKER_LOST"), ("executor", "EXECUTOR_LOST")])
def test_a_request_in_hand_is_answered_at_once_when_somebody_kills_its(
    mortal: RunningMesh, name: str, reason: str
) -> None:
    wait_until(lambda: serves_again(mortal), what="answers before the kill")
    told: list[tuple[grpc.StatusCode, str, float]] = []

    def ask() -> None:
        with Caller(mortal, TENANT) as caller:
            code, refusal = caller.refusal(request("slow", {"turns": np.array([60_000])}))
            told.append((code, refusal.reason, time.monotonic()))

    asking = threading.Thread(target=ask)
    asking.start()
    labels = {"tenant": TENANT, "model": "slow"}
    wait_until(lambda: mortal.total("apportion_frontend_in_flight", **labels) == 1, what="its start")
    time.sleep(0.2)
    killed = time.monotonic()
    kill(mortal, name)
    asking.join()
    ((code, found, at),) = told
    assert (code.name, found) == ("UNAVAILABLE", reason)
    # Far below its deadline, however busy the machine is.
    assert at - killed < DEADLINE_S / 3, "the caller was left waiting"
    wait_until(lambda: serves_again(mortal), what="answers after the kill")


def test_nobody_else_runs_with_this_folder(tmp_path: Path) -> None:
    """That `bearing` finds nothing means something only because it finds what is there."""
    assert not list(bearing(str(tmp_path / "data")))
    with psutil.Popen(["sleep", "30"], env={"SOMETHING": str(tmp_path / "data")}) as sleeper:
        # A process that has just begun has no environment to show for a moment.
        found = lambda: [one.pid for one in bearing(str(tmp_path / "data"))] == [sleeper.pid]
        wait_until(found, timeout_s=5, what="what bears it")
        sleeper.kill()
