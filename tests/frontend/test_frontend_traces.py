"""What the frontend tells of its requests: traces, verdicts, and lines in the log."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
import structlog
from frontend_fakes import FakeExecutor, infer_request
from frontend_world import Start, World

from services.common.errors import Reason, Refusal
from services.common.spans import SpanRecord
from services.common.status import from_rpc_error


async def refused(call: Any) -> tuple[grpc.StatusCode, Refusal, dict[str, Any]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    refusal = from_rpc_error(caught.value)
    assert refusal is not None
    return caught.value.code(), refusal, dict(caught.value.trailing_metadata())


class Kept:
    """A tracer that keeps what it is given."""

    enabled = True

    def __init__(self) -> None:
        self.records: list[SpanRecord] = []

    def emit_all(self, records: list[SpanRecord], *, spare: bool = False) -> bool:
        self.records += records
        return True

    def shutdown(self, timeout: float) -> None:
        return


def keep_spans(world: World, sample: float) -> Kept:
    kept = Kept()
    accounts = world.frontend.accounts
    accounts._tracer, accounts._sample = kept, sample  # type: ignore[assignment]
    return kept


async def test_a_violation_is_kept_counted_and_told_to_the_executor_and_the_client(start: Start) -> None:
    executor = FakeExecutor()
    world = await start(executor)
    kept = keep_spans(world, 0.0)
    parent = f"00-{'a' * 31}1-{'b' * 15}2-01"
    call = world.stub.ModelInfer(
        infer_request("m", slo_ms=("string_param", "0.001")), metadata=(("traceparent", parent),)
    )
    await call
    assert dict(await call.trailing_metadata())["apportion-trace-id"] == "a" * 31 + "1"
    await world.stub.ModelInfer(
        infer_request("m", slo_ms=("double_param", 60_000)), metadata=(("traceparent", parent),)
    )
    await world.until(lambda: len(executor.verdicts) == 2)
    assert [(v.violated, v.keep) for v in executor.verdicts] == [(True, True), (False, False)]
    span = kept.records[0]
    assert [record.name for record in kept.records[1:]] == ["admit", "send", "transport", "deliver"]
    assert (span.trace_id.hex(), (span.parent_span_id or b"").hex()) == ("a" * 31 + "1", "b" * 15 + "2")
    assert span.attributes["slo.objective_us"] == 1
    assert span.attributes["slo.outcome"] == "late"
    assert executor.infers[0].span.span_id == span.span_id
    samples = {
        (s.name, *s.labels.values()): s.value for metric in world.frontend.accounts.collect() for s in metric.samples
    }
    assert samples["apportion_frontend_violations_total", "default", "m"] == 1
    assert samples["apportion_frontend_objective_requests_total", "default", "m", "true"] == 1
    assert samples["apportion_frontend_requests_total", "default", "m", "late"] == 1
    assert samples["apportion_frontend_request_seconds_count", "default", "m"] == 2


async def test_no_caller_decides_whether_a_trace_is_kept(start: Start) -> None:
    executor = FakeExecutor()
    world = await start(executor)
    for flags, sample in (("01", 0.0), ("00", 1.0)):
        keep_spans(world, sample)
        parent = f"00-{'a' * 31}1-{'b' * 15}2-{flags}"
        await world.stub.ModelInfer(infer_request("m"), metadata=(("traceparent", parent),))
    await world.until(lambda: len(executor.verdicts) == 2)
    assert [verdict.keep for verdict in executor.verdicts] == [False, True]


async def test_a_tenant_may_have_a_sample_of_its_own(start: Start) -> None:
    executor = FakeExecutor()
    world = await start(executor, trace_samples={"default": 1.0, "other": 0.0})
    assert world.frontend.settings.trace_sample == 0.0
    await world.stub.ModelInfer(infer_request("m"))
    await world.until(lambda: len(executor.verdicts) == 1)
    assert executor.verdicts[0].keep


async def test_a_traces_context_goes_out_as_it_came_in(start: Start) -> None:
    world = await start(FakeExecutor())
    kept = keep_spans(world, 1.0)
    context = (("traceparent", f"00-{'a' * 31}1-{'b' * 15}2-00"), ("tracestate", "vendor=1"))
    call = world.stub.ModelInfer(infer_request("m"), metadata=context)
    await call
    span = kept.records[0]
    assert span.trace_state == "vendor=1"
    told = dict(await call.trailing_metadata())["traceresponse"]
    assert told == f"00-{'a' * 31}1-{span.span_id.hex()}-01"


async def test_a_caller_who_asks_is_told_what_its_request_took_and_the_verdict(start: Start) -> None:
    world = await start(FakeExecutor())
    call = world.stub.ModelInfer(infer_request("m"), metadata=(("apportion-timing", "1"),))
    await call
    told = dict(await call.trailing_metadata())
    assert (told["apportion-outcome"], told["apportion-violated"]) == ("ok", "false")
    assert 0 < int(told["apportion-took-us"]) < 10_000_000
    assert "apportion-took-us" not in dict(await silent(world).trailing_metadata())
    late = infer_request("m", slo_ms=("double_param", 0.001))
    call = world.stub.ModelInfer(late, metadata=(("apportion-timing", "1"),))
    await call
    assert dict(await call.trailing_metadata())["apportion-violated"] == "true"


def silent(world: World) -> Any:
    """A request whose caller asks for nothing."""
    return world.stub.ModelInfer(infer_request("m"))


async def test_the_trace_of_a_request_whose_executor_dies_says_what_is_missing(start: Start) -> None:
    async def never(_executor: FakeExecutor, _infer: Any, _payload: bytes) -> None:
        return None

    executor = FakeExecutor(never)
    world = await start(executor)
    kept = keep_spans(world, 0.0)
    asked = asyncio.ensure_future(refused(world.stub.ModelInfer(infer_request("m"))))
    await world.until(lambda: bool(executor.infers))
    await executor.stop()
    _, refusal, _ = await asked
    assert refusal.reason is Reason.EXECUTOR_LOST
    server, *stages = kept.records
    assert [record.name for record in stages] == ["admit", "send", "unaccounted"]
    assert "was lost" in str(server.attributes["slo.missing"])
    assert server.attributes["slo.missing"] == stages[-1].attributes["slo.missing"]
    assert stages[-1].end_ns == server.end_ns


async def test_each_attempt_has_spans_of_its_own(start: Start) -> None:
    async def never(_executor: FakeExecutor, _infer: Any, _payload: bytes) -> None:
        return None

    async def gone(_executor: FakeExecutor, _infer: Any, _payload: bytes) -> Refusal:
        return Refusal(Reason.WORKER_LOST, "the worker died")

    for answer, dies, first in ((never, True, "unaccounted"), (gone, False, "transport")):
        bad, good = FakeExecutor(answer, executor_id="e1"), FakeExecutor(executor_id="e2")
        world = await start(bad, good)
        kept = keep_spans(world, 1.0)
        asked = [asyncio.ensure_future(_answered(world)) for _ in range(4)]
        # All of them: one that was never written to the executor that dies has no more of that attempt than `send`.
        await world.until(lambda bad=bad, good=good: bool(bad.infers) and len(bad.infers + good.infers) >= 4)
        if dies:
            await bad.stop()
        await asyncio.gather(*asked)
        tried = [record for record in kept.records if record.attributes.get("slo.attempts") == 2]
        assert tried
        below = [record for record in kept.records if record.parent_span_id == tried[0].span_id]
        names = [record.name for record in below]
        assert names[:3] == ["admit", "send", first]
        assert names[-3:] == ["send", "transport", "deliver"]
        covered_ns = sum(record.end_ns - record.start_ns for record in below)
        assert covered_ns <= tried[0].end_ns - tried[0].start_ns
        assert (bad.address in str(tried[0].attributes.get("slo.missing"))) is dies


async def _answered(world: World) -> None:
    await world.stub.ModelInfer(infer_request("m"))


async def test_an_unexpected_error_is_a_violation_with_a_trace_and_a_line_that_names_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await start(FakeExecutor())
    kept = keep_spans(world, 0.0)
    monkeypatch.setattr(world.frontend.inference._table, "replica", lambda *_: {}["s3cret"])
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        _, refusal, trailing = await refused(world.stub.ModelInfer(infer_request("m")))
    assert refusal.reason is Reason.INTERNAL
    assert kept.records[0].attributes["slo.violated"] is True
    assert kept.records[0].attributes["error.type"] == "INTERNAL"
    told = [line for line in lines if line["event"] in ("unexpected error", "request failed")]
    assert [(line["trace_id"], line["tenant"]) for line in told] == [(trailing["apportion-trace-id"], "default")] * 2


async def test_a_sampled_request_is_kept_though_it_broke_nothing(start: Start) -> None:
    world = await start(FakeExecutor())
    kept = keep_spans(world, 1.0)
    await world.stub.ModelInfer(infer_request("m"))
    assert [span.attributes["slo.kept_because"] for span in kept.records[:1]] == ["sampled"]
