"""A trace store on free ports, and spans to put into it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common.telemetry import SpanRecord, new_span_id, new_trace_id
from services.tracestore.serve import serve
from services.tracestore.settings import TraceStoreSettings


@dataclass(frozen=True)
class Running:
    """Where a trace store listens."""

    listen: str
    query_listen: str


@asynccontextmanager
async def running(data: Path, **more: object) -> AsyncIterator[Running]:
    """A trace store in this process, until the block ends."""
    ready = data / "ready.json"
    settings = TraceStoreSettings(
        listen="127.0.0.1:0", query_listen="127.0.0.1:0", data=data, ready_file=str(ready), drain_s=0.2, **more
    )
    stop = asyncio.Event()
    task = asyncio.create_task(serve(settings, stop))
    while not ready.exists():
        if task.done():
            task.result()
        await asyncio.sleep(0.01)
    addresses = json.loads(ready.read_text())
    try:
        yield Running(addresses["listen"], addresses["query_listen"])
    finally:
        stop.set()
        await task
        ready.unlink()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as where:
        yield where


def record(name: str = "ModelInfer", **more: object) -> SpanRecord:
    """A finished span of a millisecond."""
    now = time.monotonic_ns()
    values = {
        "trace_id": new_trace_id(),
        "span_id": new_span_id(),
        "parent_span_id": None,
        "start_ns": now - 1_000_000,
        "end_ns": now,
    }
    return SpanRecord(name=name, **{**values, **more})  # type: ignore[arg-type]


@pytest.fixture
def make_record() -> Callable[..., SpanRecord]:
    return record


@pytest.fixture
def run_store() -> Callable[..., object]:
    return running


async def until(holds: Callable[[], Awaitable[bool]], *, seconds: float = 10.0) -> None:
    """Waits until something holds; fails where it does not."""
    end = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < end, "it never came to hold"
        await asyncio.sleep(0.02)


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[None]]:
    return until
