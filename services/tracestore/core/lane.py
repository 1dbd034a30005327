"""Who shared a request's lane: by name for operators, as "neighbour A" for its tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import services.common.attributes as names
from services.tracestore.core.spans import SpanView


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Others that had the lane while the request waited or ran. label: "neighbour A", or a model of the request's own tenant.

    names: "tenant/model" of the batches that were kept of it; empty where none is held.
    """

    label: str
    took_ns: int
    stretches: int
    names: tuple[str, ...] = ()


def neighbours(spans: Sequence[SpanView], linked: Sequence[SpanView] = ()) -> list[Neighbour]:
    """Who had the lane meanwhile, by time taken, from the events of a request's stages. linked: the batches they point to."""
    took: dict[str, list[tuple[int, int]]] = {}
    for span in spans:
        for event in span.events:
            label = event.attributes.get(names.TENANT_NEIGHBOUR) or event.attributes.get(names.MODEL_NAME)
            if event.name == names.EVENT_OTHERS and label is not None:
                took.setdefault(str(label), []).append((event.at_ns - _took_ns(event.attributes), event.at_ns))
    known = _known(spans, linked, took)
    found = [
        Neighbour(label, sum(end - start for start, end in stretches), len(stretches), tuple(known.get(label, ())))
        for label, stretches in took.items()
    ]
    return sorted(found, key=lambda each: (-each.took_ns, each.label))


def seen_by(tenant: str, spans: Sequence[SpanView]) -> list[SpanView]:
    """The spans as a tenant may see them: of others' nothing is left but when they ran."""
    return [span if _whose(span) in (None, tenant) else _nameless(span) for span in spans]


def owner(spans: Sequence[SpanView]) -> str | None:
    """Whose request a trace is of; None: it does not say, or it is of several tenants."""
    found = {str(span.attributes[names.TENANT_NAME]) for span in spans if names.TENANT_NAME in span.attributes}
    return found.pop() if len(found) == 1 else None


def _known(
    spans: Sequence[SpanView], linked: Sequence[SpanView], took: Mapping[str, Sequence[tuple[int, int]]]
) -> dict[str, list[str]]:
    """Names by label: a batch of another tenant is that neighbour's with whose stretches it lies together longest."""
    own = {_whose(span) for span in spans}
    found: dict[str, list[str]] = {}
    for batch in linked:
        if batch.name != names.SPAN_BATCH or _whose(batch) in own:
            continue
        overlaps = {
            label: sum(_overlap(batch, *stretch) for stretch in stretches)
            for label, stretches in took.items()
            if label.startswith("neighbour ")
        }
        label = max(sorted(overlaps), key=lambda each: overlaps[each], default=None)
        if label is not None and overlaps[label]:
            name = f"{_whose(batch)}/{batch.attributes.get(names.MODEL_NAME, '')}"
            if name not in found.setdefault(label, []):
                found[label].append(name)
    return found


def _nameless(span: SpanView) -> SpanView:
    kept = {key: value for key, value in span.attributes.items() if key in (names.LANE_ID, names.EXECUTOR_ID)}
    kept[names.TENANT_NEIGHBOUR] = "a neighbour"
    return replace(span, attributes=kept, events=(), links=(), error=None)


def _whose(span: SpanView) -> str | None:
    whose = span.attributes.get(names.TENANT_NAME)
    return None if whose is None else str(whose)


def _took_ns(attributes: Mapping[str, object]) -> int:
    took_us = attributes.get(names.EVENT_TOOK_US, 0)
    return int(took_us) * 1000 if isinstance(took_us, int | float) else 0


def _overlap(batch: SpanView, start_ns: int, end_ns: int) -> int:
    return max(0, min(batch.end_ns, end_ns) - max(batch.start_ns, start_ns))
