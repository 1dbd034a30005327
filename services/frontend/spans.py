"""The frontend's spans of one request, made when it is over."""

from __future__ import annotations

from services._proto.apportion.v1.executor_pb2 import Stages
from services.common import attributes as names
from services.common.errors import Reason, Refusal
from services.common.spans import Kind, SpanRecord, Value, new_span_id
from services.common.status import CODES
from services.frontend.calls import Call
from services.frontend.core.verdict import Judgement
from services.frontend.request import Request

SERVICE = "inference.GRPCInferenceService"
GONE = frozenset((Reason.EXECUTOR_LOST, Reason.NOT_SERVING))
"""Ends of a call after which nobody is left who could tell where its time went."""


def spans_of(request: Request, judgement: Judgement, ended_ns: int) -> list[SpanRecord]:
    """The server span, and below it what the frontend can tell of the time: until the request was handed on and written, what
    the way to its executor and back took, and what came after the answer. Each attempt that failed has its own."""
    spans = [_server_span(request, judgement, ended_ns)]
    attempts = request.attempts
    if not attempts:
        return [*spans, _stage(request, names.STAGE_ADMIT, request.arrived_ns, ended_ns)]
    spans.append(_stage(request, names.STAGE_ADMIT, request.arrived_ns, attempts[0].submitted_ns))
    for number, call in enumerate(attempts):
        until_ns = attempts[number + 1].submitted_ns if number + 1 < len(attempts) else ended_ns
        spans += _attempt(request, call, until_ns)
    return spans


def _attempt(request: Request, call: Call, until_ns: int) -> list[SpanRecord]:
    """One call to one replica. until_ns: when it was over for the request."""
    if not call.sent_ns:
        return [_stage(request, names.STAGE_SEND, call.submitted_ns, until_ns)]
    spans = [_stage(request, names.STAGE_SEND, call.submitted_ns, call.sent_ns)]
    if call.received_ns and call.stages is not None:
        # Both ways are one span at the front: where between them the executor's stages lay, only its own clock knows.
        transport_ns = max(0, call.received_ns - call.sent_ns - accounted_ns(call.stages))
        spans.append(_stage(request, names.STAGE_TRANSPORT, call.sent_ns, call.sent_ns + transport_ns))
        spans.append(_stage(request, names.STAGE_DELIVER, call.received_ns, until_ns))
        return spans
    lost = _lost(call)
    if lost is not None:
        unknown = _stage(request, names.STAGE_UNACCOUNTED, call.sent_ns, until_ns)
        unknown.attributes |= {names.SLO_MISSING: missing(lost), names.ERROR_TYPE: str(lost.reason)}
        unknown.error = lost.in_traces
        spans.append(unknown)
    return spans


def _lost(call: Call) -> Refusal | None:
    """Why nobody can say what became of the call; None: somebody can."""
    future = call.future
    answer = future.result() if future.done() and not future.cancelled() else None
    return answer if isinstance(answer, Refusal) and answer.reason in GONE else None


def missing(lost: Refusal) -> str:
    """What a trace cannot show of a call whose executor was lost."""
    stages = (names.STAGE_DECODE, names.STAGE_QUEUE, names.STAGE_COMPUTE, names.STAGE_ENCODE)
    return f"{', '.join(stages)}: the executor at {lost.facts.get('executor_address', '?')} was lost"


def accounted_ns(stages: Stages) -> int:
    """The time that an executor's stages explain; those that lie within another are counted with it."""
    return stages.decode_ns + stages.queue_ns + stages.compute_ns + stages.encode_ns


def _stage(request: Request, stage: str, start_ns: int, end_ns: int) -> SpanRecord:
    return SpanRecord(
        name=stage,
        trace_id=request.trace_id,
        span_id=new_span_id(),
        parent_span_id=request.span_id,
        start_ns=start_ns,
        end_ns=max(start_ns, end_ns),
        attributes={names.SLO_STAGE: stage, names.TENANT_NAME: request.tenant},
    )


def _server_span(request: Request, judgement: Judgement, ended_ns: int) -> SpanRecord:
    """The server span of a request that is over."""
    return SpanRecord(
        name=f"{SERVICE}/{request.method}",
        trace_id=request.trace_id,
        span_id=request.span_id,
        parent_span_id=request.parent_span_id,
        start_ns=request.arrived_ns,
        end_ns=ended_ns,
        kind=Kind.SERVER,
        attributes=_facts(request, judgement),
        error=request.refusal.in_traces if request.refusal is not None else None,
        trace_state=request.trace_state,
    )


def _facts(request: Request, judgement: Judgement) -> dict[str, Value]:
    refusal = request.refusal
    facts: dict[str, Value] = {
        names.RPC_SYSTEM_NAME: "grpc",
        names.RPC_METHOD: f"{SERVICE}/{request.method}",
        names.RPC_RESPONSE_STATUS_CODE: CODES[refusal.reason].name if refusal is not None else "OK",
        names.TENANT_NAME: request.tenant,
        names.MODEL_NAME: request.model,
        names.SLO_VIOLATED: judgement.violated,
        names.SLO_OUTCOME: judgement.outcome,
        names.SLO_KEPT_BECAUSE: names.KEPT_VIOLATED if judgement.violated else names.KEPT_SAMPLED,
    }
    if request.version:
        facts[names.MODEL_VERSION] = str(request.version)
    if request.request_id:
        facts[names.REQUEST_ID] = request.request_id.decode(errors="replace")[:128]
    if request.objective_ns is not None:
        facts[names.SLO_OBJECTIVE_US] = request.objective_ns // 1000
    if request.deadline_ns is not None:
        facts[names.SLO_DEADLINE_US] = request.deadline_ns // 1000
    if request.executor_id:
        facts[names.EXECUTOR_ID] = request.executor_id
    if request.attempts:
        facts[names.EXECUTOR_REPLICA] = str(request.attempts[-1].replica_id)
        facts[names.SLO_ATTEMPTS] = len(request.attempts)
        losses = [lost for lost in map(_lost, request.attempts) if lost is not None]
        if losses:
            facts[names.SLO_MISSING] = "; ".join(map(missing, losses))
    if refusal is not None:
        facts[names.ERROR_TYPE] = str(refusal.reason)
        stage = refusal.facts.get("stage")
        if stage is not None:
            facts[names.SLO_ENDED_IN] = str(stage)
    return facts
