"""The chart, rendered and linted without a cluster for each set of values in its folder `ci`."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent.parent / "helm" / "apportion"
RELEASE, NAMESPACE = "apportion", "serving"
KUBERNETES = ("1.35.0", "1.36.0", "1.37.0")
"""The versions that the chart is checked for."""
_WARNING = 2

Manifest = dict[str, Any]


@contextmanager
def without_links() -> Iterator[None]:
    """Helm tells on standard error of every link that it follows; everything else it says there is passed on."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines():
                if "symbolic link" not in line:
                    print(line, file=sys.stderr)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong. where: file, or object; what: what it is."""

    where: str
    what: str


def sets() -> dict[str, Mapping[str, Any]]:
    """Each set of values by its name."""
    return {path.stem: yaml.safe_load(path.read_text()) or {} for path in sorted((CHART / "ci").glob("*.yaml"))}


def rendered(values: Mapping[str, Any], *, upgrade: bool = False) -> list[Manifest]:
    """The chart's objects for these values. Raises what the chart says where they are refused."""
    from helm_python.chart import Chart
    from helm_python.logging import enable_logging

    # It tells of every link that it follows.
    enable_logging(logging.WARNING)
    with without_links():
        files = Chart.load(CHART).render(
            dict(values), name=RELEASE, namespace=NAMESPACE, is_install=not upgrade, is_upgrade=upgrade
        )
    texts = [text for path, text in sorted(files.items()) if not path.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def refusal(values: Mapping[str, Any]) -> str | None:
    """What the chart says where it refuses these values; None: it takes them."""
    from helm_python.chart import Chart
    from helm_python.errors import HelmError

    try:
        Chart.load(CHART).validate_schema(dict(values))
        rendered(values)
    except HelmError as error:
        return str(error)
    return None


def linted(name: str, values: Mapping[str, Any]) -> Iterator[Finding]:
    """What Helm's own linter has to say, for each version of Kubernetes, warnings included."""
    from helm_python.chart import lint

    for version in KUBERNETES:
        with without_links():
            report = lint(CHART, dict(values), strict=True, namespace=NAMESPACE, kube_version=f"v{version}")
        for message in report["messages"]:
            if message["severity"] >= _WARNING:
                yield Finding(f"chart, {name}, Kubernetes {version}: {message['path']}", message["error"])
        for error in report["errors"]:
            yield Finding(f"chart, {name}, Kubernetes {version}", error)


def named(manifest: Manifest) -> str:
    """What an object is called in messages."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"
