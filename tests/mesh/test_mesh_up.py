"""`apportion up` with the real services."""

from __future__ import annotations

from dataclasses import replace

from tests.mesh.running import FREE, PORTS


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
