"""The trace store as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from services.common.telemetry import SpanRecord, Tracer
from services.tracestore.client import fetch_trace


def start(data: Path, **variables: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """A trace store, and what it wrote when it was ready."""
    ready = data / "ready.json"
    ready.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APPORTION_")}
    environment |= {
        "APPORTION_TRACESTORE_LISTEN": "127.0.0.1:0",
        "APPORTION_TRACESTORE_QUERY_LISTEN": "127.0.0.1:0",
        "APPORTION_DATA": str(data),
        "APPORTION_TRACESTORE_READY_FILE": str(ready),
        **variables,
    }
    command = [sys.executable, "-m", "services.tracestore"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while not ready.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it never became ready"
        time.sleep(0.02)
    return process, json.loads(ready.read_text())


async def test_spans_that_were_acknowledged_outlive_a_killed_process(
    tmp_path: Path, make_record: Callable[..., SpanRecord]
) -> None:
    process, where = await asyncio.to_thread(start, tmp_path)
    records = [make_record() for _ in range(50)]
    tracer = Tracer("frontend", where["listen"])
    for record in records:
        tracer.emit(record)
    assert await asyncio.to_thread(tracer.flush, 10.0)
    assert tracer.exported == 50
    process.kill()
    process.communicate()
    again, where = await asyncio.to_thread(start, tmp_path, APPORTION_METRICS_LISTEN="127.0.0.1:0")
    for record in records:
        assert len(await fetch_trace(where["query_listen"], record.trace_id.hex())) == 1
    assert where["metrics"].startswith("127.0.0.1:")
    again.terminate()
    err = (await asyncio.to_thread(again.communicate, timeout=30))[1]
    assert again.returncode == 0, err
    await asyncio.to_thread(tracer.shutdown, 0.1)


def test_a_port_in_use_is_one_line_and_status_2(tmp_path: Path) -> None:
    process, where = start(tmp_path)
    environment = {
        **os.environ,
        "APPORTION_TRACESTORE_LISTEN": "127.0.0.1:0",
        "APPORTION_TRACESTORE_QUERY_LISTEN": where["query_listen"],
        "APPORTION_DATA": str(tmp_path),
    }
    command = [sys.executable, "-m", "services.tracestore"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: tracestore: cannot listen on")
    assert "--query-listen" in done.stderr
    process.terminate()
    process.communicate(timeout=30)
