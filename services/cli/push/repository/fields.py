"""Every field of a configuration, and what becomes of it: honoured, or ignored and why. None is dropped in silence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MOST_VALUE_CHARACTERS = 60
_INDEX = re.compile(r'\["[^"]*"\]|\[\d+\]')

REASONS: dict[str, str] = {
    "platform": "the artefact itself says what it is",
    "backend": "the artefact itself says what it is",
    "runtime": "the runtime goes with the artefact's format",
    "dynamic_batching.preferred_batch_size": "a batch is as large as the earliest objective in it allows",
    "dynamic_batching.max_queue_delay_microseconds": "an idle lane starts at once; batches grow by themselves while it is busy",
    "dynamic_batching.preserve_ordering": "answers leave as they are ready; those of one id on one stream in order",
    "dynamic_batching.default_priority_level": "without priority_levels, requests that name no priority go last",
    "dynamic_batching.default_queue_policy.timeout_action": "what is late is dropped with DEADLINE_EXCEEDED, never put last",
    "dynamic_batching.default_queue_policy.allow_timeout_override": "every caller may ask for less with `timeout`, none for more",
    "dynamic_batching.priority_queue_policy": "one queue policy holds for all priorities",
    "sequence_batching": "sequences are not served: send the state as an input and take it from an output",
    "instance_group": "which device a replica runs on is the scheduler's to say",
    "instance_group.count": "one replica runs many requests at once, slice by slice; `--replicas` asks for copies on other devices",
    "instance_group.gpus": "one device is what every replica has",
    "instance_group.rate_limiter": "device time is shared by reservations",
    "optimization": "runtimes choose their optimisations themselves",
    "optimization.priority": "tenants' weights and requests' priorities order the work",
    "optimization.cuda": "graphs are captured where they help",
    "input.format": "the order of an image's axes is between model and caller",
    "input.reshape": "callers send the shape that the artefact itself has",
    "input.is_shape_tensor": "TensorRT's alone",
    "input.is_non_linear_format_io": "TensorRT's alone",
    "input.allow_ragged_batch": "only requests of equal shapes share a batch",
    "output.reshape": "callers get the shape that the artefact itself has",
    "output.is_shape_tensor": "TensorRT's alone",
    "output.is_non_linear_format_io": "TensorRT's alone",
    "batch_input": "only requests of equal shapes share a batch, so that no such input is needed",
    "batch_output": "only requests of equal shapes share a batch, so that no such output is needed",
    "cc_model_filenames": "one artefact serves every device",
    "metric_tags": "metrics bear tenant, model and version",
    "parameters": "an option of Triton's backend",
    "model_warmup": "one request of one row warms up; batches of 1, 2, 4 … rows are measured after it",
    "model_operations": "custom operators run code from outside the artefact: they are never loaded",
    "model_transaction_policy": "every request has one answer",
    "model_repository_agents": "agents run code from outside the artefact: they are never loaded",
    "response_cache": "answers are not kept",
    "model_metrics": "buckets are the same for every model",
}
"""Why a field that is not honoured is not, by its path without indices; what lies within it has the same reason, unless it has
one of its own."""
NO_REASON = "nothing here corresponds to it"


@dataclass(frozen=True)
class Entry:
    """One field that the file sets: its path, its value as text, and what became of it."""

    path: str
    value: str
    told: str


@dataclass
class Fields:
    """The fields of one configuration. What is not said to be honoured is ignored, with the reason that the table has."""

    message: Any
    _honoured: dict[str, str] = field(default_factory=dict)
    _ignored: dict[str, str] = field(default_factory=dict)

    def honour(self, path: str, how: str) -> None:
        """The field at this path, with all that lies in it, is honoured."""
        self._honoured[path] = how

    def ignore(self, path: str, why: str) -> None:
        """The field at this path is ignored for a reason of its own."""
        self._ignored[path] = why

    @property
    def honoured(self) -> list[Entry]:
        """What is honoured, in the file's order by field number."""
        found = ((path, value, _covering(path, self._honoured)) for path, value in leaves(self.message))
        return [Entry(path, value, self._honoured[by]) for path, value, by in found if by is not None]

    @property
    def ignored(self) -> list[Entry]:
        """What is not."""
        return [
            Entry(path, value, self._reason(path))
            for path, value in leaves(self.message)
            if _covering(path, self._honoured) is None
        ]

    def _reason(self, path: str) -> str:
        own = _covering(path, self._ignored)
        if own is not None:
            return self._ignored[own]
        found = _covering(_INDEX.sub("", path), REASONS)
        return NO_REASON if found is None else REASONS[found]


def leaves(message: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, value as text) of every field that is set, down to its scalars: "input[0].dims" is one, a list of numbers.

    A block that is set and empty is a leaf with the value "{}".
    """
    for descriptor, value in message.ListFields():
        at = f"{path}.{descriptor.name}" if path else descriptor.name
        if descriptor.message_type is None:
            yield at, _text(descriptor, value)
        elif descriptor.message_type.GetOptions().map_entry:
            for key in sorted(value):
                yield from _inside(value[key], named(at, key), descriptor.message_type.fields_by_name["value"])
        elif descriptor.is_repeated:
            for index, each in enumerate(value):
                yield from _inside(each, f"{at}[{index}]", descriptor)
        else:
            yield from _inside(value, at, descriptor)


def named(path: str, key: object) -> str:
    """The path of a map's entry: parameters["threads"]."""
    text = "".join(each if each.isprintable() and each != '"' else "\ufffd" for each in str(key))
    return f'{path}["{text[:MOST_VALUE_CHARACTERS]}"]'


def _inside(value: Any, path: str, descriptor: Any) -> Iterator[tuple[str, str]]:
    if descriptor.message_type is None:
        yield path, _cut(str(value))
        return
    empty = True
    for found in leaves(value, path):
        empty = False
        yield found
    if empty:
        yield path, "{}"


def _text(descriptor: Any, value: Any) -> str:
    names = descriptor.enum_type.values_by_number if descriptor.enum_type is not None else None

    def one(each: Any) -> str:
        if names is not None:
            return names[each].name if each in names else str(each)
        if isinstance(each, bool):
            return str(each).lower()
        return f'"{each}"' if isinstance(each, str) else str(each)

    return _cut(f"[{', '.join(map(one, value))}]" if descriptor.is_repeated else one(value))


def _cut(text: str) -> str:
    # A terminal must not be told what to do by a file.
    whole = "".join(each if each.isprintable() else "\ufffd" for each in " ".join(text.split()))
    return whole if len(whole) <= MOST_VALUE_CHARACTERS else whole[: MOST_VALUE_CHARACTERS - 1] + "…"


def _covering(path: str, among: dict[str, str]) -> str | None:
    """The longest of these paths that is the path, or that the path lies in."""
    while path:
        if path in among:
            return path
        cut = max(path.rfind("."), path.rfind("["))
        path = path[:cut] if cut > 0 else ""
    return None
