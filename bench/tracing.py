"""What the trace benchmarks share: callers who know their requests' trace ids, a line that can be held up, kept traces."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

import services.common.attributes as names
from services._proto.inference import grpc_service_pb2_grpc as stubs
from services.common.spans import format_traceparent, new_span_id, new_trace_id
from services.frontend.inference import OUTCOME_KEY, TIMING_KEY, TOOK_KEY, VIOLATED_KEY
from services.tracestore.client import find_traces
from services.tracestore.core.spans import SpanView

FRONTEND = "apportion-frontend"
EXECUTOR_STAGES = frozenset({names.STAGE_DECODE, names.STAGE_QUEUE, names.STAGE_COMPUTE, names.STAGE_ENCODE})
FRONTEND_STAGES = frozenset({names.STAGE_ADMIT, names.STAGE_SEND, names.STAGE_TRANSPORT, names.STAGE_DELIVER})
MOST_TRACES = 10_000
WINDOW_NS = 10_000_000_000
READ_BYTES = 1 << 16


@dataclass(slots=True)
class Asked:
    """One request as its caller saw it, and what the frontend told of it. took_us: None: it told nothing."""

    trace_id: str
    latency_s: float
    code: str
    took_us: int | None = None
    outcome: str = ""
    violated: bool | None = None


class Callers:
    """Calls of one tenant over a few connections."""

    def __init__(self, address: str, metadata: Iterable[tuple[str, str]], connections: int = 4) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(connections)]
        self._stubs: list[Any] = [stubs.GRPCInferenceServiceStub(each) for each in self._channels]  # type: ignore[no-untyped-call]
        self._metadata = (*metadata, (TIMING_KEY, "1"))
        self._next = 0

    async def ask(self, request: Any, *, timeout_s: float = 30.0) -> Asked:
        """Sends a request as a trace of its own and waits for its end, whatever it is."""
        trace_id = new_trace_id()
        metadata = (*self._metadata, ("traceparent", format_traceparent(trace_id, new_span_id(), sampled=False)))
        self._next = (self._next + 1) % len(self._stubs)
        begun = time.perf_counter()
        call = self._stubs[self._next].ModelInfer(request, timeout=timeout_s, metadata=metadata)
        code = "OK"
        try:
            await call
        except grpc.RpcError as error:
            code = error.code().name
        asked = Asked(trace_id.hex(), time.perf_counter() - begun, code)
        told: Mapping[str, str] = dict(await call.trailing_metadata() or ())
        if TOOK_KEY in told:
            asked.took_us, asked.outcome = int(told[TOOK_KEY]), told[OUTCOME_KEY]
            asked.violated = told[VIOLATED_KEY] == "true"
        return asked

    async def close(self) -> None:
        """Closes every connection."""
        for channel in self._channels:
            await channel.close(None)


class Line:
    """A TCP connection through this process that can be held up: what is on its way then arrives later, in either direction."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, listen: str) -> None:
        """Takes connections on HOST:PORT."""
        host, _, port = listen.rpartition(":")
        self._server = await asyncio.start_server(self._connected, host, int(port))

    async def close(self) -> None:
        """Ends every connection."""
        self._open.set()
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.close()
        for writer in list(self._writers):
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def hold(self, seconds: float) -> None:
        """Lets nothing pass for so long."""
        self._open.clear()
        await asyncio.sleep(seconds)
        self._open.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            beyond_reader, beyond_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        both = {writer, beyond_writer}
        self._writers |= both
        try:
            await asyncio.gather(self._pass(reader, beyond_writer), self._pass(beyond_reader, writer))
        finally:
            self._writers -= both

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        # Each end that closes closes the other.
        writer.close()


async def kept(query: str, tenant: str, since_ns: int, *, violated: bool | None = None) -> dict[str, list[SpanView]]:
    """Every kept trace of a tenant since then (Unix time), by trace id: read in windows, each far below what one answer may hold."""
    wanted = {names.TENANT_NAME: tenant}
    if violated is not None:
        wanted[names.SLO_VIOLATED] = "true" if violated else "false"
    found: dict[str, list[SpanView]] = {}
    start_ns, end_ns = since_ns, time.time_ns() + 1
    while start_ns < end_ns:
        until_ns = min(end_ns, start_ns + WINDOW_NS)
        traces = await find_traces(
            query, start_ns=start_ns, end_ns=until_ns, service=FRONTEND, wanted=wanted, limit=MOST_TRACES
        )
        assert len(traces) < MOST_TRACES, "a window holds more traces than one answer may"
        found |= {trace[0].trace_id: trace for trace in traces}
        start_ns = until_ns
    return found


def server_spans(trace: Sequence[SpanView]) -> list[SpanView]:
    """Those that bear a verdict: one for each request of the trace."""
    return [span for span in trace if span.kind == "server" and names.SLO_VIOLATED in span.attributes]


def orphans(trace: Sequence[SpanView]) -> list[SpanView]:
    """Spans below one that is not there. A server span's parent is its caller's, and elsewhere."""
    ids = {span.span_id for span in trace}
    return [span for span in trace if span.kind != "server" and span.parent_span_id and span.parent_span_id not in ids]


def middle(values: Sequence[float]) -> dict[str, float]:
    """The median, and between which two values it lies with 95 % confidence, whatever they are distributed like: the ranks that
    the sign test gives."""
    ordered, within = sorted(values), 0
    beyond = 1.0
    while 2 * (beyond := beyond + math.comb(len(ordered), within + 1)) <= 0.05 * 2 ** len(ordered):
        within += 1
    return {
        "median": round(statistics.median(ordered), 4),
        "from": round(ordered[within], 4),
        "to": round(ordered[-1 - within], 4),
    }


def cpu_ns(pid: int) -> int:
    """Processor time of a process so far, of all its threads, to the nanosecond; ProcessLookupError where there is none.

    The counts in /proc are in hundredths of a second, too coarse for short turns. Source of the clock's number: Linux,
    include/linux/posix-timers.h, CPUCLOCK_SCHED of a process.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        raise ProcessLookupError(pid) from None


def quantile(values: Sequence[float], part: float) -> float:
    """By nearest rank; 0.0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
