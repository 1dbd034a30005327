"""Memory: what a load takes, and what a second tenant with the same artefact adds to it beside one with another artefact."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bench.gpu.bed import Bed
from bench.gpu.figures import Findings, median
from bench.one_worker import OneWorker, Placed, one_worker
from gpu_sharing.units import MS, Bytes, MiB, Nanoseconds

FIRST, SAME, OTHER = 1, 2, 3
BLOCKS = 64
MOST_GROWTH = 0.25


class Loaded(NamedTuple):
    """grown_bytes: of the worker's process; None where the device's memory is not the process's. charged_bytes: by the ledger."""

    took_ns: Nanoseconds
    charged_bytes: Bytes
    grown_bytes: Bytes | None


class Round(NamedTuple):
    """other: another artefact as large. same: the first one's once more. again: the other one once more."""

    other: Loaded
    same: Loaded
    again: Loaded


class Samples(NamedTuple):
    """weight_bytes: of each artefact. charged_bytes: for the first one, by the ledger."""

    rounds: list[Round]
    weight_bytes: Bytes
    charged_bytes: Bytes
    backend: str


async def measure(bed: Bed) -> Samples:
    """On a real worker. The first artefact is loaded once and stays."""
    first, other = bed.artefact(BLOCKS), bed.artefact(BLOCKS, seed=1)
    async with one_worker(bed.device, [Placed(FIRST, first, digest="first")]) as worker:
        weight_bytes, charged = worker.loaded[FIRST].profile.weight_bytes, worker.loaded[FIRST].memory_bytes
        # What libraries set aside at a second load is none of the artefact's.
        await _load(bed, worker, Placed(OTHER, other, digest="other"))
        rounds = []
        for _ in range(bed.rounds):
            rounds.append(
                Round(
                    await _load(bed, worker, Placed(OTHER, other, digest="other")),
                    await _load(bed, worker, Placed(SAME, first, digest="first")),
                    await _load(bed, worker, Placed(OTHER, other, digest="other")),
                )
            )
        return Samples(rounds, weight_bytes, charged, bed.device.backend)


async def _load(bed: Bed, worker: OneWorker, model: Placed) -> Loaded:
    before = _resident(bed, worker.client.pid)
    await worker.load([model])
    after = _resident(bed, worker.client.pid)
    grown = None if before is None or after is None else after - before
    found = Loaded(worker.load_ns[model.replica], worker.loaded[model.replica].memory_bytes, grown)
    await worker.unload(model.replica)
    return found


def _resident(bed: Bed, pid: int) -> Bytes | None:
    """The process's memory, where models lie in it."""
    if bed.device.backend != "cpu":
        return None
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def simulate(samples: Samples) -> None:  # noqa: ARG001 - as every scenario's
    """The simulated device has a ledger and no memory: there is nothing to compare."""
    return


def judge(samples: Samples) -> Findings:
    """Pure."""
    others = [each for round_ in samples.rounds for each in (round_.other, round_.again)]
    same = [each.same for each in samples.rounds]
    if not same:
        return Findings({}, {}, {"memory": "no round was run"})
    figures = {
        "weights_mib": round(samples.weight_bytes / MiB, 1),
        "load_ms": median([each.took_ns / MS for each in others]),
        "load_of_what_is_there_ms": median([each.took_ns / MS for each in same]),
        "charged_mib": median([each.charged_bytes / MiB for each in others]),
        "charged_for_what_is_there_mib": median([each.charged_bytes / MiB for each in same]),
    }
    grown = [each.grown_bytes for each in others if each.grown_bytes is not None]
    shared = [each.grown_bytes for each in same if each.grown_bytes is not None]
    alike = all(each.charged_bytes == samples.charged_bytes for each in same)
    holds = {"the second tenant of an artefact is charged like the first": alike}
    if not grown or not shared:
        why = f"memory of backend {samples.backend!r} is not the worker process's, and no counter of it is read"
        return Findings(figures, holds, {"growth of memory by a load": why})
    figures["grown_mib"] = median([each / MiB for each in grown])
    figures["grown_by_what_is_there_mib"] = median([each / MiB for each in shared])
    small = figures["grown_by_what_is_there_mib"]["median"] <= MOST_GROWTH * samples.weight_bytes / MiB
    return Findings(figures, {**holds, "equal artefacts share their weights": small}, {})
