"""Clients that are slow, or do not read, and what others notice of them: the 99th percentile beside them, and alone.

    python -m bench.slow_clients [--rounds 5] [--seconds 6] [--rate 150]

A mesh of its own. Callers of one tenant ask at a fixed rate, measured from the moment each request was due; bad clients
(`bench.bad_clients`) are another tenant's, in processes of their own. In every round: alone, beside each bad client, beside all of
them, alone again, in an order that moves on from round to round. The ratio of a round is against its own two times alone. Beside it:
what the frontend holds for the bad tenant, its memory and the time that it and the bad client take of the processors. Ends with
status 1 where the callers' requests failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from bench.bad_clients import KINDS
from bench.models import elementwise, swelling
from services._proto.inference import grpc_service_pb2_grpc as stubs
from tests.mesh.calling import request
from tests.mesh.running import RunningMesh, running

ALONE, ALL = "alone", "all"
TIMES = 3000
"""A bad client's answer: 16 values as many times over, 192,000 bytes."""
SETTLE_S = 1.5
CHANNELS = 4
WITHIN = 1.2
MIB = 1 << 20


@dataclass
class Measured:
    """One phase. latencies in milliseconds; held_mib, memory_mib: of the frontend at its end; cpu: shares of a core."""

    latencies_ms: list[float]
    failed: int
    held_mib: float
    memory_mib: float
    frontend_cpu: float
    bad: list[dict[str, int]]

    @property
    def p99_ms(self) -> float:
        return float(np.quantile(self.latencies_ms, 0.99))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=6.0)
    arguments.add_argument("--rate", type=float, default=150.0, help="requests a second of the good tenant")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as mesh:
        for name in ("good", "bad"):
            mesh.create_tenant(name)
        mesh.push("identity", elementwise(Path(folder) / "identity.onnx", "Identity"), tenant="good")
        mesh.push("swelling", swelling(Path(folder) / "swelling.onnx", TIMES), tenant="bad")
        rounds = asyncio.run(measured(mesh, chosen.rounds, chosen.seconds, chosen.rate))
    found = show(rounds)
    print(json.dumps(found))
    sys.exit(1 if found["failed"] else 0)


async def measured(mesh: RunningMesh, rounds: int, seconds: float, rate: float) -> list[dict[str, list[Measured]]]:
    """Every round's phases by what was beside."""
    channels = [
        grpc.aio.insecure_channel(mesh.addresses["frontend"], options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CHANNELS)
    ]
    callers = [stubs.GRPCInferenceServiceStub(channel) for channel in channels]
    await asked(mesh, callers, 2.0, rate)
    done: list[dict[str, list[Measured]]] = []
    for number in range(rounds):
        kinds = [*KINDS, ALL]
        moved = [ALONE, *kinds[number % len(kinds) :], *kinds[: number % len(kinds)], ALONE]
        phases: dict[str, list[Measured]] = defaultdict(list)
        for kind in moved:
            phases[kind].append(await phase(mesh, callers, kind, seconds, rate))
        done.append(phases)
    for channel in channels:
        await channel.close()
    return done


async def phase(mesh: RunningMesh, callers: Sequence[Any], kind: str, seconds: float, rate: float) -> Measured:
    """Measures beside one kind of bad client, beside all, or alone."""
    kinds = {ALONE: (), ALL: tuple(KINDS)}.get(kind, (kind,))
    bad = [await asyncio.to_thread(started, mesh, each) for each in kinds]
    await asyncio.sleep(SETTLE_S)
    frontend = psutil.Process(mesh.pids()["frontend"])
    before, at_s = sum(frontend.cpu_times()[:2]), time.monotonic()
    latencies, failed = await asked(mesh, callers, seconds, rate)
    share = (sum(frontend.cpu_times()[:2]) - before) / (time.monotonic() - at_s)
    held = await asyncio.to_thread(mesh.total, "apportion_frontend_held_bytes", tenant="bad", what="unread")
    memory = frontend.memory_full_info().uss / MIB
    told = [await asyncio.to_thread(ended, each) for each in bad]
    await asyncio.sleep(SETTLE_S)
    return Measured(latencies, failed, held / MIB, memory, share, told)


def started(mesh: RunningMesh, kind: str) -> subprocess.Popen[str]:
    """A bad client at work."""
    command = [
        sys.executable,
        "-m",
        "bench.bad_clients",
        kind,
        mesh.addresses["frontend"],
        mesh.keys["bad"],
        "swelling",
    ]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    assert client.stdout.readline().strip() == "begun", f"the bad client {kind} has not begun"
    return client


def ended(client: subprocess.Popen[str]) -> dict[str, int]:
    """Lets a bad client end; what it has to say."""
    said, _ = client.communicate("over\n", timeout=20)
    told: dict[str, int] = json.loads(said)
    return told


async def asked(mesh: RunningMesh, callers: Sequence[Any], seconds: float, rate: float) -> tuple[list[float], int]:
    """Requests at a fixed rate; milliseconds of each from when it was due, and how many failed."""
    asking = request("identity", {"x": np.ones((1, 16), np.float32)})
    latencies: list[float] = []
    metadata, began = mesh.metadata("good"), time.perf_counter()

    async def one(number: int) -> None:
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await callers[number % len(callers)].ModelInfer(asking, metadata=metadata, timeout=10)
        latencies.append((time.perf_counter() - due) * 1e3)

    outcomes = await asyncio.gather(*(one(number) for number in range(int(seconds * rate))), return_exceptions=True)
    return latencies, sum(isinstance(outcome, BaseException) for outcome in outcomes)


def show(rounds: list[dict[str, list[Measured]]]) -> dict[str, Any]:
    """Prints the table; what the last line has."""
    print(f"{'beside':<9} {'p50 ms':>8} {'p99 ms':>8} {'of rounds':>16} {'ratio':>7} {'of rounds':>14}", end="")
    print(f" {'held MiB':>9} {'memory MiB':>11} {'frontend':>9} {'bad':>6}")
    found: dict[str, Any] = {"rounds": len(rounds), "failed": 0, "within": WITHIN, "kinds": {}}
    for kind in (ALONE, *KINDS, ALL):
        each = [measured for phases in rounds for measured in phases[kind]]
        p99s = [measured.p99_ms for measured in each]
        ratios = [statistics.mean(m.p99_ms for m in phases[kind]) / _alone(phases) for phases in rounds]
        if kind == ALONE:
            # What the same thing twice differs by: the measurement's own noise.
            ratios = [phases[ALONE][1].p99_ms / phases[ALONE][0].p99_ms for phases in rounds]
        told = {
            "p50_ms": round(statistics.median(float(np.median(m.latencies_ms)) for m in each), 3),
            "p99_ms": round(statistics.median(p99s), 3),
            "p99_ms_interval": [round(min(p99s), 3), round(max(p99s), 3)],
            "ratio": round(statistics.median(ratios), 3),
            "ratio_interval": [round(min(ratios), 3), round(max(ratios), 3)],
            "held_mib": round(max(m.held_mib for m in each), 1),
            "memory_mib": round(max(m.memory_mib for m in each), 1),
        }
        found["kinds"][kind] = told
        found["failed"] += sum(m.failed for m in each)
        _line(kind, told, each)
    worst = max(found["kinds"][kind]["ratio"] for kind in (*KINDS, ALL))
    for kind in (*KINDS,):
        print(f"{kind}: {rounds[-1][kind][0].bad[0]}")
    return {**found, "worst_ratio": worst, "holds": worst <= WITHIN}


def _alone(phases: dict[str, list[Measured]]) -> float:
    return statistics.mean(measured.p99_ms for measured in phases[ALONE])


def _line(kind: str, told: dict[str, Any], each: list[Measured]) -> None:
    p99, ratio = told["p99_ms_interval"], told["ratio_interval"]
    bad_ms = sum(one["cpu_ms"] for one in each[-1].bad)
    print(
        f"{kind:<9} {told['p50_ms']:>8.2f} {told['p99_ms']:>8.2f} {p99[0]:>7.2f}–{p99[1]:<8.2f} {told['ratio']:>7.2f} "
        f"{ratio[0]:>6.2f}–{ratio[1]:<7.2f} {told['held_mib']:>9.1f} {told['memory_mib']:>11.0f} "
        f"{statistics.median(m.frontend_cpu for m in each):>8.0%} {bad_ms:>4} ms"
    )


if __name__ == "__main__":
    main()
