"""Every name that appears in a trace is in one module."""

from __future__ import annotations

import ast
from pathlib import Path

from services.common import attributes

SERVICES = Path(attributes.__file__).parent.parent
ROOMS = ("common", "frontend", "executor", "tracestore", "cli")
"""Those that write or read spans. Elsewhere a field of a message may be called the same."""
OWN = ("slo.", "tenant.", "model.", "batch.")
THEIRS = ("service.", "rpc.", "error.", "client.")
NAMES = {
    value for name, value in vars(attributes).items() if name.isupper() and isinstance(value, str) and "." in value
}


def test_a_name_is_opentelemetrys_or_begins_with_one_of_our_four_words() -> None:
    assert {name for name in NAMES if not name.startswith((*OWN, *THEIRS))} == set()
    assert {"slo.violated", "tenant.name", "model.name", "batch.partition", "rpc.method"} <= NAMES


def test_no_two_names_are_equal() -> None:
    names = [
        value for name, value in vars(attributes).items() if name.isupper() and isinstance(value, str) and "." in value
    ]
    assert len(names) == len(set(names))


def test_nobody_else_spells_one() -> None:
    spelt = {
        (str(path.relative_to(SERVICES)), node.value)
        for room in ROOMS
        for path in (SERVICES / room).rglob("*.py")
        if path.name != "attributes.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in NAMES
    }
    assert spelt == set()


def test_a_stage_is_named_once_and_has_a_cause() -> None:
    assert len(set(attributes.STAGES)) == len(attributes.STAGES)
    assert len(set(attributes.CAUSES)) == len(attributes.CAUSES)
