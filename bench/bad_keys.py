"""What tenants notice of a thousand calls a second with keys that nobody has.

`python -m bench.bad_keys [--rate 1000] [--seconds 5] [--rounds 12]`: a real mesh, a tenant that calls a small model at a
steady rate, and a process of its own that shows bad keys at that rate over several connections: nowhere, to a server beside the mesh
that is none of its own, and to the mesh's frontend, in turns; each round is compared by itself.

What the process that floods, and whoever answers it, take of the machine's processor is taken from everybody: it makes its frames by
hand, and its own cost is told. Where there are few cores, the flood that goes elsewhere says how much of what is seen is that.

The last line is JSON, ratios with the median over the rounds and its 95 % interval: p99 flooded over quiet (promised: at most 1.2),
over that of the flood elsewhere, throughput flooded over quiet (at least 0.95); and how many calls the frontend has refused by its
own count.
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

from bench.http2 import END_STREAM, PREFACE, Connection, call, message, settings, window
from bench.tracing import cpu_ns, middle
from bench.wire import echo
from services._proto.inference import grpc_service_pb2 as oip
from services.common.channel import connect
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh.running import RunningMesh, running

KINDS = ("quiet", "elsewhere", "flooded")
ORDERS = tuple(itertools.permutations(KINDS))
METHOD = "/inference.GRPCInferenceService/ModelInfer"
TENANT, MODEL = "steady", "linear"
CALLERS = 4
CONNECTIONS = 4
SETTLE_S, WARM_S = 1.0, 10.0
ROOM_BYTES = 1 << 30
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
        connection.send(PREFACE + settings() + window(ROOM_BYTES))
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
    """A process that shows bad keys to an address."""

    def __init__(self, address: str, rate: float) -> None:
        command = [sys.executable, "-m", "bench.bad_keys", "--flood", address, "--rate", f"{rate:g}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        time.sleep(SETTLE_S)

    def end(self) -> dict[str, Any]:
        """Ends it; what came of it."""
        told: dict[str, Any] = json.loads(self._process.communicate("end\n")[0])
        return told


class Phases:
    """A mesh, a server that is none of ours, and what the tenant that keeps to itself sees while one of them, or none, is flooded."""

    def __init__(self, mesh: RunningMesh, elsewhere: str, arguments: Any) -> None:
        self._mesh, self._arguments = mesh, arguments
        self._flooded = {"quiet": None, "elsewhere": elsewhere, "flooded": mesh.addresses["frontend"]}
        self._frontend = mesh.pids()["frontend"]

    def run(self, kind: str, seconds: float) -> dict[str, Any]:
        """One phase, with the processor time of the frontend and what it has refused by its own count."""
        address, mesh = self._flooded[kind], self._mesh
        refused = self._refused()
        flood = Flood(address, self._arguments.rate) if address else None
        before_ns, began = cpu_ns(self._frontend), time.monotonic()
        calls = steady(mesh.addresses["frontend"], mesh.keys[TENANT], self._arguments.steady, seconds)
        latencies = asyncio.run(calls)
        busy = (cpu_ns(self._frontend) - before_ns) / 1e9 / (time.monotonic() - began)
        return {
            "p50_ms": round(float(np.quantile(latencies, 0.5)) * 1e3, 2),
            "p99_ms": round(float(np.quantile(latencies, 0.99)) * 1e3, 2),
            "rate": len(latencies) / seconds,
            "frontend_cpu": round(busy, 3),
            "flood": flood.end() if flood else None,
            "refused": self._refused() - refused,
        }

    def _refused(self) -> int:
        metrics = self._mesh.addresses["metrics"]
        return int(self._mesh.total("apportion_access_refused_total", metrics, reason="KEY_UNKNOWN"))


def measured(phases: Phases, arguments: Any) -> list[dict[str, Any]]:
    """One entry a round of the three phases, each time in another order."""
    found = []
    phases.run("quiet", WARM_S)
    for number in range(arguments.rounds):
        found.append({kind: phases.run(kind, arguments.seconds) for kind in ORDERS[number % len(ORDERS)]})
        print(json.dumps(found[-1]), flush=True)
    return found


def told(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What it comes to."""

    def ratio(of: str, over: str, name: str) -> list[float]:
        told = middle([phases[of][name] / phases[over][name] for phases in found])
        return [told["median"], told["from"], told["to"]]

    return {
        "bench": "bad_keys",
        "p99_ratio": ratio("flooded", "quiet", "p99_ms"),
        "p99_ratio_over_elsewhere": ratio("flooded", "elsewhere", "p99_ms"),
        "throughput_ratio": ratio("flooded", "quiet", "rate"),
        "bad_keys_per_s": round(statistics.median(phases["flooded"]["flood"]["rate"] for phases in found)),
        "refused_as_unknown": sum(phases["flooded"]["refused"] for phases in found),
        "frontend_cpu": {kind: statistics.median(phases[kind]["frontend_cpu"] for phases in found) for kind in KINDS},
        "cpu_of_the_flood": round(statistics.median(phases["flooded"]["flood"]["cpu"] for phases in found), 3),
        "cores": len(os.sched_getaffinity(0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--steady", type=float, default=200.0, help="calls a second of the tenant that keeps to itself")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--flood", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.flood:
        flood(arguments.flood, arguments.rate)
        return
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as mesh, echo() as elsewhere:
        mesh.create_tenant(TENANT)
        model = Path(folder) / "linear.onnx"
        model.write_bytes(linear_onnx())
        mesh.push(MODEL, model, tenant=TENANT)
        found = measured(Phases(mesh, elsewhere.address, arguments), arguments)
    print(json.dumps(told(found)))


PAYLOAD = request()
if __name__ == "__main__":
    main()
