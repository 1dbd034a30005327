"""The Compose file as the compose-go library reads it, for each profile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.lint.chart import Finding

FOLDER = Path(__file__).parent.parent / "compose"
EXAMPLE = FOLDER / ".env.example"
PROFILES = ("cpu", "gpu", "cli")


def program(name: str) -> str:
    """A program that a wheel brought, beside this Python."""
    return str(Path(sys.executable).parent / name)


def config(environment: Path, *files: str) -> dict[str, Any]:
    """Everything that Compose would start, all profiles, references filled in. Raises CalledProcessError with its words."""
    chosen = [part for name in PROFILES for part in ("--profile", name)]
    named = [part for name in files for part in ("--file", name)]
    done = subprocess.run(
        [program("docker-compose"), "--env-file", str(environment), *named, *chosen, "config", "--format", "json"],
        cwd=FOLDER,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def checked() -> Iterator[Finding]:
    """What is wrong with the Compose files: they do not parse, or something floats."""
    try:
        services = config(EXAMPLE, "compose.yaml", "compose.demo.yaml")["services"]
    except subprocess.CalledProcessError as error:
        yield Finding("compose", error.stderr.strip())
        return
    for name, service in services.items():
        tag = service["image"].rpartition(":")[2]
        if tag in ("latest", service["image"]):
            yield Finding(f"compose: {name}", f"the image {service['image']} is not pinned")
        for mount in service.get("volumes", []):
            if mount["type"] == "bind" and not Path(mount["source"]).exists():
                yield Finding(f"compose: {name}", f"{mount['source']} does not exist")
