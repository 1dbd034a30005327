"""How a request ended, by the frontend's clock, and whether that breaks a promise."""

from __future__ import annotations

import msgspec

from services.common.errors import Reason

OK = "ok"
LATE = "late"

CALLERS = frozenset(
    (
        Reason.FIELD_INVALID,
        Reason.MESSAGE_TOO_LARGE,
        Reason.KEY_MISSING,
        Reason.KEY_UNKNOWN,
        Reason.MODEL_NOT_FOUND,
        Reason.VERSION_NOT_FOUND,
        Reason.REGION_NOT_FOUND,
        Reason.MODEL_REFUSED,
        Reason.UNSUPPORTED,
        Reason.QUOTA_EXCEEDED,
    )
)
"""Refusals that the caller brought about: they break no promise of ours."""

RETRYABLE = frozenset((Reason.MODEL_NOT_READY, Reason.EXECUTOR_LOST, Reason.WORKER_LOST))
"""Failures of one replica that another may not share."""


class Judgement(msgspec.Struct, frozen=True, gc=False):
    """outcome: "ok", "late" or a Reason, fit for a metric's label. violated: the objective was missed, or the service
    refused or failed the request."""

    outcome: str
    violated: bool


_OK, _LATE = Judgement(OK, False), Judgement(LATE, True)


def judge(reason: Reason | None, elapsed_ns: int, objective_ns: int | None, deadline_ns: int | None) -> Judgement:
    """Judges a request that took `elapsed_ns` from its arrival.

    reason: why it was not answered; None: it was. objective_ns, deadline_ns: its budgets at arrival; None: none.
    A caller who leaves, or allows less time than was promised, breaks the promise himself, unless it was late already.
    """
    late = objective_ns is not None and elapsed_ns > objective_ns
    if reason is None:
        return _LATE if late else _OK
    if reason in CALLERS or reason is Reason.CANCELLED:
        return Judgement(reason, late)
    if reason is Reason.DEADLINE_EXCEEDED:
        patient = objective_ns is not None and deadline_ns is not None and deadline_ns >= objective_ns
        return Judgement(reason, late or patient)
    return Judgement(reason, True)
