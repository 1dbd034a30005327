"""What checks of a CUDA device stand on: lanes, captures, timing, neighbours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Any

from bench.gpu.figures import quantile
from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.probe import probe
from gpu_sharing.partitioning.partitions import parse_layouts
from gpu_sharing.units import Bytes, GiB

CHECKS: dict[str, Callable[[], dict[str, Any]]] = {}


def check(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """One thing to measure. `holds` in what it returns says what it was asked to show."""
    CHECKS[function.__name__] = function
    return function


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

    def pools(self, lane: int, graph_bytes: Bytes = GiB) -> Any:
        """This project's pools of tenants on a lane."""
        from gpu_sharing.memory.accounts import Accounts
        from gpu_sharing.memory.capped import Budgets
        from gpu_sharing.memory.grants import Grants

        backend = self.backend(lane)
        return Accounts(Budgets(int(self.made.lanes[lane].loading)), Grants(graph_bytes), reclaim=backend.reclaim)

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
