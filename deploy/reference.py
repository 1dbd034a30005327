"""`python -m deploy.reference`: writes docs/reference/settings.md from the settings classes; `--check` compares."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from deploy.schema import settings_class
from services.common.settings import ServiceSettings

TARGET = Path(__file__).parent.parent / "docs" / "reference" / "settings.md"
SERVICES = ("frontend", "registry", "scheduler", "executor", "tracestore")
HEAD = """# Settings

Every setting has a flag (`apportion SERVICE --flag`), a variable and a default. A flag wins over the service's variable
(`APPORTION_FRONTEND_LOG_LEVEL`), that one over the one that all services share (`APPORTION_LOG_LEVEL`). Those that every service has
are at the end; for the chart's `settings:` the names are those of the variables without their prefix, in small letters.

This page is made from the code by `python -m deploy.reference`.
"""
DEFAULTS = {("executor", "executor_id"): "executor-HOSTNAME"}
"""Defaults that depend on the machine."""


def table(service: str, names: list[str], settings: type[ServiceSettings], prefix: str) -> Iterator[str]:
    """The lines of a table."""
    yield "| flag, variable | is | default | |"
    yield "| --- | --- | --- | --- |"
    for name in names:
        field = settings.model_fields[name]
        text = " ".join((field.description or "").split()).replace("|", "\\|").replace("<", "&lt;")
        flag = f"`--{name.replace('_', '-')}`<br>`{prefix}{name.upper()}`"
        yield f"| {flag} | {kind(field)} | {default(service, name, field)} | {text} |"


def kind(field: FieldInfo) -> str:
    """What a setting is, with its limits."""
    annotation = field.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    words = {bool: "true or false", int: "whole number", float: "number", Path: "path", str: "text"}
    word = words.get(typing.get_origin(annotation) or annotation, "list (JSON)" if typing.get_origin(annotation) is tuple else "text")  # type: ignore[arg-type]  # fmt: skip
    limits = [(name, getattr(each, name)) for each in field.metadata for name in ("gt", "ge", "lt", "le") if hasattr(each, name)]  # fmt: skip
    signs = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    return ", ".join([word, *(f"{signs[name]} {_number(limit)}" for name, limit in limits)])


def default(service: str, name: str, field: FieldInfo) -> str:
    """A setting's default as it is written."""
    value = DEFAULTS.get((service, name)) or field.get_default(call_default_factory=False)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{each}"' for each in value) + "]`"
    return f"`{_number(value) if isinstance(value, int | float) else value}`" if value != "" else "empty"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def text() -> str:
    """The page."""
    lines = [HEAD]
    shared = list(ServiceSettings.model_fields)
    for service in SERVICES:
        settings = settings_class(service)
        prefix = str(settings.model_config.get("env_prefix", ""))
        own = [name for name in settings.model_fields if name not in shared or _differs(settings, name)]
        lines += [f"## {service}\n", *table(service, own, settings, prefix), ""]
    lines += ["## every service\n", *table("", shared, ServiceSettings, "APPORTION_"), ""]
    return "\n".join(lines)


def _differs(settings: type[ServiceSettings], name: str) -> bool:
    return settings.model_fields[name].default != ServiceSettings.model_fields[name].default


def main() -> int:
    """Writes the page, or compares it; returns the exit status."""
    if "--check" not in sys.argv[1:]:
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        TARGET.write_text(text())
        return 0
    if TARGET.exists() and TARGET.read_text() == text():
        return 0
    print("docs/reference/settings.md is stale: run `python -m deploy.reference`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
