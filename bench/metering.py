"""Device time, counted: is it exact while processes die, and what does a slice pay for it?

    python -m bench.metering [--kills 3]

A whole mesh, two tenants that always have a request in hand. Executor, worker and scheduler are killed with -9 in turn, so
many times each. Then what the books say of each tenant is compared with the device time of the batches that its callers were
told of. Of what is counted and not told there is at most the slice, for each death, whose answer never came. Ends with status 1
where that does not hold; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_sharing.worker.meter import Meter
from tests.mesh import test_mesh_metering as mesh_test
from tests.mesh.running import RunningMesh, running, wait_until
from tests.mesh.tiny import slow

VICTIMS = ("executor", "worker", "scheduler")
ROUNDS, SLICES = 9, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, help="of each")
    kills = parser.parse_args().kills
    slice_ns = meter_ns()
    print(
        f"a slice's two visits to the meter page: {slice_ns['median']:.0f} ns (of {ROUNDS} rounds: {slice_ns['all']})"
    )
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as mesh:
        path = slow(Path(folder) / "slow.onnx")
        for tenant in mesh_test.TENANTS:
            mesh.create_tenant(tenant, reserve=0.2)
            mesh.push("slow", path, tenant=tenant)
        tenants = exactness(mesh, kills)
    exact = all(each["exact"] for each in tenants.values())
    print(json.dumps({"slice_ns": slice_ns["median"], "kills_of_each": kills, "tenants": tenants, "exact": exact}))
    sys.exit(0 if exact else 1)


def meter_ns() -> dict[str, Any]:
    """What `begin` and `end` take together."""
    meter, rounds = Meter(), []
    for _ in range(ROUNDS):
        started = time.perf_counter_ns()
        for now in range(1, SLICES + 1):
            meter.begin(7, now, 1)
            meter.end(5)
        rounds.append((time.perf_counter_ns() - started) / SLICES)
    return {"median": statistics.median(rounds), "all": ", ".join(f"{each:.0f}" for each in sorted(rounds))}


def exactness(mesh: RunningMesh, kills: int) -> dict[str, Any]:
    """Kills, and compares."""
    for turn in range(kills):
        for victim in VICTIMS:
            mesh_test.killed_under_load(mesh, victim)
            print(f"{victim} killed, {turn + 1} of {kills}", flush=True)
    wait_until(lambda: mesh_test.settled(mesh), what="the last report")
    return mesh_test.compared(mesh, deaths=kills * sum(victim != "scheduler" for victim in VICTIMS))


if __name__ == "__main__":
    main()
