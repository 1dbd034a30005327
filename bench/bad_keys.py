"""What tenants notice of a thousand calls a second with keys that nobody has.

`python -m bench.bad_keys [--rate 1000] [--seconds 5] [--pairs 12]`: a real mesh, a tenant that calls a small model at a
steady rate, and a process of its own that shows bad keys at that rate over several connections. Quiet phases and flooded ones take
turns, and each pair is compared by itself. The last line is JSON: p99 flooded over quiet (promised: at most 1.2), throughput
flooded over quiet (at least 0.95), each the median over the pairs; and how many calls the frontend has refused by its own count.

What the process that floods takes of the machine's processor is taken from everybody, and no part of the question: it makes its
frames by hand, and its own cost is told.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import secrets
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.http2 import END_STREAM, PREFACE, Connection, call, message, settings
from bench.tracing import cpu_ns, middle
from services._proto.inference import grpc_service_pb2 as oip
from services.common.channel import connect
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh.running import RunningMesh, running

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TENANT, MODEL = "steady", "linear"
CALLERS = 4
CONNECTIONS = 4
SETTLE_S = 1.0
STEP_S, LOOKS_EVERY = 0.001, 20
GRACE_S = 0.1


def request() -> bytes:
    """One row for the model."""
    asked = oip.ModelInferRequest(model_name=MODEL, raw_input_contents=[np.ones((1, 4), np.float32).tobytes()])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    return asked.SerializeToString()


async def steady(address: str, key: str, rate: float, seconds: float) -> list[float]:
    """The latencies of calls at a steady rate, whatever becomes of those before, counted from when each was due; of those
    that are answered within the time."""
    began, found, tasks = time.monotonic(), list[float](), list[asyncio.Task[None]]()
    channels = [connect(address) for _ in range(CALLERS)]
    calls = [channel.unary_unary(METHOD) for channel in channels]

    async def one(number: int, due: float) -> None:
        await calls[number % CALLERS](PAYLOAD, metadata=(("authorization", f"Bearer {key}"),), timeout=20)
        if (now := time.monotonic()) < began + seconds + GRACE_S:
            found.append(now - due)

    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    for channel in channels:
        await channel.close()
    return found


def flood(address: str, rate: float) -> None:
    """Calls with a bad key each, at a rate, until there is standard input; prints what became of them.

    By frames made by hand, which take little of the processor: in earnest it would not run on the machine that serves.
    """
    connections = [Connection(address) for _ in range(CONNECTIONS)]
    for connection in connections:
        connection.send(PREFACE + settings())
    began, asked, taken, body = time.monotonic(), 0, 0, message(PAYLOAD)
    for step in itertools.count():
        due = int((time.monotonic() - began) * rate)
        for number in range(asked, due):
            connection, stream = connections[number % CONNECTIONS], 1 + 2 * (number // CONNECTIONS)
            head = call(stream, METHOD, address, f"ap_{secrets.token_hex(16)}")
            taken += connection.send_data(stream, body, END_STREAM, after=head)
        asked = max(asked, due)
        if step % LOOKS_EVERY == 0:
            if select.select([sys.stdin], [], [], 0)[0]:
                break
            for connection in connections:
                connection.read()
        time.sleep(STEP_S)
    took_s = time.monotonic() - began
    alive = sum(connection.alive for connection in connections)
    told = {"rate": taken / took_s, "connected": alive, "cpu": time.process_time() / took_s}
    print(json.dumps(told))


class Flood:
    """A process that shows bad keys, and what the frontend says of them by its own counts."""

    def __init__(self, mesh: RunningMesh, rate: float) -> None:
        self._mesh, self._refused = mesh, self._count(mesh)
        command = [sys.executable, "-m", "bench.bad_keys", "--flood", mesh.addresses["frontend"], "--rate", f"{rate:g}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        time.sleep(SETTLE_S)

    def end(self) -> dict[str, Any]:
        """Ends it; what came of it."""
        told: dict[str, Any] = json.loads(self._process.communicate("end\n")[0])
        return {**told, "refused": self._count(self._mesh) - self._refused}

    @staticmethod
    def _count(mesh: RunningMesh) -> int:
        return int(mesh.total("apportion_access_refused_total", mesh.addresses["metrics"], reason="KEY_UNKNOWN"))


def phase(mesh: RunningMesh, arguments: Any, *, flooded: bool) -> dict[str, Any]:
    """What the tenant that keeps to itself sees, and the processor time of the frontend."""
    frontend = mesh.pids()["frontend"]
    flood = Flood(mesh, arguments.rate) if flooded else None
    before_ns, began = cpu_ns(frontend), time.monotonic()
    latencies = asyncio.run(steady(mesh.addresses["frontend"], mesh.keys[TENANT], arguments.steady, arguments.seconds))
    busy = (cpu_ns(frontend) - before_ns) / 1e9 / (time.monotonic() - began)
    return {
        "p50_ms": float(np.quantile(latencies, 0.5)) * 1e3,
        "p99_ms": float(np.quantile(latencies, 0.99)) * 1e3,
        "rate": len(latencies) / arguments.seconds,
        "frontend_cpu": busy,
        "flood": flood.end() if flood else None,
    }


def measured(mesh: RunningMesh, arguments: Any) -> list[dict[str, Any]]:
    """One entry a pair of phases."""
    found = []
    asyncio.run(steady(mesh.addresses["frontend"], mesh.keys[TENANT], arguments.steady, 2.0))
    for number in range(arguments.pairs):
        order = (False, True) if number % 2 == 0 else (True, False)
        phases = {"flooded" if flooded else "quiet": phase(mesh, arguments, flooded=flooded) for flooded in order}
        found.append(phases)
        print(json.dumps(phases), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--steady", type=float, default=200.0, help="calls a second of the tenant that keeps to itself")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--flood", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.flood:
        flood(arguments.flood, arguments.rate)
        return
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as mesh:
        mesh.create_tenant(TENANT)
        model = Path(folder) / "linear.onnx"
        model.write_bytes(linear_onnx())
        mesh.push(MODEL, model, tenant=TENANT)
        found = measured(mesh, arguments)
    p99 = middle([pair["flooded"]["p99_ms"] / pair["quiet"]["p99_ms"] for pair in found])
    rate = statistics.median(pair["flooded"]["rate"] / pair["quiet"]["rate"] for pair in found)
    floods = [pair["flooded"]["flood"] for pair in found]
    told = {
        "bench": "bad_keys",
        "p99_ratio": p99["median"],
        "p99_ratio_interval": [p99["from"], p99["to"]],
        "throughput_ratio": round(rate, 3),
        "bad_keys_per_s": round(statistics.median(each["rate"] for each in floods)),
        "refused_as_unknown": sum(each["refused"] for each in floods),
        "cpu_of_the_flood": round(statistics.median(each["cpu"] for each in floods), 3),
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(told))


PAYLOAD = request()
if __name__ == "__main__":
    main()
