"""In which order tests are run, and by which of several processes: `make test` runs two of them."""

from __future__ import annotations

from typing import Any

import pytest

ROOMS = ("mesh", "simulator", "gpu_sharing", "access", "executor", "registry", "scheduler", "tracestore")
"""Those whose files take longest come first, so that no process is left with a long file when the others are done."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts by room; within a room everything stays where it was."""
    items.sort(key=lambda item: ROOMS.index(room) if (room := item.path.parent.name) in ROOMS else len(ROOMS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deals tests out by file, but all that start meshes to one process: they share some, and wait more than they work, while
    the other process works."""
    from xdist.scheduler import LoadFileScheduling

    class Dealing(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/mesh" if file.startswith("tests/mesh/") else file

    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return Dealing(config, log)
