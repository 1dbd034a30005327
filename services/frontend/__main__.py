"""`python -m services.frontend`."""

from __future__ import annotations

from services.common import logs
from services.common.process import run
from services.frontend.serve import serve
from services.frontend.settings import FrontendSettings


def main() -> None:
    """Runs the frontend with settings from the environment."""
    settings = FrontendSettings()
    logs.configure("frontend", form=settings.log_format, level=settings.log_level)
    run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
