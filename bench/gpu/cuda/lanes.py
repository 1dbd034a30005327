"""Lanes: that they are apart, that they switch, and what neighbours and boundaries cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.gpu.cuda.bed import Lanes, Neighbour, alone_per_s, captured, check, device_ms, encoder, half, plain, summary
from bench.gpu.figures import quantile

SMID = r"""
extern "C" __global__ void smid(unsigned int* out, long long spin) {
  unsigned int sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  long long begun = clock64();
  while (clock64() - begun < spin) {}
  if (threadIdx.x == 0) out[blockIdx.x] = sm;
}"""


@check
def partitions() -> dict[str, Any]:
    """Lanes are disjoint by %smid; what preparing layouts took; going from one to another after the drain."""
    import cupy
    import torch

    lanes = Lanes((3, 1), (1, 1), (1, 1, 1, 1))
    kernel, out = cupy.RawKernel(SMID, "smid"), torch.full((4096,), -1, dtype=torch.int32, device="cuda")
    view = cupy.from_dlpack(out)
    torch.cuda.synchronize()
    seen: dict[int, set[int]] = {}
    for number, stream in lanes.streams.items():
        out.fill_(-1)
        torch.cuda.synchronize()
        with cupy.cuda.Stream.from_external(stream):
            kernel((4096,), (64,), (view, 20_000))
        torch.cuda.synchronize()
        seen[number] = set(out.cpu().tolist())
    apart = [all(not seen[a] & seen[b] for a in layout for b in layout if a < b) for layout in lanes.partitions.layouts]
    granted = {number: lanes.sms(number) for number in lanes.streams}
    model, x = encoder(), half(8, 128, 384)
    torch.cuda.synchronize()
    graphs = {
        number: captured(lanes.backend(number), stream, lambda: model(x)) for number, stream in lanes.streams.items()
    }

    def serve(layout: Sequence[int]) -> float:
        began = time.perf_counter()
        for number in layout:
            with torch.cuda.stream(lanes.streams[number]):
                graphs[number].replay()
        for number in layout:
            lanes.streams[number].synchronize()
        return (time.perf_counter() - began) * 1e3

    took: dict[str, list[float]] = {"staying": [], "switching": []}
    layouts = lanes.partitions.layouts
    for turn in range(450):
        took["staying"].append(serve(layouts[turn // 150]))
        took["switching"].append(serve(layouts[turn % 3]))
    more = quantile(took["switching"], 0.99) - quantile(took["staying"], 0.99)
    return {
        "layouts": [
            {"name": each.name, "prepared_ms": round(each.took_ns / 1e6, 2), "mib": each.memory_bytes >> 20}
            for each in lanes.made.prepared
        ],
        "granted": granted,
        "seen": {number: len(each) for number, each in seen.items()},
        "notes": lanes.made.notes,
        **{f"{name}_ms": summary(each) for name, each in took.items()},
        "holds": {
            "lanes of a layout are disjoint by %smid": all(apart),
            "no lane sees more SMs than it was granted": all(len(seen[each]) <= granted[each] for each in seen),
            "switching layouts costs at most 1 ms more, p99": more <= 1.0,
        },
    }


@check
def neighbours() -> dict[str, Any]:
    """An interactive encoder's device time beside a saturating neighbour: green lanes, plain streams, plain priorities."""
    import torch

    sys.setswitchinterval(1e-4)
    lanes = Lanes((1, 3))
    small, large = (lanes.streams[number] for number in lanes.partitions.layouts[0])
    model, x = encoder(), half(8, 128, 384)
    big, weights = half(8192, 8192), [half(8192, 8192) for _ in range(4)]
    source, sink = torch.ones(128 << 20, device="cuda"), torch.empty(128 << 20, device="cuda")
    torch.cuda.synchronize()
    work = {
        "matmul": lambda: [torch.mm(big, each) for each in weights],
        "memory": lambda: [torch.mul(source, 2, out=sink) for _ in range(8)],
    }
    a, b, urgent = torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.Stream(priority=-3)
    total = torch.cuda.get_device_properties(0).multi_processor_count
    victims = {"green": small, "plain": a, "priority": urgent}
    small_number, large_number = lanes.partitions.layouts[0]
    mine = {
        "green": captured(lanes.backend(small_number), small, lambda: model(x)),
        "plain": plain(a, lambda: model(x)),
        "priority": plain(urgent, lambda: model(x)),
    }
    alone = {way: device_ms(mine[way].replay, victims[way], 800) for way in mine}
    told: dict[str, Any] = {"alone_ms": alone, "sms": [lanes.sms(small_number), lanes.sms(large_number)]}
    for kind, each in work.items():
        whole = plain(b, each)
        whole_per_s = alone_per_s(whole, b)
        part = captured(lanes.backend(large_number), large, each)
        share = lanes.sms(large_number) / total
        for way in mine:
            graph, stream = (part, large) if way == "green" else (whole, b)
            with Neighbour(graph, stream) as running:
                beside = device_ms(mine[way].replay, victims[way], 800)
                speed = running.per_s() / whole_per_s
            told[f"{way}_beside_{kind}"] = {
                **beside,
                "neighbour_of_its_share": round(speed / (share if way == "green" else 1), 3),
            }
    green, apart = told["green_beside_matmul"], told["plain_beside_matmul"]
    told["holds"] = {
        "beside matrix multiplies, p99 at most 1.35 of alone on the lane": green["p99"] <= 1.35 * alone["green"]["p99"],
        "and at most a fifth of what plain streams give": green["p99"] <= apart["p99"] / 5,
        "the neighbour has at least 0.9 of its share of SMs": green["neighbour_of_its_share"] >= 0.9,
    }
    return told


@check
def boundary() -> dict[str, Any]:
    """A lane with two segments ahead, of this project's stream: how long something urgent waits until it starts."""
    import random

    import torch

    from gpu_sharing.devices.cuda.stream import AHEAD, CudaStream

    lanes, chance = Lanes((1,)), random.Random(0)
    (number,) = lanes.partitions.layouts[0]
    stream, backend = lanes.streams[number], lanes.backend(number)
    a, w = half(1024, 4096), half(4096, 4096)
    torch.cuda.synchronize()
    unit = (
        device_ms(captured(backend, stream, lambda: [torch.mm(a, w) for _ in range(20)]).replay, stream, 50)["p50"] / 20
    )
    told: dict[str, Any] = {"holds": {}}
    for length in (0.25, 1.0):
        segment = captured(
            backend, stream, lambda length=length: [torch.mm(a, w) for _ in range(max(1, round(length / unit)))]
        )
        lane = CudaStream(lanes.driver, lanes.made.lanes[number].compute, lanes.made.primary)
        took, waits = _waits(lane, segment, stream, chance, length)
        lane.close()
        segments, waited = summary(took), summary(waits)
        told[f"{length}_ms"] = {"segment_ms": segments, "wait_ms": waited}
        holds = waited["p99"] <= AHEAD * segments["p99"] + 0.1
        told["holds"][f"a wait for a boundary of {length} ms segments, p99, is {AHEAD} of them and 0.1 ms at most"] = (
            holds
        )
    return told


def _waits(lane: Any, segment: Any, stream: Any, chance: Any, length: float) -> tuple[list[float], list[float]]:
    """Durations of segments, and waits of something urgent that comes at random moments, until what was out has ended."""
    import torch

    took: list[float] = []
    waits: list[float] = []
    due = time.perf_counter() + 0.02
    end = time.perf_counter() + 8.0
    with torch.cuda.stream(stream):
        while len(waits) < 250 and time.perf_counter() < end:
            if time.perf_counter() >= due:
                while lane.out:
                    took.append(lane.wait()[1] / 1e6)
                waits.append((time.perf_counter() - due) * 1e3)
                due = time.perf_counter() + chance.uniform(4, 12) * length / 1e3
            if lane.out >= lane.ahead:
                took.append(lane.wait()[1] / 1e6)
            lane.begin()
            segment.replay()
            lane.end()
        while lane.out:
            lane.wait()
    return took, waits
