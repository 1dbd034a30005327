"""`python -m gpu_sharing.worker.measure TASK`: what an artefact costs on this machine, without any service.

TASK is a `Task` as JSON. A worker is started as an executor would, with the same walls around it; it checks, loads and measures
the artefact and is stopped. Standard output gets one `Measurement` as JSON.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpu_sharing.devices.base import Device
from gpu_sharing.devices.probe import probe
from gpu_sharing.measurements import Profile
from gpu_sharing.tensors import WarmupTensor
from gpu_sharing.units import MiB
from gpu_sharing.worker.client import WorkerClient, WorkerLost
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.messages import Event, Load, Loaded, LoadFailed
from gpu_sharing.worker.process import cuda_environment

_REPLICA = 1
_STOP_S = 2.0


class Task(msgspec.Struct, frozen=True):
    """What to measure. compute_units: of the lane; None: as an executor would lay it out here. limit_s: for everything together."""

    path: str
    format: str
    digest: str
    compute_units: int | None = None
    max_batch_size: int | None = None
    batch_axes: dict[str, int] = {}
    warmup: tuple[WarmupTensor, ...] = ()
    limit_s: float = 300.0


class Measurement(msgspec.Struct, frozen=True):
    """What came of it. profile: None where problem says why there is none. device_units: what the whole device has."""

    profile: Profile | None
    device_units: int
    memory_bytes: int = 0
    problem: str = ""


async def measure(task: Task, device: Device) -> Measurement:
    """Measures on the last cores of the device, where there are any. Never raises for what the artefact is."""
    cores, whole = device.units(), device.compute_units
    # By itself an executor leaves the first core to the services.
    units = max(1, whole - 1) if task.compute_units is None else task.compute_units
    if not 1 <= units <= whole:
        return Measurement(None, whole, problem=f"compute_units: must be 1 to {whole}, and is {units}")
    config = WorkerConfig(
        cores=tuple(cores[-units:]),
        input_arena_bytes=MiB,
        output_arena_bytes=MiB,
        load_limit_ns=int(task.limit_s * 1e9),
        threads=None if device.backend == "cpu" else 1,
        environment={} if device.backend == "cpu" else cuda_environment(device.backend),
    )
    try:
        told = await asyncio.wait_for(_loaded(task, config), task.limit_s)
    except WorkerLost as lost:
        return Measurement(None, whole, problem=str(lost))
    except TimeoutError:
        return Measurement(None, whole, problem=f"not measured within {task.limit_s:g} s")
    if isinstance(told, LoadFailed):
        return Measurement(None, whole, problem=told.message)
    return Measurement(told.profile, whole, told.memory_bytes)


async def _loaded(task: Task, config: WorkerConfig) -> Loaded | LoadFailed:
    found: asyncio.Future[Loaded | LoadFailed] = asyncio.get_running_loop().create_future()

    def on_events(events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Loaded | LoadFailed) and not found.done():
                found.set_result(event)

    worker = await WorkerClient.start(config, on_events=on_events)
    try:
        worker.send(_load(task))
        waited: list[asyncio.Future[Any]] = [found, worker.lost]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            raise WorkerLost(f"the worker was lost: {worker.lost.result()}")
        return found.result()
    finally:
        await worker.stop(_STOP_S)


def _load(task: Task) -> Load:
    return Load(
        _REPLICA,
        "",
        Path(task.path).name,
        1,
        task.digest,
        task.path,
        task.format,
        bandwidth=0,
        weight=1,
        max_batch_size=task.max_batch_size,
        batch_axes=task.batch_axes,
        warmup=task.warmup,
    )


if __name__ == "__main__":
    made = asyncio.run(measure(msgspec.json.decode(sys.argv[1], type=Task), probe()))
    sys.stdout.write(msgspec.json.encode(made).decode() + "\n")
