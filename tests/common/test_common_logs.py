"""Logs name trace and tenant, and never print a secret."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
import structlog

from services.common import logs


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What was logged, as JSON objects."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure("room", form="json")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_secrets_are_never_printed_however_deep(lines: Any) -> None:
    structlog.get_logger().info(
        "call",
        key="s3cret",
        API_KEY="s3cret",
        headers={"Authorization": "Bearer s3cret", "x": [{"mesh-token": "s3cret"}]},
        metadata=[("authorization", "Bearer s3cret"), (b"token", b"s3cret"), ("user-agent", "me")],
        payload=b"s3cret",
        tenant="a",
    )
    (line,) = lines()
    assert "s3cret" not in json.dumps(line)
    assert (line["tenant"], line["service"], line["key"]) == ("a", "room", logs.REDACTED)
    assert line["metadata"][2] == ["user-agent", "me"]


def test_a_value_that_contains_itself_ends(lines: Any) -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    structlog.get_logger().info("call", loop=loop)
    assert lines()[0]["event"] == "call"


def test_lines_name_the_trace_and_the_tenant_they_are_about(lines: Any) -> None:
    log = structlog.get_logger()
    with logs.about(trace_id=b"\x01" * 16, tenant="a"):
        log.info("inside")
    log.info("outside")
    inside, outside = lines()
    assert (inside["trace_id"], inside["tenant"]) == ("01" * 16, "a")
    assert "trace_id" not in outside
    assert "tenant" not in outside


def test_an_error_is_printed_with_its_traceback(lines: Any) -> None:
    try:
        raise KeyError("what")
    except KeyError as error:
        structlog.get_logger().error("failed", exc_info=error)
    assert "Traceback" in lines()[0]["exception"]


@pytest.mark.parametrize("wrong", [{"form": "xml"}, {"level": "loud"}])
def test_an_unknown_form_or_level_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="none of"):
        logs.configure("room", **wrong)


def test_an_error_on_a_terminal_shows_no_values_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure("room", form="text")
    try:
        tensor = b"s3cret-tensor"
        try:
            raise ValueError(f"{len(tensor)} bytes")
        except ValueError as error:
            structlog.get_logger().error("unexpected error", exc_info=error)
        assert "ValueError: 13 bytes" in stream.getvalue()
        assert "s3cret-tensor" not in stream.getvalue().replace('b"s3cret-tensor"', "")
        assert "locals" not in stream.getvalue()
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


def test_only_so_many_lines_of_a_kind_pass_in_a_second_and_the_next_says_how_many_did_not() -> None:
    sparse, second = logs.Sparse(2), 1_000_000_000
    assert [sparse.passes(5 * second + each) for each in range(5)] == [0, 0, None, None, None]
    assert sparse.passes(6 * second) == 3
    assert sparse.passes(6 * second) == 0
