"""What happens to the objectives that a model is judged by."""

from __future__ import annotations

from dataclasses import replace

from services.common.errors import Reason, Refusal, invalid
from services.registry.core.records import Model, NamedSlo

MOST_SLOS = 16
"""A frontend counts each request against each of them."""


def with_slo(model: Model, slo: NamedSlo) -> Model:
    """The model with this objective in the place of the one of its name, if there is one."""
    others = [held for held in model.slos if held.name != slo.name]
    if len(others) >= MOST_SLOS:
        message = f"{model.tenant}/{model.name} has {len(others)} of at most {MOST_SLOS}; remove one first"
        raise invalid("slo.name", message, limit=MOST_SLOS)
    return replace(model, slos=tuple(sorted((*others, slo), key=lambda held: held.name)))


def without_slo(model: Model, name: str) -> Model:
    """The model without it; SLO_NOT_FOUND where it has none of this name."""
    kept = tuple(held for held in model.slos if held.name != name)
    if len(kept) == len(model.slos):
        held = ", ".join(each.name for each in model.slos) or "none"
        message = f"name: {model.tenant}/{model.name} has no objective {name!r} (it has {held})"
        raise Refusal(Reason.SLO_NOT_FOUND, message, field="name")
    return replace(model, slos=kept)
