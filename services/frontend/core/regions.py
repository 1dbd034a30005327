"""Regions of system shared memory, and what a tensor may ask of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from services.common.errors import Reason, Refusal, invalid

REGION, SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
"""The parameters of a tensor that lies in a region."""
LONGEST_NAME = 256
HANDLE_BYTES = 64
MOST_DEVICES = 1023
MOST_DEVICE_BYTES = 1 << 62
_KEY = re.compile(r"/?([A-Za-z0-9_+=@.-]{1,255})")


class Region(msgspec.Struct, frozen=True):
    """A region as its tenant registered it. key: as `shm_open` takes it. offset, byte_size: its part of that memory."""

    name: str
    key: str
    offset: int
    byte_size: int


class DeviceRegion(msgspec.Struct, frozen=True):
    """A region of a GPU's memory as its tenant registered it. handle: a cudaIpcMemHandle_t. device_id: as the caller counts."""

    name: str
    handle: bytes
    device_id: int
    byte_size: int


class Part(msgspec.Struct, frozen=True):
    """A tensor's part of a region. field: the request's field that names it."""

    field: str
    region: str
    byte_size: int
    offset: int


def file_name(key: str) -> str:
    """The name below /dev/shm that a key stands for. Raises Refusal for a key that could stand for anything else."""
    match = _KEY.fullmatch(key)
    if match is None or match[1] in (".", ".."):
        raise invalid("key", f"{key[:64]!r} is no name of shared memory: one name, letters, digits and _+=@.- alone")
    return match[1]


def check_name(name: str) -> str:
    """The region's name. Raises Refusal where it is empty or too long."""
    if not 0 < len(name.encode()) <= LONGEST_NAME:
        raise invalid("name", f"must have 1 to {LONGEST_NAME} bytes", limit=LONGEST_NAME)
    return name


def check_device_region(region: DeviceRegion) -> None:
    """Raises Refusal where what was registered can be no memory of a device, wherever that is."""
    check_name(region.name)
    if len(region.handle) != HANDLE_BYTES:
        raise invalid(
            "raw_handle",
            f"{len(region.handle)} bytes given; a cudaIpcMemHandle_t has {HANDLE_BYTES}",
            limit=HANDLE_BYTES,
        )
    if not 0 <= region.device_id <= MOST_DEVICES:
        raise invalid("device_id", f"must lie within 0 to {MOST_DEVICES}")
    if not 1 <= region.byte_size < MOST_DEVICE_BYTES:
        raise invalid("byte_size", f"must lie within 1 to {MOST_DEVICE_BYTES - 1}")


def check_extent(region: Region, file_bytes: int) -> None:
    """Raises Refusal unless the region lies within the memory that its key names."""
    if region.byte_size < 1:
        raise invalid("byte_size", "must be 1 or more")
    if region.offset + region.byte_size > file_bytes:
        raise invalid(
            "byte_size",
            f"{region.byte_size} bytes at {region.offset} reach beyond the {file_bytes} bytes of {region.key!r}",
            file_bytes=file_bytes,
        )


def check_part(part: Part, region: Region | DeviceRegion) -> None:
    """Raises Refusal unless the tensor's part lies within its region."""
    if part.offset + part.byte_size > region.byte_size:
        raise invalid(
            part.field,
            f"{part.byte_size} bytes at {part.offset} reach beyond the {region.byte_size} bytes of region "
            f"{region.name!r}",
            region_bytes=region.byte_size,
        )


def part_of(field: str, parameters: Mapping[str, tuple[str, object]]) -> Part | None:
    """The part that a tensor's parameters name; None: they name none. Raises Refusal where they make no sense.

    parameters: (member of InferParameter that is set, its value) by name.
    """
    named = parameters.get(REGION)
    if named is None:
        for other in (SIZE, OFFSET):
            if other in parameters:
                raise invalid(f'{field}.parameters["{other}"]', f"needs {REGION} beside it")
        return None
    name = named[1]
    if named[0] != "string_param" or not isinstance(name, str) or not name:
        raise invalid(f'{field}.parameters["{REGION}"]', "must be a region's name, as text")
    size, offset = _whole(field, SIZE, parameters), _whole(field, OFFSET, parameters)
    if not size:
        raise invalid(f'{field}.parameters["{SIZE}"]', "must be 1 or more")
    return Part(field, name, size, offset or 0)


def unknown(name: str, field: str) -> Refusal:
    """The refusal of a region that is not there, or is another tenant's: nobody can tell which."""
    return Refusal(
        Reason.REGION_NOT_FOUND,
        f"{field}: there is no region {name!r} of shared memory; register it with SystemSharedMemoryRegister or CudaSharedMemoryRegister",
        field=field,
    )


def _whole(field: str, name: str, parameters: Mapping[str, tuple[str, object]]) -> int | None:
    kind, value = parameters.get(name, ("", None))
    if value is None:
        return None
    if kind not in ("int64_param", "uint64_param") or not isinstance(value, int) or value < 0:
        raise invalid(f'{field}.parameters["{name}"]', "must be 0 or more, as int64 or uint64")
    return value
