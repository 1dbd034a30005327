"""What the wire costs: the identity model through the mesh, beside a bare echo in the same run.

    python -m bench.wire [--frontends N] [--turns 5] [--seconds 3] [--concurrency 1 16 64] [--json FILE]

Echo and mesh take turns, so that whatever else the machine does falls on both alike. Throughput is the callers'; what
counts is CPU time a request, by process, which neighbours disturb little. Tracing is as it comes. Callers are a process of
their own, with the same code for both.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import numpy as np
import psutil

from bench.models import elementwise
from services._proto.inference import grpc_service_pb2 as oip
from tests.mesh.running import RunningMesh, running

ECHO = Path(__file__).with_name("echo_server.py")
ECHO_SHA256 = "e6e427a01e3a8255704c34f5d0b49507492bf7a5c35b52e2a63e15902ffac161"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
VALUES = 16
CALLERS_A_CHANNEL = 4
"""A connection belongs to one frontend process: enough of them reach all."""
WARM_S = 0.5
ROLES = ("frontend", "executor", "worker", "rest")


@dataclass
class Turn:
    """One turn of callers against one server. cpu_us: a request, by process."""

    answered: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds


@dataclass(frozen=True)
class Target:
    """Whom to call, what with, and whose CPU time counts: processes by role."""

    name: str
    address: str
    payload: bytes
    metadata: tuple[tuple[str, str], ...]
    processes: dict[str, list[psutil.Process]]

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by role."""
        return {role: sum(map(_cpu_s, members)) for role, members in self.processes.items()}


def main() -> None:
    """Runs, prints a table, and writes JSON where it is asked to."""
    chosen = _arguments()
    assert hashlib.sha256(ECHO.read_bytes()).hexdigest() == ECHO_SHA256, (
        f"{ECHO} is not the echo that this is measured by"
    )
    with tempfile.TemporaryDirectory() as folder, _callers() as callers:
        flags = ("--frontends", str(chosen.frontends)) if chosen.frontends > 1 else ()
        with running(Path(folder) / "data", *flags) as mesh, echo() as bare:
            targets = [bare, _mesh(mesh, Path(folder))]
            turns = {
                concurrency: _turns(callers, targets, concurrency, chosen.turns, chosen.seconds)
                for concurrency in chosen.concurrency
            }
    _print(turns)
    if chosen.json:
        chosen.json.write_text(json.dumps(_plain(turns, chosen.frontends), indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frontends", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _mesh(mesh: RunningMesh, folder: Path) -> Target:
    key = mesh.create_tenant("bench")
    mesh.push("identity", elementwise(folder / "identity.onnx", "Identity"), tenant="bench")
    request = oip.ModelInferRequest(model_name="identity", raw_input_contents=[np.ones(VALUES, np.float32).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, VALUES])
    pids = mesh.pids()
    processes: dict[str, list[psutil.Process]] = {role: [] for role in ROLES}
    for name, pid in pids.items():
        kind = name.partition("-")[0]
        processes[kind if kind in ROLES else "rest"].append(psutil.Process(pid))
    processes["worker"] = mesh.workers()
    metadata = (("authorization", f"Bearer {key}"),)
    return Target("mesh", mesh.addresses["frontend"], request.SerializeToString(), metadata, processes)


@contextmanager
def echo() -> Iterator[Target]:
    """The yardstick, running."""
    process = subprocess.Popen([sys.executable, str(ECHO)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = f"127.0.0.1:{int(process.stdout.readline())}"
        yield Target("echo", address, bytes(100), (), {"echo": [psutil.Process(process.pid)]})
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _callers() -> Iterator[Connection]:
    """A process that calls as it is told to."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_call_as_told, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        ours.send(None)
        process.join(10)


def _call_as_told(told: Connection) -> None:
    import uvloop

    while (order := told.recv()) is not None:
        told.send(uvloop.run(_call(*order)))


async def _call(
    address: str, payload: bytes, metadata: tuple[tuple[str, str], ...], concurrency: int, seconds: float
) -> tuple[int, float, float, float]:
    """(answered, seconds, p50 and p99 in ms) of callers that each send the next request when they have an answer."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [
        grpc.aio.insecure_channel(address, options=options) for _ in range(-(-concurrency // CALLERS_A_CHANNEL))
    ]
    latencies: list[float] = []
    ends = time.perf_counter() + seconds

    async def caller(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(METHOD)
        while (begun := time.perf_counter()) < ends:
            await call(payload, metadata=metadata, timeout=30)
            latencies.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(caller(channels[number % len(channels)]) for number in range(concurrency)))
    took = time.perf_counter() - begun
    for channel in channels:
        await channel.close()
    p50, p99 = (float(each) * 1e3 for each in np.quantile(latencies, (0.5, 0.99)))
    return len(latencies), took, p50, p99


def _turns(
    callers: Connection, targets: Sequence[Target], concurrency: int, turns: int, seconds: float
) -> dict[str, list[Turn]]:
    """Turns by target's name, one target after the other."""
    found: dict[str, list[Turn]] = {target.name: [] for target in targets}
    for target in targets:
        _turn(callers, target, concurrency, WARM_S)
    for _ in range(turns):
        for target in targets:
            found[target.name].append(_turn(callers, target, concurrency, seconds))
    return found


def _turn(callers: Connection, target: Target, concurrency: int, seconds: float) -> Turn:
    before = target.cpu_s()
    callers.send((target.address, target.payload, target.metadata, concurrency, seconds))
    turn = Turn(*callers.recv())
    turn.cpu_us = {role: (used - before[role]) / turn.answered * 1e6 for role, used in target.cpu_s().items()}
    return turn


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _median(turns: Sequence[Turn], role: str) -> float:
    return statistics.median(turn.cpu_us[role] for turn in turns)


def _print(turns: dict[int, dict[str, list[Turn]]]) -> None:
    """Medians of turns; both ratios are of medians."""
    print("CPU µs a request, by process; medians of turns")
    print(
        f"{'at once':>8} {'echo/s':>8} {'mesh/s':>8} {'ratio':>6}  {'echo':>6} "
        + " ".join(f"{role:>8}" for role in ROLES)
        + f"  {'front:echo':>10}  {'p50 ms':>7} {'p99 ms':>7}"
    )
    for concurrency, by_target in turns.items():
        echo, mesh = by_target["echo"], by_target["mesh"]
        rates = [statistics.median(turn.per_second for turn in each) for each in (echo, mesh)]
        cost, ours = _median(echo, "echo"), {role: _median(mesh, role) for role in ROLES}
        p50, p99 = (statistics.median(getattr(turn, name) for turn in mesh) for name in ("p50_ms", "p99_ms"))
        print(
            f"{concurrency:>8} {rates[0]:8.0f} {rates[1]:8.0f} {rates[1] / rates[0]:6.2f}  {cost:6.0f} "
            + " ".join(f"{ours[role]:8.0f}" for role in ROLES)
            + f"  {ours['frontend'] / cost:10.2f}  {p50:7.2f} {p99:7.2f}"
        )


def _plain(turns: dict[int, dict[str, list[Turn]]], frontends: int) -> dict[str, object]:
    told = {
        str(concurrency): {name: [asdict(turn) for turn in each] for name, each in by_target.items()}
        for concurrency, by_target in turns.items()
    }
    return {"frontends": frontends, "echo_sha256": ECHO_SHA256, "turns": told}


if __name__ == "__main__":
    main()
