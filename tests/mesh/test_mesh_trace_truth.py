"""The trace benchmarks in short, through a whole mesh: what they are to show is shown here with few requests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import grpc
import numpy as np

import services.common.attributes as names
from bench import trace_match, trace_truth
from bench.models import elementwise
from services.tracestore.client import fetch_trace
from tests.mesh.calling import Caller, request
from tests.mesh.running import RunningMesh, wait_until, wait_until_async

X = np.ones((1, 4), np.float32)


def test_whatever_a_request_is_held_up_by_its_trace_says_so(tmp_path: Path) -> None:
    found, sent = trace_truth.run(tmp_path / "data", each=3, rounds=1)
    assert not found.missing
    for kind in sent:
        assert found.violations[kind], f"nothing was held up by {kind}"
        assert found.right[kind] * 2 > found.violations[kind], (kind, found.confused)
    assert found.share_right > 0.8, found.confused
    assert found.over() <= 1, found.worst


async def test_counted_told_and_kept_violations_are_the_same_one_by_one(mesh: RunningMesh, tmp_path: Path) -> None:
    mesh.create_tenant(trace_match.TENANT)
    mesh.push(trace_match.MODEL, elementwise(tmp_path / "identity.onnx", "Identity"), tenant=trace_match.TENANT)
    matched, _ = await trace_match.measured(mesh, 1000, 200.0, warm=200)
    assert not matched.wrong, matched.examples
    assert matched.counted >= 1000 // trace_match.EVERY


async def test_a_trace_store_that_hangs_costs_counted_spans_and_no_request(mesh: RunningMesh, tmp_path: Path) -> None:
    mesh.push("through-a-stall", elementwise(tmp_path / "abs.onnx", "Abs"))
    late = request("through-a-stall", {"x": X}, slo_ms=0.001)
    store = mesh.pids()["tracestore"]
    before = trace_match.spans_lost(mesh, "metrics"), trace_match.spans_lost(mesh, "executor_metrics")
    with Caller(mesh) as caller:
        os.kill(store, signal.SIGSTOP)
        try:
            for _ in range(200):
                caller.send(late)
            wait_until(lambda: trace_match.spans_lost(mesh, "metrics") > before[0], what="a loss at the frontend")
            wait_until(lambda: trace_match.spans_lost(mesh, "executor_metrics") > before[1], what="one at the executor")
        finally:
            os.kill(store, signal.SIGCONT)

        async def arrives() -> bool:
            _, call = caller.stub.ModelInfer.with_call(late, timeout=10)
            told = dict(call.trailing_metadata())["apportion-trace-id"]
            spans: list[object] = []

            async def there() -> bool:
                spans[:] = await fetch_trace(mesh.addresses["query"], told)
                return bool(spans)

            try:
                await wait_until_async(there, timeout_s=3)
            except AssertionError:
                return False
            return True

        await wait_until_async(arrives, what="a trace, once the store goes on")


async def test_no_tensor_no_key_and_no_other_tenant_is_in_any_log_or_span(mesh: RunningMesh, tmp_path: Path) -> None:
    model = elementwise(tmp_path / "neg.onnx", "Neg")
    for tenant in ("discreet", "curious"):
        mesh.create_tenant(tenant)
        mesh.push("neg", model, tenant=tenant, options=("--slo-ms", "60000"))
    secret = b"TENSOR-CONTENTS-"
    tensor = np.frombuffer(secret, np.float32).reshape(1, 4)
    with Caller(mesh, "discreet") as caller:
        for made in (
            request("neg", {"x": tensor}, slo_ms=0.001),
            request("neg", {"x": tensor}, typed=True, slo_ms=0.001),
            request("neg", {"wrong": tensor}, slo_ms=0.001),
            request("neg", {"x": np.array([[secret]], object)}, slo_ms=0.001),
            request("absent", {"x": tensor}),
        ):
            _sent(caller, made)
        _, call = caller.stub.ModelInfer.with_call(
            request("neg", {"x": tensor}, slo_ms=0.001), timeout=10, metadata=caller.metadata
        )
        told = dict(call.trailing_metadata())["apportion-trace-id"]

    async def whole() -> bool:
        return len({span.service for span in await fetch_trace(mesh.addresses["query"], told)}) > 1

    await wait_until_async(whole, what="the trace")
    written = [*(mesh.data / "logs").iterdir(), *mesh.data.glob("traces.db*")]
    assert len(written) > 3
    for path in written:
        content = path.read_bytes()
        assert secret not in content, path
        for key in mesh.keys.values():
            assert key.encode() not in content, path
    spans = await fetch_trace(mesh.addresses["query"], told)
    assert {span.attributes[names.TENANT_NAME] for span in spans if names.TENANT_NAME in span.attributes} == {
        "discreet"
    }
    assert not any(other in repr(spans) for other in ("curious", trace_match.TENANT, "watched"))


def _sent(caller: Caller, made: object) -> None:
    """Sends it, whatever becomes of it; what is said of it is never what was in it."""
    said = ""
    try:
        caller.send(made)
    except grpc.RpcError as refused:
        said = str(refused)
    assert "TENSOR-CONTENTS-" not in said
