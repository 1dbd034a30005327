"""What a push took from a configuration, and what it did not."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from services.cli import show
from services.cli.push.repository.fields import Entry
from services.cli.push.repository.plan import Plan


def print_report(plan: Plan) -> None:
    """Tables of what is honoured and what is ignored, each with what it means."""
    _print("taken from config.pbtxt", plan.honoured)
    _print("ignored", plan.ignored)
    for note in plan.notes:
        show.out.print(f"note: {plain(note)}")


def as_json(plan: Plan) -> dict[str, Any]:
    """The same, for programs."""
    return {
        "taken": [{"field": each.path, "value": each.value, "how": each.told} for each in plan.honoured],
        "ignored": [{"field": each.path, "value": each.value, "why": each.told} for each in plan.ignored],
        "notes": plan.notes,
    }


def after_inspection(plan: Plan, signature: Any) -> list[str]:
    """What only the loaded artefact could tell, where it differs from what the configuration hopes for."""
    found = {tensor.name: tensor for tensor in signature.inputs}
    told = [
        f"input {each.name!r}: optional in config.pbtxt, and the artefact cannot do without it"
        for each in plan.config.declared.inputs
        if each.optional and each.name in found and not found[each.name].optional
    ]
    declared = {tensor.name for tensor in plan.config.declared.outputs}
    if declared:
        told += [
            f"output {each.name!r}: not in config.pbtxt, and served all the same"
            for each in signature.outputs
            if each.name not in declared
        ]
    wanted = plan.config.max_batch_size
    if wanted and not signature.max_batch_size:
        told.append(f"max_batch_size {wanted}: the artefact's rows do not stand apart, so requests run one at a time")
    return told


def _print(title: str, entries: list[Entry]) -> None:
    if entries:
        rows = [[plain(each.path), plain(each.value), f"[dim]{plain(each.told)}[/]"] for each in entries]
        show.print_table(show.table(title, ["field", "value", ""], rows))


def plain(text: str) -> str:
    """Text that comes from a file, as a terminal may have it."""
    return escape(text)
