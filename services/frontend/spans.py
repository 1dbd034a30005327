"""The frontend's spans of one request, made when it is over."""

from __future__ import annotations

from services._proto.apportion.v1.executor_pb2 import Stages
from services.common import attributes as names
from services.common.spans import Kind, SpanRecord, Value, new_span_id
from services.common.status import CODES
from services.frontend.core.verdict import Judgement
from services.frontend.request import Request

METHOD = "inference.GRPCInferenceService/ModelInfer"


def spans_of(request: Request, judgement: Judgement, ended_ns: int) -> list[SpanRecord]:
    """The server span, and below it what the frontend can tell of the time: before the request was handed on, and what
    the executor's own stages leave of the rest."""
    spans = [_server_span(request, judgement, ended_ns)]
    if not request.attempts:
        return [*spans, _stage(request, names.STAGE_ADMIT, request.arrived_ns, ended_ns)]
    spans.append(_stage(request, names.STAGE_ADMIT, request.arrived_ns, request.attempts[0].submitted_ns))
    last = request.attempts[-1]
    if last.stages is not None:
        # Both ways are one span at the front: where between them the executor's stages lay, only its own clock knows.
        transport_ns = max(0, ended_ns - last.submitted_ns - accounted_ns(last.stages))
        spans.append(_stage(request, names.STAGE_TRANSPORT, last.submitted_ns, last.submitted_ns + transport_ns))
    return spans


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
        end_ns=end_ns,
        attributes={names.SLO_STAGE: stage, names.TENANT_NAME: request.tenant},
    )


def _server_span(request: Request, judgement: Judgement, ended_ns: int) -> SpanRecord:
    """The server span of a request that is over."""
    reason = request.refusal.reason if request.refusal is not None else None
    facts: dict[str, Value] = {
        names.RPC_SYSTEM_NAME: "grpc",
        names.RPC_METHOD: METHOD,
        names.RPC_RESPONSE_STATUS_CODE: CODES[reason].name if reason is not None else "OK",
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
    if reason is not None:
        facts[names.ERROR_TYPE] = str(reason)
    return SpanRecord(
        name=METHOD,
        trace_id=request.trace_id,
        span_id=request.span_id,
        parent_span_id=request.parent_span_id,
        start_ns=request.arrived_ns,
        end_ns=ended_ns,
        kind=Kind.SERVER,
        attributes=facts,
        error=request.refusal.message if request.refusal is not None else None,
    )
