"""`apportion up` with the real services."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.mesh.running import FREE, PORTS, SHARED_MEMORY, running, wait_until


def test_a_mesh_comes_up_and_says_who_is_there(mesh):
    assert set(mesh.addresses) == {"frontend", "metrics", "registry", "scheduler", "executor", "otlp", "query"}
    fleet = mesh.fleet()
    assert [executor["attached"] for executor in fleet["executors"]] == [True]


def test_a_second_up_on_the_same_data_is_told_to_choose_another(mesh):
    done = mesh.apportion("up")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: already running (pid {mesh.process.pid}) on {mesh.data}; stop it or choose another --data\n"
    )


def test_a_port_that_is_taken_ends_up_with_one_line(mesh, tmp_path):
    ports = [part for name in PORTS if name != "registry" for part in (f"--{name}", FREE)]
    other = replace(mesh, data=tmp_path / "other")
    done = other.apportion("up", "--registry", mesh.addresses["registry"], *ports)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: registry: cannot listen on {mesh.addresses['registry']}: the port is in use")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_second_up_on_the_same_data_finds_everything_as_it_was(tmp_path):
    with running(tmp_path / "data") as first:
        key = first.create_tenant("search", reserve=0.25)
    with running(tmp_path / "data") as second:
        shown = second.command("tenant", "list")
        assert "search" in shown
        assert "0.25" in shown
    assert key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["registry", "scheduler", "frontend", "tracestore", "executor"])
def test_a_service_that_is_killed_comes_back_on_its_ports(own_mesh, name):
    before = own_mesh.pids()
    os.kill(before[name], signal.SIGKILL)
    wait_until(lambda: own_mesh.pids()[name] != before[name], what=f"the restart of {name}")
    wait_until(lambda: any(e["attached"] for e in own_mesh.fleet()["executors"]), what="the executor's return")
    assert own_mesh.apportion("tenant", "list").returncode == 0


@pytest.mark.slow
def test_nothing_is_left_when_up_is_killed_outright(tmp_path):
    shared_before = set(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.exists() else set()
    kill_outright(tmp_path / "data")
    shared = set(os.listdir(SHARED_MEMORY)) - shared_before if SHARED_MEMORY.exists() else set()
    assert not {name for name in shared if "apportion" in name}
    # The next one is not held up by what the first left.
    with running(Path(tmp_path / "data")) as again:
        assert again.fleet()["executors"]


def kill_outright(data):
    """Kills `apportion up` itself; every process beneath it has to end by itself."""
    with running(data) as mesh:
        family = mesh.family()
        mesh.process.kill()
        mesh.process.wait()
        gone, left = psutil.wait_procs(family, timeout=20)
        assert not left
        assert len(gone) >= 6
