"""The whole mesh as `apportion up` runs it, for tests that want the real thing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.running import RunningMesh, running


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """One mesh for all tests that leave it as they found it: give your tenants names of their own."""
    with running(tmp_path_factory.mktemp("mesh") / "data") as started:
        yield started


@pytest.fixture(scope="session")
def mesh_of_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A mesh of two frontends on one port whose processes tests may kill: whoever does so waits until it serves again."""
    with running(tmp_path_factory.mktemp("two") / "data", "--frontends", "2") as started:
        yield started


@pytest.fixture
def own_mesh(tmp_path: Path) -> Iterator[RunningMesh]:
    """A mesh that this test may break."""
    with running(tmp_path / "data") as started:
        yield started
