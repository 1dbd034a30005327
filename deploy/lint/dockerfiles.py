"""Dockerfiles: hadolint's rules, and what this project asks of an image beyond them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from deploy.lint.chart import Finding
from deploy.lint.compose import program

FOLDER = Path(__file__).parent.parent / "images"
COMPILERS = re.compile(r"\b(gcc|g\+\+|clang|build-essential|cmake|make|cargo|nvcc)\b")

Instruction = tuple[str, str]


def files() -> list[Path]:
    """All of them."""
    return sorted(FOLDER.glob("*.Dockerfile"))


def instructions(path: Path) -> list[Instruction]:
    """The instructions of a file in their order, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1].strip()) for line in joined.splitlines()]


def stages(path: Path) -> list[list[Instruction]]:
    """The instructions by stage; those before the first FROM apart."""
    found: list[list[Instruction]] = []
    for instruction in instructions(path):
        if instruction[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def value(stage: list[Instruction], name: str) -> str | None:
    """The last instruction of this name in a stage."""
    return next((text for instruction, text in reversed(stage) if instruction == name), None)


def copied(stage: list[Instruction]) -> Iterator[str]:
    """What a stage copies from the project."""
    for name, text in stage:
        words = shlex.split(text)
        if name in ("COPY", "ADD") and not words[0].startswith("--from"):
            yield from (word for word in words[:-1] if not word.startswith("--"))


def checked() -> Iterator[Finding]:
    """What is wrong."""
    for path in files():
        done = subprocess.run(
            [program("hadolint"), "--no-color", str(path)], capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            yield Finding(path.name, f"{done.stdout}{done.stderr}".strip())
        yield from _image(path)


def _image(path: Path) -> Iterator[Finding]:
    found = stages(path)
    last = found[-1]
    if len(found) < 2:
        yield Finding(path.name, "there is one stage only: what builds is what ships")
    if (value(last, "USER") or "root").split(":")[0] in ("root", "0"):
        yield Finding(path.name, "it runs as root")
    for name in ("HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT"):
        if value(last, name) is None:
            yield Finding(path.name, f"there is no {name}")
    if not (value(last, "ENTRYPOINT") or "[").startswith("["):
        yield Finding(path.name, "the entry point is a shell's: signals would not reach the service")
    tools = {found for _, text in last for found in COMPILERS.findall(text)}
    if tools:
        yield Finding(path.name, f"the image that ships installs {', '.join(sorted(tools))}")
