"""Recording and alert rules: by promtool where there is one, and that each alert has what it must have."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.lint.chart import Finding

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "observability" / "prometheus"
CHECKS = (("check", "rules", "rules.yaml"), ("test", "rules", "rules.test.yaml"))
_HEADING = re.compile(r"^##+ +(.+?) *$", re.MULTILINE)


def promtool() -> str | None:
    """Where promtool is: $PROMTOOL, else on the path or in this environment; None: it is not installed."""
    return os.environ.get("PROMTOOL") or tool_of_prometheus("promtool")


def tool_of_prometheus(name: str) -> str | None:
    """Where a program of Prometheus is: on the path, else in this environment, where `prometheus.sh` puts it."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def rules() -> list[dict[str, Any]]:
    """All rules."""
    return [rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]]


def checked() -> Iterator[Finding]:
    """What promtool finds, and alerts without a severity, a summary or a runbook that exists."""
    tool = promtool()
    for arguments in CHECKS if tool else ():
        done = subprocess.run([tool or "", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=120)
        if done.returncode:
            yield Finding(f"promtool {' '.join(arguments)}", f"{done.stdout}{done.stderr}".strip())
    for rule in rules():
        if "alert" in rule:
            yield from _alert(rule)


def _alert(rule: dict[str, Any]) -> Iterator[Finding]:
    name, notes = rule["alert"], rule.get("annotations", {})
    if rule.get("labels", {}).get("severity") not in ("page", "ticket"):
        yield Finding(name, "severity is neither page nor ticket")
    if not notes.get("summary"):
        yield Finding(name, "there is no summary")
    path, _, anchor = notes.get("runbook", "").partition("#")
    target = ROOT / path
    headings = _HEADING.findall(target.read_text()) if path and target.is_file() else []
    if anchor not in {heading.lower().replace(" ", "-") for heading in headings}:
        yield Finding(name, f"its runbook {notes.get('runbook')!r} does not exist")
