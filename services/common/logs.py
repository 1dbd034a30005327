"""Logs: JSON lines for machines, coloured text on a terminal; trace and tenant ids where there are any."""

from __future__ import annotations

import logging
import sys

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(service: str, *, form: str = "auto", level: str = "info") -> None:
    """Sets up structlog for this process; every line names the service. Raises ValueError for an unknown form or level.

    form: json, text, or auto (text where standard error is a terminal).
    """
    if form not in ("auto", "json", "text"):
        raise ValueError(f"log_format: {form!r} is none of auto, json, text")
    if level not in LEVELS:
        raise ValueError(f"log_level: {level!r} is none of {', '.join(LEVELS)}")
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if text else structlog.processors.JSONRenderer()
    exceptions = [] if text else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
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
