"""A real executor changes its layout under load, by demand and as an operator wants it: `python -m bench.layouts`.

Two small models are called at a steady rate on two lanes of one core each. A model comes that is too large for either lane's part
of the memory: the device becomes one lane. It goes again, and an operator has the device divided again. Prints how requests
fared before, during and after each change; the last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.models import elementwise, perceptron
from tests.mesh.running import RunningMesh, running, wait_until
from tests.mesh.surviving import OK, Answer, Traffic

MEMORY_BYTES = 192 << 20
"""Of one lane with both cores; each of two lanes has half."""
CHANGE_S = 60.0


@dataclass(frozen=True)
class Story:
    """What became of it. changes: when each began and was over; refused: what was said to a layout without a place for a model."""

    answers: list[Answer]
    changes: dict[str, tuple[float, float]]
    refused: str


def in_force(mesh: RunningMesh) -> tuple[str, int]:
    """The layout in force, and how many workers there are."""
    (executor,) = mesh.fleet()["executors"]
    device, report = executor["device"], executor["report"]
    return device["layouts"][int(report.get("layout", 0))]["name"], len(mesh.workers())


async def change_layouts(folder: Path, rate: float = 60.0) -> Story:
    """Lives the story in a mesh of its own. rate: requests a second to each of two models."""
    one, two = sorted(os.sched_getaffinity(0))[:2]
    apart, together = f"{one};{two}", f"{one}-{two}" if two == one + 1 else f"{one},{two}"
    environment = {
        "APPORTION_EXECUTOR_LAYOUTS": f"{apart}|{together}",
        "APPORTION_EXECUTOR_MEMORY_BYTES": str(MEMORY_BYTES),
        "APPORTION_SCHEDULER_LAYOUT_STEADY_S": "1",
    }
    large = perceptron(folder / "large.onnx", blocks=52)
    small = elementwise(folder / "identity.onnx", "Identity")
    changes: dict[str, tuple[float, float]] = {}
    with running(folder / "data", environment=environment) as mesh:
        for name in ("first", "second"):
            mesh.push(name, small)
        assert in_force(mesh) == (apart, 2)
        address = mesh.addresses["frontend"]
        async with Traffic(address, "first", rate=rate) as first, Traffic(address, "second", rate=rate) as second:
            await first.all_well()
            began = time.monotonic()
            await asyncio.to_thread(mesh.push, "large", large)
            await until(mesh, (together, 1))
            changes["by demand"] = began, time.monotonic()
            executor = mesh.fleet()["executors"][0]["executor_id"]
            refused = await asyncio.to_thread(mesh.apportion, "layout", executor, apart)
            await asyncio.to_thread(mesh.command, "model", "remove", "large")
            began = time.monotonic()
            await asyncio.to_thread(mesh.command, "layout", executor, apart)
            await until(mesh, (apart, 2))
            changes["by an operator"] = began, time.monotonic()
            await first.all_well()
            await second.all_well()
        return Story([*first.answers, *second.answers], changes, refused.stderr)


async def until(mesh: RunningMesh, expected: tuple[str, int]) -> None:
    """Waits until this layout is in force, with so many workers."""
    await asyncio.to_thread(wait_until, lambda: in_force(mesh) == expected, timeout_s=CHANGE_S, what=str(expected))


def figures(story: Story) -> dict[str, Any]:
    """By part of the story: requests, how they ended, times in milliseconds."""
    parts: dict[str, list[Answer]] = {"at rest": [], **{name: [] for name in story.changes}}
    for answer in story.answers:
        changing = (name for name, (begins, ends) in story.changes.items() if begins <= answer.at_s <= ends)
        parts[next(changing, "at rest")].append(answer)
    told: dict[str, Any] = {}
    for name, answers in parts.items():
        took_ms = np.array([each.took_s for each in answers]) * 1000
        told[name] = {
            "requests": len(answers),
            "failed": sum(each.code != OK for each in answers),
            "codes": dict(Counter(each.code for each in answers)),
            "p50_ms": round(float(np.percentile(took_ms, 50)), 1),
            "p99_ms": round(float(np.percentile(took_ms, 99)), 1),
        }
        if name in story.changes:
            begins, ends = story.changes[name]
            told[name]["took_s"] = round(ends - begins, 1)
    return told


def main() -> None:
    """Runs and prints."""
    with tempfile.TemporaryDirectory() as folder:
        told = figures(asyncio.run(change_layouts(Path(folder))))
    for name, each in told.items():
        print(f"{name:>15}: {each['requests']} requests, {each['failed']} failed, p99 {each['p99_ms']} ms")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
