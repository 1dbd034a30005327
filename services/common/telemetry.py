"""Spans, made afterwards from monotonic timestamps, and exported off the path of requests.

A request's code notes times; when it is over it hands `SpanRecord`s to a `Tracer`. `Tracer.emit` appends to a bounded queue and
returns; a thread of its own encodes and sends them. A backend that is slow, hung or absent costs spans, which are counted, and
never time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from opentelemetry.sdk.resources import Resource
from prometheus_client import Counter

from services.common import attributes
from services.common.channel import NOTHING, Credentials, backoff
from services.common.otlp import Exporter
from services.common.span_bytes import encoded, request_for
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
    "Kind",
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
SLICE_SPANS = 48
PAUSE_S = 0.0002
"""After each slice the exporter's thread sleeps this long. Without, the event loop waits whole switch intervals of the
interpreter's lock behind a batch (docs/decisions/0001); sleeping for no time at all gives the lock back too late."""
BEHIND = 8
"""Where many spans wait, slices are that much longer: on a machine whose cores are all busy a pause takes many times as long, and
spans would be lost for the sake of it."""
EXPORT_EVERY_S = 0.2
FIRST_PAUSE_S, MOST_PAUSE_S = 0.4, 4.0
"""How long a collector that did not take spans is left alone, so that a thread does not wait in gRPC all the time that it hangs: there
it may be the one that gRPC has look after every connection of the process, those of requests among them. Meanwhile spans wait."""


class Tracer:
    """Sends spans to an OTLP/gRPC collector; without an `endpoint` it does nothing at all.

    endpoint: HOST:PORT, of our trace store by TLS where there is a certificate; or https://HOST:PORT of another collector; empty: none.
    resource: attributes of everything this process sends, beside service.name.
    queue_spans: spans that may wait; further ones are dropped and counted.
    credentials: what our trace store takes spans by: the mesh token, a certificate.
    """

    def __init__(
        self,
        service: str,
        endpoint: str | None,
        *,
        resource: Mapping[str, Value] | None = None,
        queue_spans: int = 8192,
        credentials: Credentials = NOTHING,
        timeout_s: float = 5.0,
    ) -> None:
        endpoint = endpoint or None
        self.service, self.enabled = service, endpoint is not None
        # The SDK's resource also has what OTEL_RESOURCE_ATTRIBUTES says of where this runs.
        described = Resource.create({attributes.SERVICE_NAME: service, **(resource or {})})
        self._resource: Mapping[str, Any] = dict(described.attributes)
        self._queue: deque[SpanRecord] = deque()
        self._capacity = queue_spans
        self._refused = self._lost = self._exported = 0
        self._told = {"exported": 0, "dropped": 0}
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._wake, self._idle, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._hurry = threading.Event()
        self._idle.set()
        self._exporter = Exporter(endpoint, credentials, timeout_s) if endpoint is not None else None
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
        if waiting + 1 == EXPORT_SPANS:
            self._wake.set()

    def emit_all(self, records: Sequence[SpanRecord], *, spare: bool = False) -> bool:
        """Takes the spans that one process has of a trace: all of them or, where there is no room, none. Says which.

        spare: of a trace that is kept by chance alone: half of the room is not for these, so that violators have it.
        """
        if not self.enabled:
            return False
        waiting = len(self._queue)
        if waiting + len(records) > (self._capacity // 2 if spare else self._capacity):
            self._refused += len(records)
            return False
        self._queue.extend(records)
        if waiting < EXPORT_SPANS <= waiting + len(records):
            # Once, as the mark is passed: the thread goes on until nothing waits, and telling it again costs each request.
            self._wake.set()
        return True

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits, at most `timeout` seconds, until what was emitted has been sent or lost. Blocks: not for an event loop."""
        end = time.monotonic() + timeout
        self._hurry.set()
        try:
            while self.enabled and (self._queue or not self._idle.is_set()):
                self._wake.set()
                left = end - time.monotonic()
                if left <= 0:
                    return False
                time.sleep(min(0.01, left))
            return True
        finally:
            self._hurry.clear()

    def shutdown(self, timeout: float = 5.0) -> None:
        """Sends what waits, at most `timeout` seconds long, and ends. Further spans are ignored. Blocks."""
        if not self.enabled or self._exporter is None:
            return
        self.flush(timeout)
        self.enabled = False
        self._stop.set()
        self._wake.set()
        self._hurry.set()
        self._exporter.close()
        self._thread.join(max(0.1, timeout))
        self._lost += len(self._queue)

    def _run(self) -> None:
        pauses = backoff(first_s=FIRST_PAUSE_S, most_s=MOST_PAUSE_S)
        while not self._stop.is_set():
            self._wake.wait(EXPORT_EVERY_S)
            self._wake.clear()
            while self._queue and not self._stop.is_set():
                self._idle.clear()
                if self._export_some():
                    pauses = backoff(first_s=FIRST_PAUSE_S, most_s=MOST_PAUSE_S)
                else:
                    self._count()
                    self._hurry.wait(next(pauses))
            self._count()
            self._idle.set()

    def _count(self) -> None:
        """Tells Prometheus what has come of spans since it was told last: here, and not on the path of requests."""
        for outcome, total in (("exported", self._exported), ("dropped", self.dropped)):
            SPANS.labels(outcome).inc(total - self._told[outcome])
            self._told[outcome] = total

    def _export_some(self) -> bool:
        """Sends what waits, a message's worth; says whether the collector took it."""
        assert self._exporter is not None
        spans = []
        waiting = len(self._queue)
        every = SLICE_SPANS if waiting < self._capacity // 4 else BEHIND * SLICE_SPANS
        for index in range(min(EXPORT_SPANS, waiting)):
            try:
                spans.append(encoded(self._queue.popleft(), self._offset_ns))
            except Exception as error:
                # One span that cannot be encoded must not take the others with it.
                self._lost += 1
                log.warning("a span could not be encoded", error=repr(error))
            if index % every == every - 1:
                time.sleep(PAUSE_S)
        taken = not spans or self._exporter.export(request_for(self._resource, spans))
        if taken:
            self._exported += len(spans)
        else:
            self._lost += len(spans)
        return taken
