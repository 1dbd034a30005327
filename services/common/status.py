"""The one table from reasons to gRPC codes, and the way there and back with google.rpc details."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.common.errors import Reason, Refusal

DOMAIN = "apportion"
DETAILS_KEY = "grpc-status-details-bin"

CODES: dict[Reason, grpc.StatusCode] = {
    Reason.FIELD_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MESSAGE_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.TENANT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.VERSION_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ARTEFACT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.TRACE_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.REGION_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.SLO_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.TENANT_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.VERSION_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.REGION_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.TENANT_NOT_EMPTY: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REVISION_CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REVISION_COMPACTED: grpc.StatusCode.OUT_OF_RANGE,
    Reason.STORAGE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.ARTEFACT_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.DIGEST_MISMATCH: grpc.StatusCode.DATA_LOSS,
    Reason.SIZE_MISMATCH: grpc.StatusCode.DATA_LOSS,
    Reason.ARTEFACT_REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.SIGNATURE_MISSING: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.SIGNATURE_REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.OVERSOLD: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.REPLACED: grpc.StatusCode.ABORTED,
    Reason.PROTOCOL: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.KEY_UNKNOWN: grpc.StatusCode.UNAUTHENTICATED,
    Reason.KEY_MISSING: grpc.StatusCode.UNAUTHENTICATED,
    Reason.KEY_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.MODEL_NOT_READY: grpc.StatusCode.UNAVAILABLE,
    Reason.MODEL_REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.MODEL_UNPLACED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.MODEL_FAILED: grpc.StatusCode.INTERNAL,
    Reason.WORKER_LOST: grpc.StatusCode.UNAVAILABLE,
    Reason.EXECUTOR_LOST: grpc.StatusCode.UNAVAILABLE,
    Reason.NOT_SERVING: grpc.StatusCode.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.CANCELLED: grpc.StatusCode.CANCELLED,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.OUT_OF_MEMORY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.QUOTA_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}


def to_status(refusal: Refusal) -> status_pb2.Status:
    """The refusal as google.rpc.Status: ErrorInfo always, BadRequest and RetryInfo where they say something."""
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=refusal.facts)
    details: list[any_pb2.Any] = [_packed(info)]
    if refusal.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=refusal.field, description=refusal.message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if refusal.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(refusal.retry_after_s * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if CODES[refusal.reason] is grpc.StatusCode.RESOURCE_EXHAUSTED:
        subject = refusal.facts.get("subject", "")
        exceeded = error_details_pb2.QuotaFailure.Violation(
            subject=subject, description=refusal.message, quota_metric=refusal.facts.get("quota", "")
        )
        details.append(_packed(error_details_pb2.QuotaFailure(violations=[exceeded])))
    return status_pb2.Status(code=CODES[refusal.reason].value[0], message=refusal.message, details=details)


def from_status(status: status_pb2.Status) -> Refusal:
    """The refusal that a google.rpc.Status tells of; a status of other origin becomes INTERNAL with its text."""
    reason, field, facts, retry_after_s = Reason.INTERNAL, None, {}, None
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in Reason.__members__:
            reason, facts = Reason(info.reason), dict(info.metadata)
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return Refusal(reason, status.message, field=field, facts=facts, retry_after_s=retry_after_s)


def from_rpc_error(error: grpc.RpcError) -> Refusal | None:
    """The refusal inside an RPC's error; None where the other side sent none (transport, deadline)."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return from_status(status_pb2.Status.FromString(value))
    return None


async def refuse(context: Any, refusal: Refusal, *more: tuple[str, str]) -> bytes:
    """Ends the RPC with the refusal's code, message and details, once its method returns what this does. more: trailing metadata.

    gRPC keeps the error that its `abort` raises, in a circle with the frames that this has passed through: some twenty objects a call,
    and a flood of calls that are refused would have the collector stop the loop for milliseconds several times a second. So it
    passes through none of ours, and lets go of gRPC's once the call is over.
    """
    trailing = ((DETAILS_KEY, to_status(refusal).SerializeToString()), *more)
    try:
        await context.abort(CODES[refusal.reason], refusal.message, trailing)
    except grpc.aio.AbortError as error:
        aborted = error.with_traceback(None)
    task = asyncio.current_task()
    assert task is not None
    # gRPC raises it once more where the method has returned.
    task.add_done_callback(lambda _: _forget_frames(aborted))
    return b""


def _forget_frames(error: Exception) -> None:
    error.__traceback__ = None


def code_name(status: status_pb2.Status) -> str:
    """The name of a status' code: "INVALID_ARGUMENT"."""
    return code_pb2.Code.Name(status.code)


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
