"""`python -m services.scheduler`: the scheduler, configured by APPORTION_SCHEDULER_… and APPORTION_… variables."""

from __future__ import annotations

from services.common import logs
from services.common.process import run
from services.scheduler.serve import serve
from services.scheduler.settings import SchedulerSettings


def main() -> None:
    """Runs the scheduler until SIGTERM or SIGINT."""
    settings = SchedulerSettings()
    logs.configure("scheduler", form=settings.log_format, level=settings.log_level)
    run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
