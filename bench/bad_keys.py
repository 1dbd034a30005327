"""What tenants notice of a thousand calls a second with keys that nobody has.

`python -m bench.bad_keys [--rate 1000] [--seconds 8] [--pairs 4]`: a real mesh, a tenant that calls a small model at a
steady rate, and a process of its own that shows bad keys at that rate over several connections. Quiet phases and flooded ones take
turns, and each pair is compared by itself. The last line is JSON: p99 flooded over quiet (promised: at most 1.2), throughput
flooded over quiet (at least 0.95), each the median over the pairs.

What the process that floods takes of the machine's processor is taken from everybody, so the flood's own cost is told, too:
where there are few cores, `--spared` takes as many quiet calls a second with good keys as a yardstick instead of silence.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from services._proto.inference import grpc_service_pb2 as oip
from services.common.channel import connect
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh.running import RunningMesh, running

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TENANT, MODEL = "steady", "linear"
CALLERS = 4
CONNECTIONS = 4
SETTLE_S = 1.0
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


async def flood(address: str, rate: float, key: str | None) -> None:
    """Calls at a rate until standard input ends; prints what became of them. key: a good one; None: another bad one each."""
    codes: dict[str, int] = {}
    stop = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    channels = [connect(address) for _ in range(CONNECTIONS)]
    calls = [channel.unary_unary(METHOD) for channel in channels]
    tasks: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        shown = key or f"ap_{secrets.token_hex(16)}"
        code = "OK"
        try:
            await calls[number % CONNECTIONS](PAYLOAD, metadata=(("authorization", f"Bearer {shown}"),), timeout=10)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        codes[code] = codes.get(code, 0) + 1

    began, sent = time.monotonic(), 0
    while not stop.done():
        due = int((time.monotonic() - began) * rate)
        for number in range(sent, due):
            task = asyncio.create_task(one(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        sent = max(sent, due)
        await asyncio.sleep(0.005)
    took = time.monotonic() - began
    if tasks:
        await asyncio.wait(tasks, timeout=10)
    print(json.dumps({"codes": codes, "rate": sum(codes.values()) / took, "cpu": time.process_time() / took}))


def flooding(address: str, rate: float, key: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.bad_keys", "--flood", address, "--rate", f"{rate:g}", "--key", key]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def measured(mesh: RunningMesh, arguments: Any) -> list[dict[str, Any]]:
    """One entry a pair of phases."""
    address, key, found = mesh.addresses["frontend"], mesh.keys[TENANT], []
    asyncio.run(steady(address, key, arguments.steady, 2.0))
    for number in range(arguments.pairs):
        phases: dict[str, Any] = {}
        order = ("quiet", "flooded") if number % 2 == 0 else ("flooded", "quiet")
        for phase in order:
            process = None
            if phase == "flooded" or arguments.spared:
                process = flooding(address, arguments.rate, "" if phase == "flooded" else key)
                time.sleep(SETTLE_S)
            latencies = asyncio.run(steady(address, key, arguments.steady, arguments.seconds))
            told = json.loads(process.communicate("")[0]) if process is not None else None
            phases[phase] = {
                "p99_ms": float(np.quantile(latencies, 0.99)) * 1e3,
                "rate": len(latencies) / arguments.seconds,
                "flood": told,
            }
        found.append(phases)
        print(json.dumps(phases), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--steady", type=float, default=200.0, help="calls a second of the tenant that keeps to itself")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--spared", action="store_true", help="compare with as many calls a second of good keys")
    parser.add_argument("--flood", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--key", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.flood:
        asyncio.run(flood(arguments.flood, arguments.rate, arguments.key or None))
        return
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as mesh:
        mesh.create_tenant(TENANT)
        model = Path(folder) / "linear.onnx"
        model.write_bytes(linear_onnx())
        mesh.push(MODEL, model, tenant=TENANT)
        found = measured(mesh, arguments)
    p99 = statistics.median(pair["flooded"]["p99_ms"] / pair["quiet"]["p99_ms"] for pair in found)
    rate = statistics.median(pair["flooded"]["rate"] / pair["quiet"]["rate"] for pair in found)
    bad = statistics.median(pair["flooded"]["flood"]["rate"] for pair in found)
    codes = {code for pair in found for code in pair["flooded"]["flood"]["codes"]}
    told = {
        "bench": "bad_keys",
        "p99_ratio": round(p99, 3),
        "throughput_ratio": round(rate, 3),
        "bad_keys_per_s": round(bad),
        "answers_to_bad_keys": sorted(codes),
        "compared_with": "good keys" if arguments.spared else "silence",
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(told))


PAYLOAD = request()
if __name__ == "__main__":
    main()
