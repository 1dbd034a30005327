"""Refusals on the wire: each reason has a code, and the facts survive the way there and back."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2, status_pb2

from services.common.errors import Reason, Refusal, invalid
from services.common.status import CODES, code_name, from_status, to_status


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_code_and_comes_back_with_its_details(reason: Reason) -> None:
    refusal = Refusal(reason, "models: 3 of 2", field="models", facts={"models": 3, "limit": 2}, retry_after_s=1.5)
    status = status_pb2.Status.FromString(to_status(refusal).SerializeToString())
    assert status.code == CODES[reason].value[0] != code_pb2.OK
    assert code_name(status) == CODES[reason].name
    back = from_status(status)
    assert (back.reason, back.message, back.field) == (reason, "models: 3 of 2", "models")
    assert (back.facts, back.retry_after_s) == ({"models": "3", "limit": "2"}, 1.5)


def test_no_reason_is_without_a_code_and_no_code_without_a_reason() -> None:
    assert set(CODES) == set(Reason)


def test_what_a_refusal_does_not_say_is_not_made_up() -> None:
    back = from_status(to_status(Refusal(Reason.CANCELLED, "gone")))
    assert (back.field, back.facts, back.retry_after_s) == (None, {}, None)


def test_a_status_of_other_origin_becomes_internal_with_its_text() -> None:
    status = status_pb2.Status(code=5, message="not here")
    assert (from_status(status).reason, from_status(status).message) == (Reason.INTERNAL, "not here")


def test_a_reason_of_another_domain_or_of_a_later_version_is_not_ours() -> None:
    status = to_status(Refusal(Reason.OVERLOADED, "x"))
    for domain, reason in (("example.com", "OVERLOADED"), ("apportion", "OF_TOMORROW")):
        other = status_pb2.Status.FromString(status.SerializeToString())
        info = to_info(other)
        info.domain, info.reason = domain, reason
        other.details[0].Pack(info)
        assert from_status(other).reason is Reason.INTERNAL


def to_info(status: status_pb2.Status):  # type: ignore[no-untyped-def]
    from google.rpc import error_details_pb2

    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def test_an_exhausted_resource_names_its_subject() -> None:
    from google.rpc import error_details_pb2

    status = to_status(Refusal(Reason.QUOTA_EXCEEDED, "rate: 5 of 4", facts={"subject": "tenant a"}))
    failure = error_details_pb2.QuotaFailure()
    assert any(detail.Unpack(failure) for detail in status.details)
    assert (failure.violations[0].subject, failure.violations[0].description) == ("tenant a", "rate: 5 of 4")


def test_invalid_names_the_field_in_its_message() -> None:
    refusal = invalid("name", "must not be empty", length=0)
    assert (refusal.message, refusal.field, refusal.facts) == ("name: must not be empty", "name", {"length": "0"})
    assert CODES[refusal.reason] is grpc.StatusCode.INVALID_ARGUMENT
