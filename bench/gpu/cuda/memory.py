"""Weights that come and go, and pools with a budget."""

from __future__ import annotations

import time
from threading import Event, Thread
from typing import Any

from bench.gpu.cuda.bed import Lanes, check, summary
from bench.gpu.figures import quantile
from gpu_sharing.memory.berths import Berth
from gpu_sharing.memory.streaming import Layout
from gpu_sharing.units import Bytes

SEGMENTS = 6
MODELS: dict[str, Bytes] = {"minilm_90MB": 90_900_000, "1GB": 1_000_000_000}


@check
def swap_in() -> dict[str, Any]:
    """Weights of MiniLM's size and of 1 GB come in as the worker brings them: memory behind a range, copies by segment, events."""
    import torch

    from gpu_sharing.devices.cuda.space import CudaSpace

    lanes = Lanes((1,))
    (number,) = lanes.partitions.layouts[0]
    lane = lanes.made.lanes[number]
    space = CudaSpace(lanes.driver, 0, lanes.made, lane.compute, 5 << 28)
    bandwidth = _pinned_bandwidth(torch.cuda.ExternalStream(int(lane.loading)))
    told: dict[str, Any] = {"pinned_gb_per_s": round(bandwidth / 1e9, 2), "holds": {}}
    for name, size in MODELS.items():
        berth = space.take(size, "bench")
        assert berth is not None
        layout = Layout(size, tuple(size * (at + 1) // SEGMENTS for at in range(SEGMENTS)))
        berth.host[:size] = bytes([7]) * size
        took = [_brought(space, berth, layout) for _ in range(30)]
        allowed = 1.2 * size / bandwidth * 1e3 + 0.3
        seen = {what: summary([each[what] for each in took]) for what in ("first_segment", "all", "emptied")}
        right = bool((torch.as_tensor(berth.memory, device="cuda")[:size] == 7).all())
        told[name] = {**seen, "allowed_ms": round(allowed, 3)}
        told["holds"][f"{name}: in within 1.2 times what the bus takes and 0.3 ms, p99"] = seen["all"]["p99"] <= allowed
        told["holds"][f"{name}: what came is what waited"] = right
        space.give_back(berth)
    told["remap"] = _remapped(lanes)
    told["holds"]["a graph reads what was loaded anew at the same address"] = told["remap"].pop("graph_reads_it")
    return told


def _brought(space: Any, berth: Berth, layout: Layout) -> dict[str, float]:
    """Milliseconds until the first segment's weights had landed, and all; and of taking the memory away before."""
    began = time.perf_counter()
    space.empty(berth)
    emptied = time.perf_counter()
    space.fill(berth)
    first = None
    for piece in layout.pieces(berth.size_bytes):
        if space.copy(berth, *piece) >= layout.needed(0) and first is None:
            first = time.perf_counter()
    space.settle(berth)
    ended = time.perf_counter()
    return {
        "first_segment": ((first or ended) - emptied) * 1e3,
        "all": (ended - emptied) * 1e3,
        "emptied": (emptied - began) * 1e3,
    }


def _pinned_bandwidth(stream: Any) -> float:
    """Bytes a second of one large copy from pinned memory."""
    import torch

    size = 1 << 30
    device = torch.empty(size, dtype=torch.uint8, device="cuda")
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    pinned.fill_(1)
    torch.cuda.synchronize()
    took = []
    with torch.cuda.stream(stream):
        for _ in range(10):
            began = time.perf_counter()
            device.copy_(pinned, non_blocking=True)
            stream.synchronize()
            took.append(time.perf_counter() - began)
    return size / quantile(took[2:], 0.5)


def _remapped(lanes: Lanes) -> dict[str, Any]:
    """Memory taken away and given back under one address, by this project's ranges, beneath a captured graph."""
    import cupy
    import torch

    from gpu_sharing.devices.cuda.vmm import Ranges

    (number,) = lanes.partitions.layouts[0]
    stream, backend = lanes.streams[number], lanes.backend(number)
    ranges = Ranges(lanes.driver, 0)
    held = ranges.reserve(256 << 20)
    ranges.fill(held)
    memory = cupy.cuda.UnownedMemory(held.address, held.size_bytes, None)
    flat = cupy.ndarray((held.size_bytes // 4,), cupy.float32, cupy.cuda.MemoryPointer(memory, 0))
    weights = torch.from_dlpack(flat)
    weights.fill_(1)
    torch.cuda.synchronize()
    with torch.inference_mode(), torch.cuda.stream(stream):
        weights.sum()
        stream.synchronize()
        graph, total = backend.capture(backend.pool(), weights.sum)
    emptied, filled, right = [], [], True
    for turn in range(20):
        began = time.perf_counter()
        ranges.empty(held)
        middle = time.perf_counter()
        ranges.fill(held)
        emptied.append((middle - began) * 1e3)
        filled.append((time.perf_counter() - middle) * 1e3)
        weights.fill_(turn % 3)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            graph.replay()
        stream.synchronize()
        right = right and total.item() == turn % 3 * weights.numel()
    return {"empty_256MiB_ms": summary(emptied), "fill_256MiB_ms": summary(filled), "graph_reads_it": right}


@check
def memory_cap() -> dict[str, Any]:
    """A pool with a budget: its owner alone runs out, graphs count, and its callbacks stand a second thread."""
    import torch

    from gpu_sharing.memory.capped import CappedPool

    torch.zeros(1, device="cuda")
    pool = CappedPool(256 << 20)
    told: dict[str, Any] = {}
    with torch.cuda.use_mem_pool(pool.pool):
        held = torch.empty(100 << 20, dtype=torch.uint8, device="cuda")
        told["used_mib"] = pool.used_bytes >> 20
        try:
            torch.empty(400 << 20, dtype=torch.uint8, device="cuda")
            alone = False
        except torch.OutOfMemoryError:
            alone = True
    outside = torch.empty(400 << 20, dtype=torch.uint8, device="cuda")
    over, large = Event(), CappedPool(4 << 30)

    def drops() -> None:
        while not over.is_set():
            torch.empty(4 << 20, dtype=torch.uint8, device="cuda")

    other = Thread(target=drops, daemon=True)
    other.start()
    kept = []
    with torch.cuda.use_mem_pool(large.pool):
        for _ in range(200):
            kept.append(torch.empty(12 << 20, dtype=torch.uint8, device="cuda"))
    over.set()
    other.join(5)
    told["holds"] = {
        "above its budget the owner runs out": alone,
        "others do not": outside.numel() == 400 << 20,
        "its callbacks stand a second thread": len(kept) == 200 and not other.is_alive(),
    }
    del held
    return told
