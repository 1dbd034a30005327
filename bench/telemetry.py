"""What a span costs: `python -m bench.telemetry`.

Everything runs in one process, in turns, on processor time of the thread that does it; the figures to read are ratios to
OpenTelemetry's own way, `tracer.start_span(…).end()` with a batch processor, in the same run.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from services.common.span_bytes import encoded, request_for
from services.common.telemetry import (
    EXPORT_SPANS,
    PAUSE_S,
    SLICE_SPANS,
    Kind,
    SpanRecord,
    Tracer,
    new_span_id,
    new_trace_id,
)

SPANS = 5_000
ROUNDS = 7
ATTRIBUTES = {
    "tenant.name": "acme",
    "model.name": "minilm",
    "slo.objective_us": 20_000,
    "slo.violated": False,
    "batch.rows": 8,
    "lane.id": 1,
}


class Nowhere(SpanExporter):
    """Takes the SDK's spans and does nothing with them, so that only the path of requests is timed."""

    def export(self, spans: object) -> SpanExportResult:  # noqa: ARG002
        return SpanExportResult.SUCCESS


class Full(Tracer):
    """A tracer whose thread never runs: what is emitted stays."""

    def __init__(self) -> None:
        super().__init__("bench", None)
        self.enabled, self._capacity = True, 1 << 30


def record() -> SpanRecord:
    """A span as the frontend makes it of a request: ids and times included."""
    start_ns = time.monotonic_ns()
    return SpanRecord(
        "ModelInfer", new_trace_id(), new_span_id(), None, start_ns, time.monotonic_ns(), Kind.SERVER, dict(ATTRIBUTES)
    )


def timed(work: Callable[[], object]) -> float:
    """Microseconds of this thread's processor time per span."""
    gc.collect()
    before = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - before) / SPANS / 1000


def ways() -> dict[str, Callable[[], object]]:
    """Each way to make SPANS spans, or to encode them."""
    provider = TracerProvider(resource=Resource.create({"service.name": "bench"}))
    provider.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=1 << 20))
    sdk, ours = provider.get_tracer("bench"), Full()
    records = [record() for _ in range(SPANS)]

    def finished() -> ReadableSpan:
        span = sdk.start_span("ModelInfer", kind=SpanKind.SERVER, attributes=ATTRIBUTES)
        span.end()
        return span  # type: ignore[return-value]

    spans = [finished() for _ in range(SPANS)]

    def emitted() -> None:
        ours._queue.clear()
        for _ in range(SPANS):
            ours.emit(record())

    def appended() -> None:
        ours._queue.clear()
        for each in records:
            ours.emit(each)

    return {
        "sdk: start_span, end": lambda: [finished() for _ in range(SPANS)],
        "ours: make the record, emit": emitted,
        "ours: emit alone": appended,
        "off the path, sdk: encode": lambda: encode_spans(spans).SerializeToString(),
        "off the path, ours: encode": lambda: request_for(
            {"service.name": "bench"}, [encoded(each, 0) for each in records]
        ),
    }


def lateness(work: Callable[[], object] | None, *, seconds: float = 1.0) -> list[float]:
    """Milliseconds by which a loop that sleeps 0.5 ms wakes late while another thread does `work`, in order."""
    stop = threading.Event()

    def loop() -> None:
        while work is not None and not stop.is_set():
            work()
            stop.wait(0.005)

    thread = threading.Thread(target=loop)
    thread.start()
    late, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        time.sleep(0.0005)
        late.append((time.perf_counter() - start - 0.0005) * 1000)
    stop.set()
    thread.join()
    return sorted(late)


def print_lateness() -> None:
    """Prints how late an event loop would wake while spans are encoded beside it, in the ways there are."""
    provider, records = TracerProvider(), [record() for _ in range(EXPORT_SPANS)]
    spans = [provider.get_tracer("x").start_span("ModelInfer", attributes=ATTRIBUTES) for _ in range(EXPORT_SPANS)]
    for span in spans:
        span.end()

    def ours(pause_s: float | None) -> None:
        for index, each in enumerate(records):
            encoded(each, 0)
            if pause_s is not None and index % SLICE_SPANS == SLICE_SPANS - 1:
                time.sleep(pause_s)

    beside: dict[str, Callable[[], object] | None] = {
        "beside nothing": None,
        "beside the sdk's encoder": lambda: encode_spans(spans),  # type: ignore[arg-type]
        "beside ours, without slices": lambda: ours(None),
        "beside ours, slices, pause of 0": lambda: ours(0.0),
        "beside ours": lambda: ours(PAUSE_S),
    }
    taken: dict[str, list[float]] = {name: [] for name in beside}
    for _ in range(3):
        for name, work in beside.items():
            taken[name] += lateness(work)
    print(f"\n{'wakes late by, ms':34}{'p50':>9}{'p90':>9}{'p99':>9}")
    for name, late in taken.items():
        late.sort()
        print(f"{name:34}" + "".join(f"{late[int(len(late) * part)]:9.2f}" for part in (0.5, 0.9, 0.99)))


def main() -> None:
    """Prints the median of ROUNDS turns of each way, and its ratio to the SDK's; then how late a loop beside it wakes."""
    everything = ways()
    taken: dict[str, list[float]] = {name: [] for name in everything}
    for _ in range(ROUNDS):
        for name, work in everything.items():
            taken[name].append(timed(work))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    base = medians["sdk: start_span, end"]
    print(f"{'':34}{'µs/span':>9}{'of sdk':>9}")
    for name, median in medians.items():
        print(f"{name:34}{median:9.2f}{median / base:9.3f}")
    print_lateness()


if __name__ == "__main__":
    main()
