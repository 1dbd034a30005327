"""What went wrong inside a tenant's model, in words for that tenant."""

from __future__ import annotations

from msgspec.structs import replace

from gpu_sharing.worker.messages import Event, Failed
from gpu_sharing.worker.regions import RegionLost

MODEL_FAILED = "MODEL_FAILED"
OUT_OF_MEMORY = "OUT_OF_MEMORY"

_MESSAGE_CHARACTERS = 300

_OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",  # torch
    "not enough memory",  # torch
    "out of memory",
    "Failed to allocate memory",  # onnxruntime
    "bad allocation",
    "bad_alloc",
)
"""What libraries say when the system has given them no memory; they raise no MemoryError."""


def reason_of(error: BaseException) -> str:
    """OUT_OF_MEMORY where memory was what lacked; of a region that is gone its own; else MODEL_FAILED."""
    if isinstance(error, RegionLost):
        return error.reason
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    words = str(error)
    return OUT_OF_MEMORY if any(each in words for each in _OUT_OF_MEMORY_WORDS) else MODEL_FAILED


def describe(label: str, error: BaseException) -> str:
    """One line for callers: which model, what kind of error, and its own words, cut short."""
    words = " ".join(str(error).split())[:_MESSAGE_CHARACTERS]
    return f"{label}: {type(error).__name__}: {words}" if words else f"{label}: {type(error).__name__}"


def because(event: Event, reason: str) -> Event:
    """The same event, a failed model's failure given another reason."""
    if isinstance(event, Failed) and event.reason == MODEL_FAILED:
        return replace(event, reason=reason)
    return event
