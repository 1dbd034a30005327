"""What the driver's errors mean for whoever called it. PURE."""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType


class Fault(Enum):
    """What follows from an error."""

    ABSENT = "there is no device to use"
    UNSUPPORTED = "this driver or device cannot do that"
    OUT_OF_MEMORY = "out of memory"
    NOT_READY = "the work has not ended yet"
    MISUSE = "the call was wrong"
    CAPTURE = "this cannot be part of a graph"
    MPS = "the MPS daemon does not serve this process"
    LOST = "the context is broken: its process must end"


_FAULTS: dict[Fault, tuple[str, ...]] = {
    Fault.ABSENT: (
        "NO_DEVICE", "INVALID_DEVICE", "STUB_LIBRARY", "DEVICE_UNAVAILABLE", "DEVICE_NOT_LICENSED", "SYSTEM_NOT_READY",
        "OPERATING_SYSTEM",
    ),
    Fault.UNSUPPORTED: (
        "NOT_SUPPORTED", "NOT_PERMITTED", "SYSTEM_DRIVER_MISMATCH", "COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "CALL_REQUIRES_NEWER_DRIVER", "INSUFFICIENT_LOADER_VERSION", "UNSUPPORTED_LIMIT", "NOT_FOUND",
        "INVALID_RESOURCE_TYPE", "INVALID_RESOURCE_CONFIGURATION", "UNSUPPORTED_EXEC_AFFINITY", "PEER_ACCESS_UNSUPPORTED",
    ),
    Fault.OUT_OF_MEMORY: ("OUT_OF_MEMORY", "LAUNCH_OUT_OF_RESOURCES"),
    Fault.NOT_READY: ("NOT_READY",),
    Fault.MISUSE: (
        "INVALID_VALUE", "INVALID_CONTEXT", "INVALID_HANDLE", "NOT_INITIALIZED", "ILLEGAL_STATE", "ALREADY_MAPPED",
        "NOT_MAPPED", "MAP_FAILED", "UNMAP_FAILED", "HOST_MEMORY_ALREADY_REGISTERED", "HOST_MEMORY_NOT_REGISTERED",
        "STREAM_DETACHED", "CONTEXT_IS_DESTROYED", "PRIMARY_CONTEXT_ACTIVE",
    ),
    Fault.CAPTURE: (
        "STREAM_CAPTURE_UNSUPPORTED", "STREAM_CAPTURE_INVALIDATED", "STREAM_CAPTURE_MERGE", "STREAM_CAPTURE_UNMATCHED",
        "STREAM_CAPTURE_UNJOINED", "STREAM_CAPTURE_ISOLATION", "STREAM_CAPTURE_IMPLICIT", "CAPTURED_EVENT",
        "STREAM_CAPTURE_WRONG_THREAD", "GRAPH_EXEC_UPDATE_FAILURE",
    ),
    Fault.MPS: (
        "MPS_CONNECTION_FAILED", "MPS_RPC_FAILURE", "MPS_SERVER_NOT_READY", "MPS_MAX_CLIENTS_REACHED",
        "MPS_MAX_CONNECTIONS_REACHED",
    ),
    Fault.LOST: (
        "ILLEGAL_ADDRESS", "LAUNCH_TIMEOUT", "LAUNCH_FAILED", "ASSERT", "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION",
        "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC", "ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE",
        "CONTAINED", "DEINITIALIZED", "TIMEOUT", "EXTERNAL_DEVICE", "MPS_CLIENT_TERMINATED", "UNKNOWN",
    ),
}  # fmt: skip

FAULTS = MappingProxyType({f"CUDA_ERROR_{name}": fault for fault, names in _FAULTS.items() for name in names})
"""By the driver's name. A name that is not here is LOST: nothing is known of what the context is worth after it."""

_LOST_WORDS = (
    "illegal memory access",
    "unspecified launch failure",
    "device-side assert",
    "misaligned address",
    "illegal instruction",
    "invalid program counter",
    "uncorrectable",
    "launch timed out",
    "hardware stack",
    "operation not supported on global/shared address space",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_EXECUTION_FAILED",
)
"""What libraries say where they raise errors of their own kinds."""


class CudaError(RuntimeError):
    """A call of the driver failed. call: its name. name: of the error. fault: what follows from it."""

    def __init__(self, call: str, name: str, number: int) -> None:
        self.call, self.name, self.number = call, name, number
        self.fault = FAULTS.get(name, Fault.LOST)
        super().__init__(f"{call}: {name} ({number}): {self.fault.value}")


def is_lost(error: BaseException) -> bool:
    """Whether the process can do nothing more on its device, whoever raised this."""
    if isinstance(error, CudaError):
        return error.fault is Fault.LOST
    words = str(error)
    return any(each in words for each in _LOST_WORDS)
