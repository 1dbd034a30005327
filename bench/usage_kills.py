"""Use in the registry's database after random kills: is it the sum of the slices that ran?

    python -m bench.usage_kills [--kills 20] [--seed 1]

A whole mesh, two tenants that always have a request in hand. Services and workers are killed with -9 in an order drawn by chance:
executor, worker, scheduler, registry, frontend. Then what the registry has of each tenant is compared with the books, to the
nanosecond, and the books with themselves from before the last kill: they may only have grown. Ends with status 1 where the
two differ; the last line is JSON. (That the books are the sum of the slices is what `bench.metering` shows.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from services._proto.apportion.v1 import registry_pb2, registry_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc
from tests.mesh import test_mesh_metering as metering
from tests.mesh.running import RunningMesh, running, wait_until
from tests.mesh.tiny import slow

VICTIMS = ("executor", "worker", "scheduler", "registry", "frontend")
Counted = dict[str, tuple[int, int]]
"""By tenant: nanoseconds of device time, and requests."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    drawn = random.Random(chosen.seed)
    victims = [drawn.choice(VICTIMS) for _ in range(chosen.kills)]
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as mesh:
        path = slow(Path(folder) / "slow.onnx")
        for tenant in metering.TENANTS:
            mesh.create_tenant(tenant, reserve=0.2)
            mesh.push("slow", path, tenant=tenant)
        shrunk = killed(mesh, victims)
        wait_until(lambda: metering.settled(mesh), what="the last report")
        books = asyncio.run(in_books(mesh))
        wait_until(lambda: asyncio.run(in_registry(mesh)) == books, timeout_s=60, what="the registry's sum")
        registry = asyncio.run(in_registry(mesh))
    equal = registry == books and not shrunk
    for tenant, (ns, requests) in registry.items():
        print(
            f"{tenant}: {ns / 1e9:.6f} s of {requests} requests in the registry, {books[tenant][0] / 1e9:.6f} s in the books"
        )
    found = {"kills": {each: victims.count(each) for each in VICTIMS}, "seed": chosen.seed, "shrunk": shrunk}
    print(json.dumps({**found, "registry": registry, "books": books, "equal": equal}))
    sys.exit(0 if equal else 1)


def killed(mesh: RunningMesh, victims: list[str]) -> int:
    """Kills; how often the registry's sum was less than before."""
    before, shrunk = Counted(), 0
    for turn, victim in enumerate(victims, 1):
        metering.killed_under_load(mesh, victim)
        after = asyncio.run(in_registry(mesh))
        shrunk += any(after.get(tenant, (0, 0)) < used for tenant, used in before.items())
        before = after
        print(f"{victim} killed, {turn} of {len(victims)}", flush=True)
    return shrunk


async def in_registry(mesh: RunningMesh) -> Counted:
    """What the registry's database has."""
    found: Counted = {}
    async with mesh.channel("registry") as channel:
        stub: Any = registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]
        answer = await stub.GetUsage(registry_pb2.GetUsageRequest(), timeout=20, wait_for_ready=True)
    for row in answer.rows:
        ns, requests = found.get(row.key.tenant, (0, 0))
        found[row.key.tenant] = (ns + row.counts.device_ns, requests + row.counts.requests)
    return {tenant: found[tenant] for tenant in sorted(found) if tenant in metering.TENANTS}


async def in_books(mesh: RunningMesh) -> Counted:
    """What executors' books say, by way of the scheduler."""
    async with mesh.channel("scheduler") as channel:
        stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel)  # type: ignore[no-untyped-call]
        fleet = await stub.GetFleet(scheduler_pb2.GetFleetRequest(), timeout=20, wait_for_ready=True)
    return {each.tenant: (each.device_ns, each.requests) for each in fleet.tenants if each.tenant in metering.TENANTS}


if __name__ == "__main__":
    main()
