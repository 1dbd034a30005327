"""A tenant that floods at ten times its quota, through two frontends: what it gets, and what others notice of it.

    python -m bench.quota_flood [--rounds 3] [--seconds 10] [--rate 20] [--others 40]

A mesh of its own with two frontends on one port. In every round: the others alone, beside the flood, alone again; the ratios of
a round are against its own two times alone. The flood is sent by a process of its own, over many connections, at an even rate,
and nobody waits for an answer; what is admitted of it is counted from three seconds after its begin, when the frontends' parts of
the quota have come to what each of them is asked for. Then once more with the scheduler stopped, so that leases run out.
Ends with status 1 where what was admitted is more than 5 % off the quota, or the others' median ratio of the 99th percentile is
above 1.2 or of their answers below 0.95. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bench.models import elementwise
from bench.tenants import interval, judged
from tests.mesh.calling import request
from tests.mesh.flooding import CHANNELS, Sent, send
from tests.mesh.running import RunningMesh, running, wait_until

TIMES = 10
SETTLED_S = 3.0
BURST = 4
ASKED = request("identity", {"x": np.ones((1, 16), np.float32)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    parser.add_argument("--rate", type=float, default=20.0, help="the flood's quota, in requests a second")
    parser.add_argument("--others", type=float, default=40.0, help="requests a second of another tenant")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data", "--frontends", "2") as mesh:
        prepare(mesh, Path(folder), chosen.rate)
        found = measured(mesh, chosen)
    print(json.dumps(found))
    checks = {
        "admitted within 5 % of the quota": abs(found["admitted"] - 1) <= 0.05,
        "admitted at most the quota with the scheduler gone": found["admitted_without_scheduler"] <= 1.05,
        "the others' 99th percentile at most 1.2 times": found["p99_ratio"] <= 1.2,
        "the others' answers at least 0.95 times": found["answered_ratio"] >= 0.95,
    }
    status = judged(checks)
    print(json.dumps({**found, "holds": not status}))
    sys.exit(status)


def prepare(mesh: RunningMesh, folder: Path, rate: float) -> None:
    """Two tenants with a model each; one has a quota, of which both frontends hold a part."""
    model = elementwise(folder / "identity.onnx", "Identity")
    for tenant in ("flood", "other"):
        mesh.create_tenant(tenant, reserve=0.2)
        mesh.push("identity", model, tenant=tenant)
    mesh.command("quota", "set", "flood", "--rate", f"{rate:g}", "--burst", str(BURST))
    show = ("quota", "show", "flood", "--json")
    wait_until(lambda: json.loads(mesh.command(*show))["frontends"] == 2, what="two frontends with a part of the quota")


def measured(mesh: RunningMesh, chosen: argparse.Namespace) -> dict[str, Any]:
    """All rounds, and the flood without a scheduler."""
    p99, answered, admitted = [], [], []
    others(mesh, chosen.others, 2.0)
    for number in range(chosen.rounds):
        before = others(mesh, chosen.others, chosen.seconds)
        beside, flood = flooded(mesh, chosen, chosen.seconds)
        after = others(mesh, chosen.others, chosen.seconds)
        admitted.append(part(flood, chosen))
        p99.append(2 * quantile_ms(beside) / (quantile_ms(before) + quantile_ms(after)))
        answered.append(2 * len(beside.took_s) / (len(before.took_s) + len(after.took_s)))
        print(
            f"round {number + 1}: flood sent {flood.sent}, admitted {admitted[-1]:.3f} of the quota; others' p99 "
            f"{quantile_ms(before):.1f} | {quantile_ms(beside):.1f} | {quantile_ms(after):.1f} ms",
            flush=True,
        )
    scheduler = mesh.pids()["scheduler"]
    os.kill(scheduler, signal.SIGSTOP)
    try:
        _, flood = flooded(mesh, chosen, chosen.seconds + 1)
    finally:
        os.kill(scheduler, signal.SIGCONT)
    alone = part(flood, chosen, since_s=SETTLED_S + 1)
    print(f"admitted {interval(admitted, 3)} of the quota; {alone:.3f} with the scheduler gone")
    print(f"others beside it: p99 {interval(p99)} times, answers {interval(answered, 3)} times")
    return {
        "rounds": chosen.rounds,
        "quota_per_s": chosen.rate,
        "sent_times_quota": TIMES,
        "admitted": round(statistics.median(admitted), 4),
        "admitted_all": [round(each, 4) for each in admitted],
        "admitted_without_scheduler": round(alone, 4),
        "p99_ratio": round(statistics.median(p99), 3),
        "p99_ratio_all": [round(each, 3) for each in p99],
        "answered_ratio": round(statistics.median(answered), 4),
        "refused_by": sorted(flood.refused),
    }


def part(flood: Sent, chosen: argparse.Namespace, since_s: float = SETTLED_S) -> float:
    """What was admitted, as a part of what the quota allows in that time."""
    until_s = chosen.seconds
    return flood.within(since_s, until_s) / (chosen.rate * (until_s - since_s))


def quantile_ms(sent: Sent) -> float:
    """The 99th percentile."""
    return float(np.quantile(sent.took_s, 0.99)) * 1e3 if sent.took_s else float("nan")


def others(mesh: RunningMesh, rate: float, seconds: float) -> Sent:
    """Another tenant, within what it may."""
    metadata = mesh.metadata("other")
    return asyncio.run(send(mesh.addresses["frontend"], metadata, ASKED, rate_per_s=rate, seconds=seconds, channels=4))


def flooded(mesh: RunningMesh, chosen: argparse.Namespace, seconds: float) -> tuple[Sent, Sent]:
    """The others beside the flood, and the flood."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    job = (mesh.addresses["frontend"], mesh.metadata("flood"), TIMES * chosen.rate, seconds)
    process = spawn.Process(target=_flood, args=(theirs, *job), daemon=True)
    process.start()
    ours.recv()
    try:
        beside = others(mesh, chosen.others, chosen.seconds)
        flood: Sent = ours.recv()
    finally:
        process.join(30)
    time.sleep(0.5)
    return beside, flood


def _flood(pipe: Connection, address: str, metadata: Any, rate: float, seconds: float) -> None:
    pipe.send("ready")
    pipe.send(asyncio.run(send(address, metadata, ASKED, rate_per_s=rate, seconds=seconds, channels=CHANNELS)))


if __name__ == "__main__":
    main()
