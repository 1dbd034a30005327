"""Many callers, three models, payloads of 64 B to 32 MiB: does every answer belong to its question, and do small ones wait for large ones?

    python -m bench.mixed [--requests 10000] [--turns 3] [--json FILE]

1. 10,000 requests from 32 callers over three models of three tenants, sizes mixed; every answer is compared.
2. 32 callers of small requests, then 28 of them beside 4 that send the large ones of the mix without pause, in turns: the
   ratio of the small requests' p99s.
Callers of small and of large requests are processes of their own, so that what is measured is the mesh and not the caller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from bench.callers import LARGEST_BYTES, OPERATORS, Tally, ask, mixed
from bench.models import elementwise
from tests.mesh.running import RunningMesh, running

KIB, MIB = 1 << 10, 1 << 20
SIZES = (64, KIB, 16 * KIB, 256 * KIB, MIB, 8 * MIB, LARGEST_BYTES)
WEIGHTS = (0.50, 0.25, 0.14, 0.06, 0.03, 0.015, 0.005)
SMALL = (64, KIB, 16 * KIB)
LARGE = ((256 * KIB, MIB, 8 * MIB, LARGEST_BYTES), (0.06, 0.03, 0.015, 0.005))
CALLERS, LARGE_CALLERS = 32, 4
Mix = tuple[tuple[int, ...], tuple[float, ...]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--requests", type=int, default=10_000)
    arguments.add_argument("--turns", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=6.0, help="of each turn of the second part")
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data") as mesh:
        key = served(mesh, Path(folder))
        found = {**everybody(mesh, key, chosen.requests), **beside_large(mesh, key, chosen.turns, chosen.seconds)}
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2))


def served(mesh: RunningMesh, folder: Path) -> str:
    """Pushes the three models for one tenant; its key."""
    key = mesh.create_tenant("bench")
    for operator in OPERATORS:
        mesh.push(operator, elementwise(folder / f"{operator}.onnx", operator.title()), tenant="bench")
    return key


def everybody(mesh: RunningMesh, key: str, requests: int) -> dict[str, object]:
    """Part 1."""
    tally, begun = Tally(), time.perf_counter()
    asyncio.run(ask(mesh.addresses["frontend"], key, mixed(requests, SIZES, WEIGHTS, seed=7), 32, tally))
    took = time.perf_counter() - begun
    moved = sum(size * len(samples) for size, samples in tally.latencies_s.items())
    print(
        f"{tally.answered} of {requests} answered, {len(tally.wrong)} wrong, {len(tally.failed)} failed, in {took:.1f} s"
    )
    print(f"{moved / took / MIB:.0f} MiB/s each way")
    for size in SIZES:
        samples = tally.latencies_s.get(size, [])
        if samples:
            p50, p99 = np.quantile(samples, (0.5, 0.99)) * 1e3
            print(f"  {size:>9} B  {len(samples):>5} requests  p50 {p50:8.1f} ms  p99 {p99:8.1f} ms")
    for line in [*tally.wrong[:3], *tally.failed[:3]]:
        print(f"  {line}")
    return {"answered": tally.answered, "wrong": len(tally.wrong), "failed": len(tally.failed), "seconds": took}


def beside_large(mesh: RunningMesh, key: str, turns: int, seconds: float) -> dict[str, object]:
    """Part 2: alone, beside, alone, beside …"""
    alone, beside = [], []
    for _ in range(turns):
        alone.append(turn(mesh, key, seconds, large=False))
        beside.append(turn(mesh, key, seconds, large=True))
    ratio = statistics.median(beside) / statistics.median(alone)
    show = lambda samples: " ".join(f"{sample:.1f}" for sample in samples)
    print(f"p99 of requests up to 16 KiB from {CALLERS} callers: alone {show(alone)} ms,")
    print(f"  {LARGE_CALLERS} of them sending 256 KiB to 32 MiB instead {show(beside)} ms: {ratio:.2f} times (medians)")
    return {"alone_p99_ms": alone, "beside_p99_ms": beside, "ratio": ratio}


def turn(mesh: RunningMesh, key: str, seconds: float, *, large: bool) -> float:
    """The p99 of small requests, in ms, over one turn."""
    address = mesh.addresses["frontend"]
    even = ((*SMALL,), (1.0,) * len(SMALL))
    groups = [(even, CALLERS - LARGE_CALLERS), (LARGE, LARGE_CALLERS)] if large else [(even, CALLERS)]
    spawn = multiprocessing.get_context("spawn")
    running_groups = []
    for mix, callers in groups:
        mine, theirs = spawn.Pipe()
        process = spawn.Process(target=group, args=(address, key, mix, callers, seconds, theirs))
        process.start()
        running_groups.append((process, mine))
    tallies = [pipe.recv() for _, pipe in running_groups]
    for process, _ in running_groups:
        process.join()
    for tally in tallies:
        assert not tally.wrong, tally.wrong[:3]
        assert not tally.failed, tally.failed[:3]
    return tallies[0].quantile_ms(0.99, at_most_bytes=max(SMALL))


def group(address: str, key: str, mix: Mix, callers: int, seconds: float, answer: Connection) -> None:
    """A process of callers that ask for `seconds`; the first second is not counted."""
    asyncio.run(_group(address, key, mix, callers, seconds, answer))


async def _group(address: str, key: str, mix: Mix, callers: int, seconds: float, answer: Connection) -> None:
    stop, tally = asyncio.Event(), Tally()
    asking = asyncio.create_task(ask(address, key, mixed(1_000_000, *mix, seed=callers), callers, tally, stop))
    await asyncio.sleep(1.0)
    tally.latencies_s.clear()
    await asyncio.sleep(seconds)
    stop.set()
    await asking
    answer.send(tally)


if __name__ == "__main__":
    main()
