"""What the values of a request may be. Each function returns the value or raises a Refusal that names the field."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TypeVar

from services.common.errors import Reason, Refusal, invalid
from services.registry.core.records import Slo

MOST_MILLIDEVICES = 64_000
MOST_WEIGHT = 10_000
MOST_OBJECTIVE_US = 86_400_000_000
MOST_WINDOW_S = 366 * 86_400
MOST_REPLICAS = 64
MOST_BATCH_ROWS = 4096
MOST_AXIS = 63
MOST_WARMUP_BYTES = 1 << 20
MOST_WARMUP_REQUESTS = 8
MOST_KEYS = 100
MOST_LIFETIME_S = 3_653 * 86_400
MOST_OVERLAP_S = 30 * 86_400
MOST_GRANTS = 1000
MOST_DECLARED = 1024
MOST_WAITING = 1 << 20
MOST_LABELS = 65_536
MOST_LABEL_CHARACTERS = 1024
DATATYPES = (
    *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    *("FP16", "BF16", "FP32", "FP64", "BYTES"),
)
WHOLE_PPM = 1_000_000
# A model travels in one message; the rest up to MOST_INSPECTED_BYTES is kept free for what inspection finds.
MOST_MODEL_BYTES = 8 << 20
MOST_INSPECTED_BYTES = 16 << 20

Choice = TypeVar("Choice", bound=IntEnum)


def approved(digest: str, allowed: Collection[str]) -> str:
    """The digest of Python code that an operator has approved; all other code is refused. Raises ARTEFACT_REFUSED."""
    if digest not in allowed:
        raise Refusal(
            Reason.ARTEFACT_REFUSED,
            f"digest: {digest} is Python code that no operator of this registry has approved (python_artefacts); "
            "export the model to ONNX or by torch.export",
            field="digest",
        )
    return digest


def within(field: str, value: int, least: int, most: int) -> int:
    """`value` where least ≤ value ≤ most."""
    if not least <= value <= most:
        raise invalid(field, f"{value} must be {least} to {most}", least=least, most=most)
    return value


def reservation(millidevices: int) -> int:
    """0 to 64000 millidevices."""
    return within("reservation.millidevices", millidevices, 0, MOST_MILLIDEVICES)


def weight(value: int) -> int:
    """1 to 10000; 0 stands for 1."""
    return within("weight", value or 1, 1, MOST_WEIGHT)


def replicas(value: int) -> int:
    """1 to 64; 0 stands for 1."""
    return within("replicas", value or 1, 1, MOST_REPLICAS)


def choice(field: str, kind: type[Choice], value: int) -> Choice | None:
    """The named value; None for 0 (not said)."""
    if value == 0:
        return None
    if value not in {int(member) for member in kind}:
        raise invalid(field, f"{value} is none of {', '.join(f'{m.name} ({int(m)})' for m in kind)}")
    return kind(value)


def slo(objective_us: int | None, ratio_ppm: int, window_s: int) -> Slo:
    """The objective with its defaults filled in: 0 ppm stands for 990000, 0 s for 30 days."""
    if objective_us is not None:
        within("slo.objective_us", objective_us, 1, MOST_OBJECTIVE_US)
    default = Slo()
    return Slo(
        objective_us,
        within("slo.ratio_ppm", ratio_ppm or default.ratio_ppm, 1, WHOLE_PPM),
        within("slo.window_s", window_s or default.window_s, 1, MOST_WINDOW_S),
    )


def traffic(splits: Sequence[tuple[int, int]], versions: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Splits (version, ppm) by version: each names one of `versions`, none twice, and the parts add up to 1000000."""
    known = set(versions)
    for number, _ in splits:
        if number not in known:
            held = ", ".join(str(version) for version in sorted(known)) or "none"
            raise invalid("traffic.version", f"{number} is no version of this model (it has {held})")
    if len({number for number, _ in splits}) != len(splits):
        raise invalid("traffic.version", "a version is named twice")
    total = sum(ppm for _, ppm in splits)
    if total != WHOLE_PPM:
        raise invalid("traffic.ppm", f"the parts add up to {total}; they must add up to {WHOLE_PPM}", total=total)
    return tuple(sorted(splits))


def config(
    max_batch_size: int | None,
    batch_axes: Mapping[str, int],
    warmup: Sequence[tuple[str, Sequence[int], int]],
) -> None:
    """Checks a version's configuration. warmup: (name, shape, bytes of data) of each tensor."""
    if max_batch_size is not None:
        within("config.max_batch_size", max_batch_size, 0, MOST_BATCH_ROWS)
    for tensor, axis in batch_axes.items():
        within(f"config.batch_axes[{tensor[:80]}]", axis, -1, MOST_AXIS)
    for tensor, shape, _ in warmup:
        if not tensor:
            raise invalid("config.warmup.name", "must not be empty")
        if any(extent < 0 for extent in shape):
            raise invalid("config.warmup.shape", f"{tensor[:80]}: an extent must be 0 or more")
    named = [tensor for tensor, _, _ in warmup]
    most = max(map(named.count, named), default=0)
    if most > MOST_WARMUP_REQUESTS:
        raise invalid(
            "config.warmup.name", f"a tensor is named {most} times; at most {MOST_WARMUP_REQUESTS} are allowed"
        )
    within("config.warmup.data", sum(size for _, _, size in warmup), 0, MOST_WARMUP_BYTES)


def declared(tensors: Sequence[tuple[str, str, Sequence[str]]]) -> None:
    """Checks what a push says its tensors are: (name, data type, class names) of each input or output."""
    within("config.declared", len(tensors), 0, MOST_DECLARED)
    for name, datatype, labels in tensors:
        if not name:
            raise invalid("config.declared.name", "must not be empty")
        if datatype not in DATATYPES:
            raise invalid(
                "config.declared.datatype", f"{name[:80]}: {datatype[:80]!r} is none of {', '.join(DATATYPES)}"
            )
        within("config.declared.labels", len(labels), 0, MOST_LABELS)
        within("config.declared.labels", max(map(len, labels), default=0), 0, MOST_LABEL_CHARACTERS)
    if len({name for name, _, _ in tensors}) != len(tensors):
        raise invalid("config.declared.name", "a tensor is named twice")


def queue(max_waiting: int, deadline_us: int, priority_levels: int, default_priority: int) -> None:
    """Checks how requests are to wait; 0: not said."""
    within("config.queue.max_waiting", max_waiting, 0, MOST_WAITING)
    within("config.queue.deadline_us", deadline_us, 0, MOST_OBJECTIVE_US)
    within("config.queue.default_priority", default_priority, 0, priority_levels)


def artefact_size(size_bytes: int, most_bytes: int) -> int:
    """1 to `most_bytes` bytes; ARTEFACT_TOO_LARGE above."""
    if size_bytes < 1:
        raise invalid("header.size_bytes", f"{size_bytes} must be 1 or more")
    if size_bytes > most_bytes:
        raise Refusal(
            Reason.ARTEFACT_TOO_LARGE,
            f"header.size_bytes: {size_bytes} bytes are more than the limit of {most_bytes}",
            field="header.size_bytes",
            facts={"size_bytes": size_bytes, "limit_bytes": most_bytes},
        )
    return size_bytes


def model_size(size_bytes: int, most_bytes: int) -> None:
    """Refuses a model whose description has outgrown one message."""
    if size_bytes > most_bytes:
        raise Refusal(
            Reason.MESSAGE_TOO_LARGE,
            f"key: the model's description would take {size_bytes} bytes of at most {most_bytes}; remove old versions",
            field="key",
            facts={"size_bytes": size_bytes, "limit_bytes": most_bytes},
        )
