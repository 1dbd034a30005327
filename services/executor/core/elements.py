"""Elements of BYTES: whether each is as long as it says, no longer than it may be, and text where the model takes text."""

from __future__ import annotations

from collections.abc import Iterator

from gpu_sharing.units import Bytes
from services.executor.core.heads import Invalid, Limits, PlannedInput
from services.executor.core.typed import Values

TEXT_AT_ONCE = 1 << 20
"""Bytes of text that are checked before others get a turn: about a millisecond."""


def walk_elements(planned: PlannedInput, content: bytes | memoryview, every: int) -> Iterator[None]:
    """Checks a raw content of BYTES, stopping after each `every` elements, or TEXT_AT_ONCE bytes of text, so that others get
    a turn. Raises Invalid."""
    field, end, at, text_ends = f"raw_input_contents of {planned.field}", len(content), 0, TEXT_AT_ONCE
    if planned.elements * 4 > end:
        raise Invalid(field, f"{end} bytes cannot hold {planned.elements} elements of BYTES, each with a 4-byte length")
    for element in range(planned.elements):
        if end - at < 4:
            raise Invalid(field, f"ends inside the length of element {element} of {planned.elements}")
        length = int.from_bytes(content[at : at + 4], "little")
        at += 4 + length
        if length > planned.most_bytes:
            raise _too_long(field, element, length, planned.most_bytes)
        if at > end:
            left = end - at + length
            raise Invalid(field, f"element {element} claims {length} bytes where {left} are left")
        if planned.utf8:
            _check_text(field, element, content[at - length : at])
        if element % every == every - 1 or (planned.utf8 and at >= text_ends):
            text_ends = at + TEXT_AT_ONCE
            yield
    if at != end:
        raise Invalid(field, f"{end - at} bytes are left over behind {planned.elements} elements")


def check_values(field: str, values: Values, limits: Limits) -> None:
    """Checks typed contents of BYTES. Raises Invalid."""
    for element, value in enumerate(values):
        if len(value) > limits.element_bytes:
            raise _too_long(field, element, len(value), limits.element_bytes)
        if limits.utf8:
            _check_text(field, element, value)


def _too_long(field: str, element: int, length: Bytes, most_bytes: Bytes) -> Invalid:
    """The refusal of a string that is longer than the operator allows."""
    return Invalid(field, f"element {element} has {length} bytes, more than {most_bytes}", limit=most_bytes)


def _check_text(field: str, element: int, value: bytes | memoryview) -> None:
    """Raises Invalid unless an element of BYTES is UTF-8."""
    try:
        str(value, "utf-8")
    except UnicodeDecodeError as wrong:
        raise Invalid(
            field,
            f"element {element} is not UTF-8 (byte {wrong.start}: {wrong.reason}), and the model takes text; "
            "send other bytes as UINT8, or as base64",
            element=element,
            byte=wrong.start,
        ) from None
