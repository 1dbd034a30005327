"""What the whole mesh tells of its requests: traces, verdicts and metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import services.common.attributes as names
from services.common.spans import format_traceparent, new_span_id, new_trace_id
from services.tracestore.client import fetch_linked, fetch_trace, find_traces
from services.tracestore.core.spans import SpanView
from services.tracestore.core.verdicts import verdicts
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh.calling import Caller, request
from tests.mesh.running import RunningMesh, wait_until_async

TENANT = "watched"
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
IMPOSSIBLE_MS = 0.001
FRONTEND, EXECUTOR = "apportion-frontend", "apportion-executor"
CLOCKS_NS = 2_000_000
"""Each process reads the wall clock once for itself: how far two of them may differ."""


@pytest.fixture(scope="module")
def watched(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> RunningMesh:
    """The mesh with a tenant whose model is `linear`, promised within a minute."""
    linear: Path = tmp_path_factory.mktemp("watched") / "linear.onnx"
    linear.write_bytes(linear_onnx())
    mesh.create_tenant(TENANT)
    mesh.push("linear", linear, tenant=TENANT, options=("--slo-ms", "60000"))
    return mesh


@pytest.fixture
def caller(watched: RunningMesh) -> Iterator[Caller]:
    with Caller(watched, TENANT) as made:
        yield made


def send(caller: Caller, trace_id: bytes, parent: bytes | None = None, **parameters: float) -> None:
    """One good request as part of the caller's own trace."""
    traceparent = format_traceparent(trace_id, parent or new_span_id())
    caller.send(request("linear", {"x": ROWS}, **parameters), traceparent=traceparent)


async def whole_trace(mesh: RunningMesh, trace_id: bytes) -> list[SpanView]:
    """The spans of a kept trace, once those of both services have come."""
    query = mesh.addresses["query"]

    async def both() -> bool:
        return {span.service for span in await fetch_trace(query, trace_id.hex())} == {FRONTEND, EXECUTOR}

    await wait_until_async(both, what="the trace with spans of both services")
    return await fetch_trace(query, trace_id.hex())


async def test_a_request_with_a_traceparent_is_one_trace_across_both_services(
    watched: RunningMesh, caller: Caller
) -> None:
    trace_id, parent = new_trace_id(), new_span_id()
    send(caller, trace_id, parent, slo_ms=IMPOSSIBLE_MS)
    spans = await whole_trace(watched, trace_id)
    (server,) = [span for span in spans if span.kind == "server"]
    assert (server.service, server.parent_span_id) == (FRONTEND, parent.hex())
    below = [span for span in spans if span is not server]
    assert {span.parent_span_id for span in below} == {server.span_id}
    by_service = {service: {span.name for span in below if span.service == service} for service in (FRONTEND, EXECUTOR)}
    assert by_service[FRONTEND] == {names.STAGE_ADMIT, names.STAGE_SEND, names.STAGE_TRANSPORT, names.STAGE_DELIVER}
    assert {names.STAGE_DECODE, names.STAGE_QUEUE, names.STAGE_COMPUTE, names.STAGE_ENCODE} <= by_service[EXECUTOR]
    for span in below:
        assert server.start_ns - CLOCKS_NS <= span.start_ns <= span.end_ns <= server.end_ns + CLOCKS_NS, span
    for span in (server, *(span for span in below if span.service == EXECUTOR)):
        assert (span.attributes[names.TENANT_NAME], span.attributes[names.MODEL_NAME]) == (TENANT, "linear")


async def test_a_request_and_its_batch_are_linked_both_ways(watched: RunningMesh, caller: Caller) -> None:
    trace_id = new_trace_id()
    send(caller, trace_id, slo_ms=IMPOSSIBLE_MS)
    spans = await whole_trace(watched, trace_id)
    (server,) = [span for span in spans if span.kind == "server"]
    (compute,) = [span for span in spans if span.name == names.STAGE_COMPUTE]
    (batch,) = await fetch_linked(watched.addresses["query"], spans)
    assert [(link.trace_id, link.span_id) for link in compute.links] == [(batch.trace_id, batch.span_id)]
    assert [(link.trace_id, link.span_id) for link in batch.links] == [(trace_id.hex(), server.span_id)]
    assert (batch.name, batch.attributes[names.BATCH_ROWS]) == (names.SPAN_BATCH, 2)


async def test_the_verdict_recomputed_from_timestamps_is_the_one_recorded(watched: RunningMesh, caller: Caller) -> None:
    trace_id = new_trace_id()
    send(caller, trace_id, slo_ms=IMPOSSIBLE_MS)
    (found,) = verdicts(await whole_trace(watched, trace_id))
    assert (found.tenant, found.model) == (TENANT, "linear")
    assert (found.requests, found.violated, found.disagreements) == (1, 1, 0)


async def test_a_trace_is_printed_as_a_waterfall(watched: RunningMesh, caller: Caller) -> None:
    trace_id = new_trace_id()
    send(caller, trace_id, slo_ms=IMPOSSIBLE_MS)
    await whole_trace(watched, trace_id)
    lines = watched.command("trace", "show", trace_id.hex()).splitlines()
    assert lines[0].startswith(f"trace {trace_id.hex()}  ")
    assert lines[0].endswith("VIOLATED")
    for stage in (names.STAGE_ADMIT, names.STAGE_QUEUE, names.STAGE_COMPUTE):
        assert any(line.strip().startswith(f"{stage} · apportion-") for line in lines), lines
    assert any(line.startswith("spent: admit ") for line in lines)
    assert any(line.startswith("to blame: ") for line in lines)
    assert any(line.startswith("rode in batch ") for line in lines)
    assert watched.apportion("trace", "show", trace_id.hex(), "--tenant", "somebody").returncode == 1


async def test_the_caller_of_a_kept_request_is_told_its_trace(watched: RunningMesh, caller: Caller) -> None:
    asked = request("linear", {"x": ROWS}, slo_ms=IMPOSSIBLE_MS)
    _, call = caller.stub.ModelInfer.with_call(asked, timeout=10, metadata=caller.metadata)
    told = dict(call.trailing_metadata())["apportion-trace-id"]
    assert isinstance(told, str)
    assert await whole_trace(watched, bytes.fromhex(told))


async def test_every_violation_is_kept_and_counted_and_no_more_than_those(watched: RunningMesh, caller: Caller) -> None:
    labels, query = {"tenant": TENANT, "model": "linear"}, watched.addresses["query"]
    before = watched.total("apportion_frontend_violations_total", **labels)
    since_ns, trace_ids = time.time_ns(), [new_trace_id() for _ in range(60)]
    for trace_id in trace_ids:
        send(caller, trace_id, slo_ms=IMPOSSIBLE_MS)
    assert watched.total("apportion_frontend_violations_total", **labels) == before + len(trace_ids)

    async def kept() -> set[str]:
        wanted = {names.TENANT_NAME: TENANT, names.SLO_VIOLATED: "true"}
        end_ns = time.time_ns() + 1
        found = await find_traces(query, start_ns=since_ns, end_ns=end_ns, service=FRONTEND, wanted=wanted, limit=200)
        return {trace[0].trace_id for trace in found}

    async def all_kept() -> bool:
        return len(await kept()) == len(trace_ids)

    await wait_until_async(all_kept, what="every violation's trace")
    assert await kept() == {trace_id.hex() for trace_id in trace_ids}


async def test_of_requests_within_their_objective_a_sample_is_kept_and_listed(
    watched: RunningMesh, caller: Caller
) -> None:
    """The default keeps one in twenty. That none of these is among them happens once in 10^10 times."""
    trace_ids = {new_trace_id().hex() for _ in range(450)}
    for trace_id in trace_ids:
        send(caller, bytes.fromhex(trace_id))

    async def listed() -> set[str]:
        shown = watched.command("trace", "list", "--last", "5m", "--tenant", TENANT, "--limit", "1000")
        return {line.split()[0] for line in shown.splitlines()[1:]} & trace_ids

    await wait_until_async(listed, what="some of them in the list")
    assert len(await listed()) < len(trace_ids) / 4


def test_metrics_name_tenant_model_and_outcome(watched: RunningMesh, caller: Caller) -> None:
    def counts(outcome: str) -> float:
        labels = {"tenant": TENANT, "model": "linear", "outcome": outcome}
        return watched.total("apportion_frontend_requests_total", **labels)

    def of_all(name: str, **more: str) -> float:
        return watched.total(f"apportion_frontend_{name}", tenant=TENANT, model="linear", **more)

    before = {outcome: counts(outcome) for outcome in ("ok", "late", "FIELD_INVALID", "DEADLINE_EXCEEDED")}
    latencies, met, missed = (
        of_all("request_seconds_count"),
        of_all("objective_requests_total", met="true"),
        of_all("objective_requests_total", met="false"),
    )
    caller.send(request("linear", {"x": ROWS}))
    caller.send(request("linear", {"x": ROWS}))
    caller.send(request("linear", {"x": ROWS}, slo_ms=IMPOSSIBLE_MS))
    caller.refusal(request("linear", {"x": ROWS.astype(np.int32)}))
    caller.refusal(request("linear", {"x": ROWS}, timeout=1))
    after = {outcome: counts(outcome) - count for outcome, count in before.items()}
    assert after == {"ok": 2, "late": 1, "FIELD_INVALID": 1, "DEADLINE_EXCEEDED": 1}
    assert of_all("request_seconds_count") == latencies + 5
    assert of_all("objective_requests_total", met="true") == met + 2
    assert of_all("objective_requests_total", met="false") == missed + 1
    assert of_all("in_flight") == 0
