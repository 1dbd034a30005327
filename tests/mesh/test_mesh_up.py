"""`apportion up` with the real services."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.mesh.running import FREE, PORTS


def test_a_mesh_comes_up_and_says_who_is_there(mesh):
    assert set(mesh.addresses) == {name.replace("-", "_") for name in PORTS}
    fleet = mesh.fleet()
    assert [executor["attached"] for executor in fleet["executors"]] == [True]


def test_a_second_up_on_the_same_data_is_told_to_choose_another(mesh):
    done = mesh.apportion("up")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: already running (pid {mesh.process.pid}) on {mesh.data}; stop it or choose another --data\n"
    )


@pytest.mark.parametrize("name", PORTS)
def test_a_port_that_is_taken_is_one_line_before_anything_starts(mesh, tmp_path, name):
    ports = [part for other in PORTS if other != name for part in (f"--{other}", FREE)]
    address = mesh.addresses[name.replace("-", "_")]
    done = replace(mesh, data=tmp_path / "other").apportion("up", f"--{name}", address, *ports)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: --{name}: cannot listen on {address}: the port is in use; stop what holds it or choose another\n"
    )
    assert not list((tmp_path / "other" / "logs").iterdir())
