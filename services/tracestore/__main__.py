"""`python -m services.tracestore`: the trace store as a process."""

from __future__ import annotations

from services.common import logs
from services.common.process import run
from services.tracestore.serve import serve
from services.tracestore.settings import TraceStoreSettings


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = TraceStoreSettings()
    logs.configure("tracestore", form=settings.log_format, level=settings.log_level)
    run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
