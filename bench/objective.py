"""Whether what a tenant is told it can be promised is kept by a real mesh on the processor.

    python -m bench.objective [--reserve 0.25] [--burst 2] [--load 0.9] [--seconds 10] [--rounds 3] [--json FILE]

A model is profiled; `apportion model objective` says the least objective for this reservation and burst, and the highest rate.
Then bursts come at `--load` of that rate, each request with that objective, alone and beside tenants that flood the lane with a
model ten times as long: off, on, off, on. A last line of JSON has the figures. The profile is taken anew in each run, and what
it says depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench.models import perceptron
from services._proto.inference import grpc_service_pb2 as oip
from services._proto.inference import grpc_service_pb2_grpc as oip_grpc
from tests.mesh.running import RunningMesh, running

WIDTH = 256
FLOODS = 3
IN_FLIGHT = 8


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--reserve", type=float, default=0.25)
    arguments.add_argument("--burst", type=int, default=2)
    arguments.add_argument("--load", type=float, default=0.9, help="of the highest rate")
    arguments.add_argument("--error", type=float, default=1.25, help="how far costs may exceed the profile's p99")
    arguments.add_argument("--seconds", type=float, default=10.0, help="of each run")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as mesh:
        answer = prepared(mesh, Path(folder), chosen)
        print(answer["message"], flush=True)
        found = asyncio.run(measured(mesh, answer, chosen))
    text = json.dumps({"answer": answer, **found})
    if chosen.json:
        chosen.json.write_text(text)
    print(text)


def prepared(mesh: RunningMesh, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Pushes what is needed; what the victim is told."""
    short, long = folder / "short.onnx", folder / "long.onnx"
    perceptron(short, WIDTH)
    perceptron(long, WIDTH, blocks=160)
    mesh.create_tenant("victim", reserve=chosen.reserve)
    mesh.push("short", short, tenant="victim", options=("--max-batch", "8"))
    for number in range(FLOODS):
        mesh.create_tenant(f"flood{number}", reserve=0.0)
        mesh.push("long", long, tenant=f"flood{number}", options=("--max-batch", "8", "--slo-ms", "2000"))
    flags = ("--tenant", "victim", "--burst", str(chosen.burst), "--error", str(chosen.error), "--json")
    told = json.loads(mesh.command("model", "objective", "short", *flags))
    return next(each for each in told["answers"] if each["serves"])


async def measured(mesh: RunningMesh, answer: dict[str, Any], chosen: argparse.Namespace) -> dict[str, Any]:
    """Off and on in turn."""
    objective_ms = int(answer["least_objective_us"]) / 1000
    rate = answer["most_rate"] * chosen.load
    runs: dict[str, list[dict[str, float]]] = {"alone": [], "beside floods": []}
    for _ in range(chosen.rounds):
        for name, count in (("alone", 0), ("beside floods", FLOODS)):
            floods = [asyncio.create_task(flood(mesh, f"flood{number}")) for number in range(count)]
            await asyncio.sleep(1.0 if count else 0.2)
            run = await bursts(mesh, rate, objective_ms, chosen)
            for each in floods:
                each.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
            runs[name].append(run)
            print(f"{name:>14}: {run}", flush=True)
    worst = {name: min(each["within"] for each in all_of_it) for name, all_of_it in runs.items()}
    return {"objective_ms": objective_ms, "rate": rate, "runs": runs, "least_within": worst}


async def bursts(mesh: RunningMesh, rate: float, objective_ms: float, chosen: argparse.Namespace) -> dict[str, float]:
    """One run: what part of the requests was answered within the objective, and how long the others and all took."""
    request = asked("short", 1, objective_ms)
    metadata, every_s = mesh.metadata("victim"), chosen.burst / rate
    took_s: list[float] = []
    failed: list[str] = []

    async def one(stub: Any) -> None:
        began = time.monotonic()
        try:
            await stub.ModelInfer(request, timeout=10.0, metadata=metadata)
            took_s.append(time.monotonic() - began)
        except grpc.aio.AioRpcError as error:
            failed.append(error.code().name)

    async with mesh.channel() as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        running_calls: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        for number in range(int(chosen.seconds / every_s)):
            await asyncio.sleep(max(0.0, began + number * every_s - time.monotonic()))
            running_calls |= {asyncio.create_task(one(stub)) for _ in range(chosen.burst)}
        await asyncio.gather(*running_calls)
    count = len(took_s) + len(failed)
    within = sum(each * 1000 <= objective_ms for each in took_s) / max(1, count)
    median, late = (float(np.quantile(took_s, each)) * 1000 for each in (0.5, 0.99))
    return {
        "requests": count,
        "within": round(within, 5),
        "refused": len(failed),
        "p50_ms": round(median, 2),
        "p99_ms": round(late, 2),
    }


async def flood(mesh: RunningMesh, tenant: str) -> None:
    """Keeps so many requests in flight until it is cancelled."""
    request, metadata = asked("long", 4, None), mesh.metadata(tenant)
    async with mesh.channel() as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]

        async def caller() -> None:
            while True:
                try:
                    await stub.ModelInfer(request, timeout=10.0, metadata=metadata)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))


def asked(model: str, rows: int, objective_ms: float | None) -> oip.ModelInferRequest:
    """A request of so many rows; objective_ms: of its own, rounded up, None: the model's."""
    values = np.ones((rows, WIDTH), np.float32)
    request = oip.ModelInferRequest(model_name=model, raw_input_contents=[values.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[rows, WIDTH])
    if objective_ms is not None:
        request.parameters["slo_ms"].double_param = objective_ms
    return request


if __name__ == "__main__":
    main()
