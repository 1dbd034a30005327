"""`python -m services.executor`."""

from __future__ import annotations

from services.common import logs
from services.common.process import run
from services.executor.serve import serve
from services.executor.settings import ExecutorSettings


def main() -> None:
    """Runs an executor with what the environment says."""
    settings = ExecutorSettings()
    logs.configure("executor", form=settings.log_format, level=settings.log_level)
    run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
