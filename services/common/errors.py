"""Errors that know no transport: a reason fit for a label, and the facts behind it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """Why a call was refused. Callers may rely on these; `services.common.status` maps each to a gRPC code."""

    FIELD_INVALID = "FIELD_INVALID"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    TENANT_NOT_FOUND = "TENANT_NOT_FOUND"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    VERSION_NOT_FOUND = "VERSION_NOT_FOUND"
    ARTEFACT_NOT_FOUND = "ARTEFACT_NOT_FOUND"
    TRACE_NOT_FOUND = "TRACE_NOT_FOUND"
    REGION_NOT_FOUND = "REGION_NOT_FOUND"
    SLO_NOT_FOUND = "SLO_NOT_FOUND"
    TENANT_EXISTS = "TENANT_EXISTS"
    VERSION_EXISTS = "VERSION_EXISTS"
    REGION_EXISTS = "REGION_EXISTS"
    TENANT_NOT_EMPTY = "TENANT_NOT_EMPTY"
    REVISION_CONFLICT = "REVISION_CONFLICT"
    REVISION_COMPACTED = "REVISION_COMPACTED"
    STORAGE_FULL = "STORAGE_FULL"
    ARTEFACT_TOO_LARGE = "ARTEFACT_TOO_LARGE"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    SIZE_MISMATCH = "SIZE_MISMATCH"
    ARTEFACT_REFUSED = "ARTEFACT_REFUSED"
    SIGNATURE_MISSING = "SIGNATURE_MISSING"
    SIGNATURE_REFUSED = "SIGNATURE_REFUSED"
    OVERSOLD = "OVERSOLD"
    REPLACED = "REPLACED"
    PROTOCOL = "PROTOCOL"
    KEY_UNKNOWN = "KEY_UNKNOWN"
    KEY_MISSING = "KEY_MISSING"
    KEY_NOT_FOUND = "KEY_NOT_FOUND"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    MODEL_NOT_READY = "MODEL_NOT_READY"
    MODEL_REFUSED = "MODEL_REFUSED"
    MODEL_UNPLACED = "MODEL_UNPLACED"
    MODEL_FAILED = "MODEL_FAILED"
    WORKER_LOST = "WORKER_LOST"
    EXECUTOR_LOST = "EXECUTOR_LOST"
    NOT_SERVING = "NOT_SERVING"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    OVERLOADED = "OVERLOADED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    UNSUPPORTED = "UNSUPPORTED"
    INTERNAL = "INTERNAL"


class Refusal(Exception):
    """A call that cannot be served.

    message: one sentence for people that names the field and the limit.
    field: the request's field that is wrong, as its contract spells it.
    facts: the numbers that led here, by name; they travel as ErrorInfo metadata.
    retry_after_s: when it makes sense to try again; None: not said.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str | None = None,
        facts: Mapping[str, object] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.facts = {name: str(value) for name, value in (facts or {}).items()}
        self.retry_after_s = retry_after_s

    @property
    def in_traces(self) -> str:
        """The message as others than the caller may read it: without a model's own words, which may quote its tensors."""
        return _MODELS_WORDS if self.reason is Reason.MODEL_FAILED else self.message


_MODELS_WORDS = "the model raised an error; its caller has been told which"


def invalid(field: str, problem: str, **facts: object) -> Refusal:
    """The refusal for a request whose `field` is wrong: `invalid("name", "must match …")`."""
    return Refusal(Reason.FIELD_INVALID, f"{field}: {problem}", field=field, facts=facts)
