"""Logs: JSON lines for machines, coloured text on a terminal; trace and tenant ids where there are any."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
SECRET = frozenset({"key", "api_key", "token", "mesh_token", "authorization", "password", "secret", "payload"})
"""Values under these names are never printed, at any depth, in mappings and in (name, value) pairs."""
REDACTED = "[redacted]"
MOST_DEPTH = 8


def configure(service: str, *, form: str = "auto", level: str = "info") -> None:
    """Sets up structlog for this process; every line names the service. Raises ValueError for an unknown form or level.

    form: json, text, or auto (text where standard error is a terminal).
    """
    if form not in ("auto", "json", "text"):
        raise ValueError(f"log_format: {form!r} is none of auto, json, text")
    if level not in LEVELS:
        raise ValueError(f"log_level: {level!r} is none of {', '.join(LEVELS)}")
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    # Never with the values of local variables, as rich would have it: requests and keys are among them.
    in_colour = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer = in_colour if text else structlog.processors.JSONRenderer()
    exceptions = [] if text else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            redact,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)


def about(*, trace_id: bytes | None = None, tenant: str | None = None) -> AbstractContextManager[None]:
    """Every line logged within names the trace and the tenant: `with about(trace_id=…, tenant=…):`."""
    facts = {"trace_id": trace_id.hex() if trace_id else None, "tenant": tenant}
    return structlog.contextvars.bound_contextvars(**{name: fact for name, fact in facts.items() if fact is not None})


class Sparse:
    """Lets so many lines of one kind pass in a second; says of how many it let none pass since the last."""

    def __init__(self, per_second: int = 10) -> None:
        self._per_second = per_second
        self._second = self._passed = self._held_back = 0

    def passes(self, now_ns: int) -> int | None:
        """None: not this line. Else how many lines there would have been since the last one that passed."""
        second = now_ns // 1_000_000_000
        if second != self._second:
            self._second, self._passed = second, 0
        if self._passed >= self._per_second:
            self._held_back += 1
            return None
        self._passed += 1
        held_back, self._held_back = self._held_back, 0
        return held_back


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor that takes secrets out of a line."""
    return {name: REDACTED if _is_secret(name) else _without_secrets(value, 0) for name, value in event.items()}


def _is_secret(name: object) -> bool:
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    return isinstance(name, str) and name.lower().replace("-", "_") in SECRET


def _without_secrets(value: Any, depth: int) -> Any:
    if depth >= MOST_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {key: REDACTED if _is_secret(key) else _without_secrets(item, depth + 1) for key, item in value.items()}
    if isinstance(value, tuple | list):
        if len(value) == 2 and _is_secret(value[0]):
            return (value[0], REDACTED)
        if type(value) in (tuple, list):
            return type(value)(_without_secrets(item, depth + 1) for item in value)
    return value
