"""What a CUDA device shows of sharing, with this project's own lanes, streams and graphs: `python -m bench.gpu.on_cuda [--out FILE]`.

Each check runs in a process of its own with a time limit, all of them within eight minutes; prints what was found, and a last line
of JSON with device, driver, date and versions. What could not be run is told under `not_measured`, with the reason. Ends with 1
where something does not hold, and with 2 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from bench.gpu.figures import quantile
from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.probe import probe
from gpu_sharing.partitioning.partitions import parse_layouts

LIMIT_S = 75.0
BUDGET_S = 465.0
CHECKS: dict[str, Callable[[], dict[str, Any]]] = {}

NOT_BUILT = {
    "a model's weights by layer, under its first layers": "swap-in is measured as one copy; streaming by layer is not served yet",
    "100 models of 90 MB with memory for 20, on a window of the Azure trace": "weights are not moved out of device memory yet",
    "MiniLM through the whole mesh": "a command of its own: python -m bench.gpu.whole_mesh",
    "MPS beside green contexts": "a command of its own: python -m bench.gpu.ways",
}
"""Asked for, and not to be had from this command."""


def check(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """One thing to measure. `holds` in what it returns says what it was asked to show."""
    CHECKS[function.__name__] = function
    return function


# What checks stand on.


class Lanes:
    """Layouts of the real device, and torch's side of their streams. The thread that makes it may use any of them."""

    def __init__(self, *layouts: Sequence[float]) -> None:
        """layouts: parts of the device."""
        import torch

        from gpu_sharing.devices.cuda.driver import call, load

        device = probe()
        if not isinstance(device, CudaDevice) or device.facts.groups is None:
            raise RuntimeError(f"no green contexts: {device.reason}")
        torch.zeros(1, device="cuda")
        self.device, self.driver = device, load()
        call(self.driver, "cuInit", 0)
        text = "|".join(
            ";".join(f"{lane[0]}-{lane[-1]}" for lane in device.facts.groups.shared(each)) for each in layouts
        )
        self.partitions = device.fitted(parse_layouts(text, device.units()))
        self.made = device.lanes(self.driver, self.partitions)
        self.streams = {
            number: torch.cuda.ExternalStream(int(lane.compute)) for number, lane in self.made.lanes.items()
        }

    def sms(self, lane: int) -> int:
        """As granted."""
        return self.made.lanes[lane].sms

    def backend(self, lane: int) -> Any:
        """This project's captures on a lane."""
        from gpu_sharing.runtimes.torch_place import CudaBackend

        return CudaBackend(int(self.made.lanes[lane].compute), int(self.made.lanes[lane].loading), sms=self.sms(lane))


def half(*shape: int) -> Any:
    """Random numbers on the device: zeros draw less power and run faster."""
    import torch

    return torch.randn(*shape, device="cuda", dtype=torch.float16)


def encoder(layers: int = 6, width: int = 384, heads: int = 12) -> Any:
    """A transformer of MiniLM's shape in float16, random weights."""
    import torch

    layer = torch.nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True, dropout=0.0)
    stack = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return stack.half().cuda().eval()


def captured(backend: Any, stream: Any, work: Callable[[], Any]) -> Any:
    """`work` warmed and captured on a stream, as a lane does."""
    import torch

    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            work()
        stream.synchronize()
        graph, kept = backend.capture(backend.pool(), work)
    graph.kept = (kept, work)
    return graph


def plain(stream: Any, work: Callable[[], Any]) -> Any:
    """The same on a stream of the whole device."""
    import torch

    from gpu_sharing.runtimes.torch_place import CudaBackend

    total = torch.cuda.get_device_properties(0).multi_processor_count
    return captured(CudaBackend(stream.cuda_stream, stream.cuda_stream, sms=total), stream, work)


def device_ms(step: Callable[[], Any], stream: Any, count: int = 400, seconds: float = 3.0) -> dict[str, float]:
    """Device time of a step as separate requests: the stream is held while the host launches, so that its time stays out."""
    import torch

    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    took: list[float] = []
    with torch.inference_mode(), torch.cuda.stream(stream):
        step()
        stream.synchronize()
        end = time.perf_counter() + seconds
        while len(took) < count and (len(took) < 10 or time.perf_counter() < end):
            time.sleep(0.001)
            torch.cuda._sleep(50_000)
            first.record()
            step()
            last.record()
            last.synchronize()
            took.append(first.elapsed_time(last))
    return summary(took)


def summary(took: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    told = {name: round(quantile(took, share), 4) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}
    return {"n": len(took), **told}


class Neighbour(Thread):
    """Replays on a stream with two ahead, for as long as the `with` block lasts."""

    def __init__(self, graph: Any, stream: Any) -> None:
        super().__init__(daemon=True)
        self.graph, self.stream, self.over, self.done = graph, stream, Event(), 0
        self.error: BaseException | None = None

    def run(self) -> None:
        import torch

        ring: list[Any] = []
        try:
            with torch.cuda.stream(self.stream):
                while not self.over.is_set():
                    self.graph.replay()
                    event = torch.cuda.Event(blocking=True)
                    event.record()
                    ring.append(event)
                    if len(ring) > 2:
                        ring.pop(0).synchronize()
                        self.done += 1
                self.stream.synchronize()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Neighbour:
        self.start()
        time.sleep(0.3)
        self.before, self.began = self.done, time.perf_counter()
        return self

    def per_s(self) -> float:
        """Replays a second since it ran."""
        return (self.done - self.before) / (time.perf_counter() - self.began)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join(20)
        if self.error is not None:
            raise self.error


def alone_per_s(graph: Any, stream: Any) -> float:
    """Of a neighbour without one."""
    with Neighbour(graph, stream) as running:
        time.sleep(1.0)
        return running.per_s()


SMID = r"""
extern "C" __global__ void smid(unsigned int* out, long long spin) {
  unsigned int sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  long long begun = clock64();
  while (clock64() - begun < spin) {}
  if (threadIdx.x == 0) out[blockIdx.x] = sm;
}"""


# The checks.


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


@check
def served() -> dict[str, Any]:
    """An exported model through this project's runtime on a lane: results against the processor's, eager against graphs."""
    import tempfile

    import numpy as np
    import torch

    from gpu_sharing.runtimes.base import LoadConfig
    from gpu_sharing.runtimes.graphs import GraphPolicy
    from gpu_sharing.runtimes.torch_export import TorchExportRuntime
    from gpu_sharing.runtimes.torch_graphs import CudaExportRuntime, Graphs
    from gpu_sharing.runtimes.warmup import finish

    lanes = Lanes((1,))
    (number,) = lanes.partitions.layouts[0]
    backend, told, config = (
        lanes.backend(number),
        {},
        LoadConfig(threads=8, compute_units=lanes.sms(number), max_batch_size=64),
    )
    holds: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype, most in (("float32", torch.float32, 2e-3), ("float16", torch.float16, 3e-2)):
            torch.manual_seed(0)
            model = encoder().to(dtype).cpu()
            x = torch.randn(4, 128, 384).to(dtype)
            path = Path(folder) / f"{name}.pt2"
            dims = {0: torch.export.Dim("batch", max=64)}
            torch.export.save(torch.export.export(model, (x,), dynamic_shapes=(dims,)), path)
            policy = GraphPolicy(1 << 30)
            backend.enter_loading()
            on_gpu = CudaExportRuntime(Graphs(backend, policy)).load(path, config)
            on_cpu = TorchExportRuntime().load(path, config)
            (spec,) = on_gpu.signature.inputs
            inputs = {spec.name: x.numpy()}
            expected = finish(on_cpu.run(inputs))
            backend.enter_lane()
            given = []
            for _ in range(6):
                made = finish(on_gpu.run(inputs))
                backend.synchronize()
                given.append({key: value.copy() for key, value in made.items()})
            worst = max(
                float(
                    np.abs(each[key].astype(np.float32) - value.astype(np.float32)).max()
                    / max(1.0, np.abs(value).max())
                )
                for each in given
                for key, value in expected.items()
            )
            told[name] = {
                "worst_difference": worst,
                "graphs": policy.snapshot()._asdict(),
                "segments": len(on_gpu.segments),
            }
            holds[f"{name}: eager, captured and replayed equal the processor's within {most:g}"] = worst <= most
            holds[f"{name}: it was captured and replayed"] = policy.snapshot().replays >= 3
            told[name]["rates"] = {rows: _rate(on_gpu, backend, rows, dtype) for rows in (1, 8, 64)}
    return {**told, "holds": holds}


def _rate(model: Any, backend: Any, rows: int, dtype: Any) -> dict[str, float]:
    """Rows a second of one batch after another, from arrays to arrays: without graphs and with them."""
    import torch

    from gpu_sharing.runtimes.warmup import finish

    (spec,) = model.signature.inputs
    inputs = {spec.name: torch.randn(rows, 128, 384).to(dtype).numpy()}
    told = {}
    for way, run in (("eager", model.run_eagerly), ("graphs", model.run)):
        took = []
        for turn in range(60):
            began = time.perf_counter()
            finish(run(inputs))
            backend.synchronize()
            if turn >= 10:
                took.append((time.perf_counter() - began) * 1e3)
        told[f"{way}_p50_ms"] = round(quantile(took, 0.5), 4)
        told[f"{way}_rows_per_s"] = round(rows / quantile(took, 0.5) * 1e3)
    return told


@check
def swap_in() -> dict[str, Any]:
    """Weights from pinned memory to the device by one copy, against what the bus gives; addresses kept by mapping memory anew."""
    import torch

    lanes = Lanes((1,))
    (number,) = lanes.partitions.layouts[0]
    stream = torch.cuda.ExternalStream(int(lanes.made.lanes[number].loading))
    size = 1 << 30
    device, pinned = (
        torch.empty(size, dtype=torch.uint8, device="cuda"),
        torch.empty(size, dtype=torch.uint8, pin_memory=True),
    )
    pinned.fill_(1)
    torch.cuda.synchronize()

    def moved(length: int, count: int) -> list[float]:
        took = []
        with torch.cuda.stream(stream):
            for _ in range(count):
                began = time.perf_counter()
                device[:length].copy_(pinned[:length], non_blocking=True)
                stream.synchronize()
                took.append((time.perf_counter() - began) * 1e3)
        return took

    moved(size, 2)
    bandwidth = size / (quantile(moved(size, 8), 0.5) / 1e3)
    told: dict[str, Any] = {"pinned_gb_per_s": round(bandwidth / 1e9, 2), "holds": {}}
    for name, length in (("minilm_90MiB", 90 << 20), ("1GiB", size)):
        took = summary(moved(length, 40))
        allowed = 1.2 * length / bandwidth * 1e3 + 0.3
        told[name] = {**took, "allowed_ms": round(allowed, 3)}
        told["holds"][f"{name} is in within 1.2 times what the bus takes and 0.3 ms, p99"] = took["p99"] <= allowed
    told["remap"] = _remapped(lanes)
    told["holds"]["a graph reads what was loaded anew at the same address"] = told["remap"].pop("graph_reads_it")
    return told


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


# Running them.


def environment() -> dict[str, Any]:
    """Where it was measured."""
    import importlib.metadata as metadata

    device = probe()
    versions = {}
    for name in ("torch", "cupy-cuda13x", "cuda-bindings", "onnxruntime", "llvmlite", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    driver = Path("/proc/driver/nvidia/version")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device_kind": device.device_kind,
        "backend": device.backend,
        "reason": device.reason,
        "driver": driver.read_text().splitlines()[0] if driver.exists() else None,
        "python": sys.version.split()[0],
        **versions,
    }


def run(name: str, limit_s: float) -> dict[str, Any]:
    """One check in a process of its own: what it found, or why nothing."""
    command = [sys.executable, "-m", "bench.gpu.on_cuda", "--one", name]
    # By default streams share 8 hardware queues, and lanes that share one wait for each other.
    given = {**os.environ, "CUDA_DEVICE_MAX_CONNECTIONS": os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "32")}
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=given, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {limit_s:.0f} s"}
    line = next((each for each in told.stdout.splitlines() if each.startswith("RESULT ")), None)
    return json.loads(line[7:]) if line else {"failed": f"ended with {told.returncode}: {told.stderr[-1500:]}"}


def one(name: str) -> None:
    """This process is one check. Nothing is cleaned up after: a broken device could hang that."""
    faulthandler.enable()
    try:
        found = CHECKS[name]()
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"[:500], "where": traceback.format_exc()[-1500:]}
    print("RESULT " + json.dumps(found), flush=True)
    sys.stdout.flush()
    os._exit(0)


@contextmanager
def _timed(told: dict[str, Any]) -> Iterator[None]:
    began = time.monotonic()
    yield
    told["took_s"] = round(time.monotonic() - began, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", choices=tuple(CHECKS), action="append", help="only these; several may be named")
    parser.add_argument("--out", type=Path, help="a file for the JSON, instead of the last line")
    parser.add_argument("--one", choices=tuple(CHECKS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        one(options.one)
    where = environment()
    print(f"{where['device_kind']}, backend {where['backend']}: {where['reason']}")
    if not where["backend"].startswith("cuda"):
        told = {
            "benchmark": "on_cuda",
            "environment": where,
            "checks": {},
            "not_measured": {**dict.fromkeys(CHECKS, where["reason"]), **NOT_BUILT},
        }
        print(json.dumps(told))
        return 2
    checks: dict[str, Any] = {}
    ends = time.monotonic() + BUDGET_S
    for name in options.check or CHECKS:
        found: dict[str, Any] = {}
        with _timed(found):
            left = ends - time.monotonic()
            found.update(run(name, min(LIMIT_S, left)) if left > 10 else {"failed": "no time was left"})
        checks[name] = found
        print(f"{name}: {json.dumps(found)}", flush=True)
    missing = {name: found["failed"] for name, found in checks.items() if "failed" in found}
    told = {"benchmark": "on_cuda", "environment": where, "checks": checks, "not_measured": {**missing, **NOT_BUILT}}
    if options.out is None:
        print(json.dumps(told))
    else:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    holds = [holds for found in checks.values() for holds in found.get("holds", {}).values()]
    return int(bool(missing) or not all(holds))


if __name__ == "__main__":
    sys.exit(main())
