"""Does anything grow? Mixed load with loads and unloads for a long time, and the slope of what each process holds.

    python -m bench.soak [--minutes 30] [--rate 60] [--json FILE]

Small and large tensors over several models, unary and in streams, some of them wrong, some too late, some cancelled; meanwhile
models are pushed and removed again. Every few seconds: resident memory, file descriptors, threads and shared memory of every
process. The slopes are least squares over the last two thirds of the time, when caches are full, with an interval of 95 % that
takes into account how much neighbouring samples have in common. A quantity `grows` where all of that interval is above what is
allowed (a part of its size a minute), is `still` where none of it is, and `unclear` else: a longer run tells. Ends with a line of
JSON, and with status 1 where something grows or requests went wrong that should not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil

from bench.models import elementwise
from services._proto.inference import grpc_service_pb2_grpc as stubs
from tests.mesh.calling import request
from tests.mesh.running import RunningMesh, running

EVERY_S = 5.0
ALLOWED = 0.0005
"""Growth a minute, as a part of the size, that counts as none; of KiB, descriptors and threads at least the next."""
LEAST_ALLOWED = {"own KiB": 16.0, "shared KiB": 16.0, "files": 0.05, "threads": 0.05}
Z95 = 1.96
DEADLINE_S = 20.0
MODELS = {"identity": "Identity", "neg": "Neg", "abs": "Abs"}
EXTENTS = (16, 256, 4096, 200_000)
"""Values of a tensor: the last is sent in chunks."""
MIX = (0.6, 0.25, 0.1, 0.05)
KIB = 1024.0
FEWEST = 6
"""Samples without which there is no slope."""
GROWS, STILL, UNCLEAR = "grows", "still", "unclear"


class Slope(NamedTuple):
    """Growth a minute, and how far the interval of 95 % goes to either side."""

    a_minute: float
    give: float


@dataclass
class Samples:
    """What one process held, by moment."""

    at_s: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def note(self, at_s: float, **values: float) -> None:
        self.at_s.append(at_s)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def slope(self, name: str) -> Slope:
        """Growth a minute over the last two thirds."""
        third = len(self.at_s) // 3
        at, values = np.array(self.at_s[third:]) / 60, np.array(self.values[name][third:])
        if len(at) < FEWEST:
            return Slope(0.0, float("inf"))
        slope, start = np.polyfit(at - at[0], values, 1)
        rest = values - (start + slope * (at - at[0]))
        spread = float(np.sum(rest**2))
        if spread <= 1e-9 * max(1.0, float(np.sum(values**2))):
            return Slope(float(slope), 0.0)
        # Samples that follow one another tell less than as many apart: the fewer count.
        alike = min(0.95, max(0.0, float(np.sum(rest[1:] * rest[:-1])) / spread))
        free = max(2.0, len(at) * (1 - alike) / (1 + alike) - 2)
        error = float(np.sqrt(spread / free / np.sum((at - at.mean()) ** 2)))
        # Student's t by its first term beyond the normal distribution.
        return Slope(float(slope), error * (Z95 + (Z95**3 + Z95) / (4 * free)))

    def verdict(self, name: str) -> str:
        """grows, still or unclear; see the top of this file."""
        slope, size = self.slope(name), float(np.median(self.values[name]))
        allowed = max(LEAST_ALLOWED[name], ALLOWED * size if name.endswith("KiB") else 0.0)
        if slope.a_minute - slope.give > allowed:
            return GROWS
        return STILL if slope.a_minute + slope.give <= allowed else UNCLEAR


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=30.0)
    arguments.add_argument("--rate", type=float, default=60.0, help="requests a second")
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as mesh:
        for name, operator in MODELS.items():
            mesh.push(name, elementwise(Path(folder) / f"{name}.onnx", operator))
        samples, outcomes, turnovers = asyncio.run(soaked(mesh, Path(folder), chosen.minutes * 60, chosen.rate))
    verdicts = show(samples, outcomes, turnovers)
    unexpected = sum(count for name, count in outcomes.items() if name.startswith("UNEXPECTED"))
    if chosen.json:
        slopes = {name: {what: each.slope(what) for what in each.values} for name, each in samples.items()}
        series = {name: {"at_s": each.at_s, **each.values} for name, each in samples.items()}
        told = {"slopes_a_minute": slopes, "outcomes": outcomes, "samples": series}
        chosen.json.write_text(json.dumps(told, indent=2))
    found = {verdict: verdicts.get(verdict, []) for verdict in (GROWS, UNCLEAR)}
    verdict = GROWS if found[GROWS] else UNCLEAR if found[UNCLEAR] else STILL
    told = {"verdict": verdict, **found, "requests": sum(outcomes.values()), "unexpected": unexpected}
    print(json.dumps({**told, "turnovers": turnovers, "minutes": chosen.minutes}))
    sys.exit(1 if unexpected or found[GROWS] else 0)


async def soaked(
    mesh: RunningMesh, folder: Path, seconds: float, rate: float
) -> tuple[dict[str, Samples], Counter[str], int]:
    """Loads the mesh for so long; samples by process, requests by outcome, and how often models came and went."""
    over, samples, outcomes = asyncio.Event(), {}, Counter[str]()
    async with grpc.aio.insecure_channel(mesh.addresses["frontend"]) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        tasks = [
            asyncio.create_task(watched(mesh, samples, over)),
            asyncio.create_task(asked(stub, rate, outcomes, over)),
            asyncio.create_task(streamed(stub, outcomes, over)),
        ]
        turning = asyncio.create_task(turned_over(mesh, folder, over))
        await asyncio.sleep(seconds)
        over.set()
        await asyncio.gather(*tasks)
        return samples, outcomes, await turning


async def watched(mesh: RunningMesh, samples: dict[str, Samples], over: asyncio.Event) -> None:
    while not over.is_set():
        at_s = time.monotonic()
        for name, process in processes(mesh):
            try:
                held = holding(process)
            except psutil.Error:
                continue
            samples.setdefault(name, Samples()).note(at_s, **held)
        await asyncio.sleep(EVERY_S)


def processes(mesh: RunningMesh) -> list[tuple[str, psutil.Process]]:
    """Every process of the mesh by what it is."""
    named = [("up", psutil.Process(mesh.process.pid))]
    named += [(name, psutil.Process(pid)) for name, pid in mesh.pids().items()]
    return named + [(f"worker {number}", worker) for number, worker in enumerate(mesh.workers())]


def holding(process: psutil.Process) -> dict[str, float]:
    """KiB of memory of its own, descriptors, threads, KiB of shared memory. What others share, it does not hold alone."""
    info = process.memory_full_info()
    shared = sum(os.stat(f"/proc/{process.pid}/fd/{name}").st_blocks / 2 for name in memory_files(process.pid))
    return {
        "own KiB": info.uss / KIB,
        "files": float(process.num_fds()),
        "threads": float(process.num_threads()),
        "shared KiB": shared,
    }


def memory_files(pid: int) -> list[str]:
    """Descriptors of shared memory without a name."""
    folder, found = f"/proc/{pid}/fd", []
    for name in os.listdir(folder):
        try:
            if os.readlink(f"{folder}/{name}").startswith("/memfd:"):
                found.append(name)
        except OSError:
            continue
    return found


async def asked(stub: Any, rate: float, outcomes: Counter[str], over: asyncio.Event) -> None:
    """Requests at a fixed rate; one in ten is wrong, too late or broken off."""
    draw, sent, number, began = np.random.default_rng(1), set(), 0, time.monotonic()
    values = draw.standard_normal(max(EXTENTS) + 1024, dtype=np.float32)
    while not over.is_set():
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        extent = int(draw.choice(EXTENTS, p=MIX))
        model = str(draw.choice(list(MODELS)))
        x = values[number % 1024 : number % 1024 + extent].reshape(1, -1)
        task = asyncio.create_task(one(stub, model, x, number, outcomes))
        sent.add(task)
        task.add_done_callback(sent.discard)
        number += 1
    await asyncio.gather(*sent)


async def one(stub: Any, model: str, x: np.ndarray, number: int, outcomes: Counter[str]) -> None:
    kind = {3: "wrong", 13: "late", 23: "cancelled"}.get(number % 30, "good")
    made = request(model, {"y" if kind == "wrong" else "x": x})
    call = stub.ModelInfer(made, timeout=0.001 if kind == "late" else DEADLINE_S)
    if kind == "cancelled":
        await asyncio.sleep(0.001)
        call.cancel()
    try:
        answer = await call
        outcomes[f"{kind}: answered" if answer.raw_output_contents else "UNEXPECTED: empty"] += 1
    except asyncio.CancelledError:
        outcomes[f"{kind}: CANCELLED"] += 1
    except grpc.RpcError as error:
        expected = kind != "good"
        outcomes[f"{'' if expected else 'UNEXPECTED '}{kind}: {error.code().name}"] += 1


async def streamed(stub: Any, outcomes: Counter[str], over: asyncio.Event) -> None:
    """One stream after another, twenty requests each."""
    x = np.ones((1, 64), np.float32)

    async def questions() -> AsyncIterator[Any]:
        for number in range(20):
            yield request("identity", {"x": x}, number=str(number))
            await asyncio.sleep(0.02)

    while not over.is_set():
        try:
            async for answer in stub.ModelStreamInfer(questions(), timeout=DEADLINE_S):
                outcomes["UNEXPECTED stream" if answer.error_message else "stream: answered"] += 1
        except grpc.RpcError as error:
            outcomes[f"UNEXPECTED stream: {error.code().name}"] += 1


async def turned_over(mesh: RunningMesh, folder: Path, over: asyncio.Event) -> int:
    """Pushes a model and removes it, again and again; how often."""
    turns = 0
    while not over.is_set():
        path = elementwise(folder / "guest.onnx", "Neg" if turns % 2 else "Abs")
        await asyncio.to_thread(mesh.push, f"guest-{turns % 5}", path)
        await asyncio.sleep(2.0)
        await asyncio.to_thread(mesh.command, "model", "remove", f"guest-{turns % 5}")
        await asyncio.sleep(2.0)
        turns += 1
    return turns


def show(samples: dict[str, Samples], outcomes: Counter[str], turnovers: int) -> dict[str, list[str]]:
    """Prints a line for each process and quantity; which of them have which verdict."""
    print(f"{sum(outcomes.values())} requests, {turnovers} models loaded and unloaded")
    for name, count in sorted(outcomes.items()):
        print(f"  {count:>8}  {name}")
    print(f"\n{'process':<12} {'what':<11} {'first':>9} {'most':>9} {'last':>9} {'a minute':>10} {'±':>9}  verdict")
    verdicts: dict[str, list[str]] = {}
    for name, each in samples.items():
        for what, values in each.values.items():
            slope, verdict = each.slope(what), each.verdict(what)
            verdicts.setdefault(verdict, []).append(f"{name}: {what}")
            print(
                f"{name:<12} {what:<11} {values[0]:>9.0f} {max(values):>9.0f} {values[-1]:>9.0f} {slope.a_minute:>+10.2f} "
                f"{slope.give:>9.2f}  {verdict}"
            )
    return verdicts


if __name__ == "__main__":
    main()
