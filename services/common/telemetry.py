"""Spans, made afterwards from monotonic timestamps, and exported off the path of requests.

A request's code notes times; when it is over it hands `SpanRecord`s to a `Tracer` (or to `HeldSpans`, until the verdict
is known). `Tracer.emit` appends to a bounded queue and returns; a thread of its own encodes and sends them. A backend
that is slow, hung or absent costs spans, which are counted, and never time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence

import structlog
from prometheus_client import Counter

from services.common import attributes
from services.common.otlp import Exporter, encoded, request_for
from services.common.spans import (
    Kind,
    SpanRecord,
    Value,
    format_traceparent,
    new_span_id,
    new_trace_id,
    parse_traceparent,
)

__all__ = [
    "HeldSpans",
    "Kind",
    "Sampler",
    "SpanRecord",
    "Tracer",
    "Value",
    "format_traceparent",
    "new_span_id",
    "new_trace_id",
    "parse_traceparent",
]

log = structlog.get_logger()

SPANS = Counter("apportion_telemetry_spans", "Spans that this process was to export.", ["outcome"])
EXPORT_SPANS = 256
"""Spans in one export message."""
SLICE_SPANS = 16
PAUSE_S = 0.0002
"""After each slice the exporter's thread sleeps this long. Without, the event loop waits whole switch intervals of the
interpreter's lock behind a batch (docs/decisions/0001); sleeping for no time at all gives the lock back too late."""
EXPORT_EVERY_S = 0.2


class Tracer:
    """Sends spans to an OTLP/gRPC collector; without an `endpoint` it does nothing at all.

    endpoint: HOST:PORT, or https://HOST:PORT for TLS.
    resource: attributes of everything this process sends, beside service.name.
    queue_spans: spans that may wait; further ones are dropped and counted.
    mesh_token: sent as a bearer token where the collector is our trace store beyond loopback.
    """

    def __init__(
        self,
        service: str,
        endpoint: str | None,
        *,
        resource: Mapping[str, Value] | None = None,
        queue_spans: int = 8192,
        mesh_token: str | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self.service, self.enabled = service, endpoint is not None
        self._resource = {attributes.SERVICE_NAME: service, **(resource or {})}
        self._queue: deque[SpanRecord] = deque()
        self._capacity = queue_spans
        self._refused = self._lost = self._exported = 0
        self._told = {"exported": 0, "dropped": 0}
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._wake, self._idle, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._idle.set()
        self._exporter = Exporter(endpoint, mesh_token, timeout_s) if endpoint is not None else None
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        if self._exporter is not None:
            self._thread.start()

    @property
    def dropped(self) -> int:
        """Spans that were lost since the start: the queue was full, or the collector did not take them."""
        return self._refused + self._lost

    @property
    def exported(self) -> int:
        """Spans that the collector has taken."""
        return self._exported

    def emit(self, record: SpanRecord) -> None:
        """Takes a finished span. Never blocks, never raises."""
        if not self.enabled:
            return
        waiting = len(self._queue)
        if waiting >= self._capacity:
            self._refused += 1
            return
        self._queue.append(record)
        if waiting == EXPORT_SPANS:
            self._wake.set()

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits, at most `timeout` seconds, until what was emitted has been sent or lost. Blocks: not for an event loop."""
        end = time.monotonic() + timeout
        while self.enabled and (self._queue or not self._idle.is_set()):
            self._wake.set()
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(0.01, left))
        return True

    def shutdown(self, timeout: float = 5.0) -> None:
        """Sends what waits, at most `timeout` seconds long, and ends. Further spans are ignored. Blocks."""
        if not self.enabled or self._exporter is None:
            return
        self.flush(timeout)
        self.enabled = False
        self._stop.set()
        self._wake.set()
        self._exporter.close()
        self._thread.join(max(0.1, timeout))
        self._lost += len(self._queue)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(EXPORT_EVERY_S)
            self._wake.clear()
            while self._queue and not self._stop.is_set():
                self._idle.clear()
                self._export_some()
            self._count()
            self._idle.set()

    def _count(self) -> None:
        """Tells Prometheus what has come of spans since it was told last: here, and not on the path of requests."""
        for outcome, total in (("exported", self._exported), ("dropped", self.dropped)):
            SPANS.labels(outcome).inc(total - self._told[outcome])
            self._told[outcome] = total

    def _export_some(self) -> None:
        assert self._exporter is not None
        spans = []
        for index in range(min(EXPORT_SPANS, len(self._queue))):
            try:
                spans.append(encoded(self._queue.popleft(), self._offset_ns))
            except Exception as error:
                # One span that cannot be encoded must not take the others with it.
                self._lost += 1
                log.warning("a span could not be encoded", error=repr(error))
            if index % SLICE_SPANS == SLICE_SPANS - 1:
                time.sleep(PAUSE_S)
        if spans and self._exporter.export(request_for(self._resource, spans)):
            self._exported += len(spans)
        else:
            self._lost += len(spans)


class HeldSpans:
    """Spans that wait for the verdict on their request.

    capacity: spans and remembered verdicts held at most; max_age_ns: how long. The oldest go first, and those that go
    without a verdict are counted in `dropped`. Not for several threads.
    """

    def __init__(self, tracer: Tracer, capacity: int, max_age_ns: int) -> None:
        self._tracer, self._capacity, self._max_age_ns = tracer, capacity, max_age_ns
        self._held: OrderedDict[Hashable, tuple[int, list[SpanRecord]]] = OrderedDict()
        self._verdicts: OrderedDict[Hashable, tuple[int, bool]] = OrderedDict()
        self._spans = 0
        self.dropped = 0
        """Spans that went because they were too many or too old."""

    def __len__(self) -> int:
        return self._spans

    def hold(self, key: Hashable, records: Sequence[SpanRecord], now: int) -> None:
        """Keeps `records` until the verdict on `key`; where it has come already, follows it at once."""
        if not self._tracer.enabled:
            return
        verdict = self._verdicts.get(key)
        if verdict is not None:
            self._follow(records, verdict[1])
            return
        entry = self._held.get(key)
        if entry is None:
            self._held[key] = (now, list(records))
        else:
            entry[1].extend(records)
        self._spans += len(records)
        self._trim(now)

    def verdict(self, key: Hashable, keep: bool, now: int) -> None:
        """Emits what is held for `key`, or forgets it; spans that come later are treated alike.

        A later `keep=True` overrules an earlier `keep=False` for spans still to come, never the other way round.
        """
        if not self._tracer.enabled:
            return
        entry = self._held.pop(key, None)
        if entry is not None:
            self._spans -= len(entry[1])
            self._follow(entry[1], keep)
        earlier = self._verdicts.pop(key, None)
        self._verdicts[key] = (now, keep or (earlier is not None and earlier[1]))
        self._trim(now)

    def _follow(self, records: Sequence[SpanRecord], keep: bool) -> None:
        if keep:
            for record in records:
                self._tracer.emit(record)

    def _trim(self, now: int) -> None:
        oldest = now - self._max_age_ns
        while self._held and (self._spans > self._capacity or next(iter(self._held.values()))[0] < oldest):
            _, (_, records) = self._held.popitem(last=False)
            self._spans -= len(records)
            self.dropped += len(records)
        while self._verdicts and (
            len(self._verdicts) > self._capacity or next(iter(self._verdicts.values()))[0] < oldest
        ):
            self._verdicts.popitem(last=False)


class Sampler:
    """Says, for each trace id alike in every process, whether it belongs to the sampled share. ratio: 0 to 1."""

    def __init__(self, ratio: float) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"sample ratio: {ratio} is not between 0 and 1")
        self.ratio = ratio
        self._bound = round(ratio * (1 << 64))

    def keeps(self, trace_id: bytes) -> bool:
        """Whether this trace is sampled. It reads the low 8 bytes, as OpenTelemetry's TraceIdRatioBased does."""
        return int.from_bytes(trace_id[8:16], "big") < self._bound
