"""`python -m services.registry`: one registry, set up by APPORTION_REGISTRY_… and APPORTION_… variables."""

from __future__ import annotations

from services.common.logs import configure
from services.common.process import run
from services.registry.serve import serve
from services.registry.settings import RegistrySettings


def main() -> None:
    """Runs the registry until SIGTERM or SIGINT."""
    settings = RegistrySettings()
    configure("registry", form=settings.log_format, level=settings.log_level)
    run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
