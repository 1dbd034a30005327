"""A real executor changes its layout under load: by demand, and as an operator wants it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from bench.models import elementwise, perceptron
from tests.mesh.running import RunningMesh, running, wait_until
from tests.mesh.surviving import OK, Traffic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed"),
]
MIB = 1 << 20
MEMORY_BYTES = 192 * MIB
"""Of one lane with both cores; each of two lanes has half."""


def in_force(mesh: RunningMesh) -> tuple[str, int]:
    """The layout in force, and how many workers there are."""
    (executor,) = mesh.fleet()["executors"]
    device, report = executor["device"], executor["report"]
    return device["layouts"][int(report.get("layout", 0))]["name"], len(mesh.workers())


async def test_a_device_changes_its_layout_under_load_and_no_request_fails(tmp_path: Path) -> None:
    one, two = sorted(os.sched_getaffinity(0))[:2]
    apart, together = f"{one};{two}", f"{one}-{two}" if two == one + 1 else f"{one},{two}"
    environment = {
        "APPORTION_EXECUTOR_LAYOUTS": f"{apart}|{together}",
        "APPORTION_EXECUTOR_MEMORY_BYTES": str(MEMORY_BYTES),
        "APPORTION_SCHEDULER_LAYOUT_STEADY_S": "1",
    }
    # More than half of the memory.
    large = perceptron(tmp_path / "large.onnx", blocks=52)
    small = elementwise(tmp_path / "identity.onnx", "Identity")
    with running(tmp_path / "data", environment=environment) as mesh:
        for name in ("first", "second"):
            mesh.push(name, small)
        assert in_force(mesh) == (apart, 2)
        address = mesh.addresses["frontend"]
        async with Traffic(address, "first", rate=60) as first, Traffic(address, "second", rate=60) as second:
            await first.all_well()
            await asyncio.to_thread(mesh.push, "large", large)
            await asyncio.to_thread(wait_until, lambda: in_force(mesh) == (together, 1), timeout_s=60)
            executor = mesh.fleet()["executors"][0]["executor_id"]
            refused = await asyncio.to_thread(mesh.apportion, "layout", executor, apart)
            assert "there would be no place for default/large version 1" in refused.stderr
            await asyncio.to_thread(mesh.command, "model", "remove", "large")
            await asyncio.to_thread(mesh.command, "layout", executor, apart)
            await asyncio.to_thread(wait_until, lambda: in_force(mesh) == (apart, 2), timeout_s=60)
            await first.all_well()
            await second.all_well()
        answers = [*first.answers, *second.answers]
        assert not [each for each in answers if each.code != OK]
        print(f"{len(answers)} requests, slowest {max(each.took_s for each in answers) * 1000:.0f} ms")
