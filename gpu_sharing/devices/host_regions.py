"""Shared memory of the processor in place of a device's: the way of regions where there is no GPU, for tests and benches of it.

A handle is the name of a file below /dev/shm, filled up with zeros. Nothing is mapped: a file that is cut short by its owner is a
refusal, where a mapping would end the worker.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import numpy as np

from gpu_sharing.devices.regions import HANDLE_BYTES, Opened, RegionRefused, absent
from gpu_sharing.units import Bytes

ROOT = Path("/dev/shm")
_NAME = re.compile(rb"([A-Za-z0-9_-]{1,63})\0*")


def handle_of(name: str) -> bytes:
    """The handle of the file of that name. ValueError where it is too long."""
    handle = name.encode().ljust(HANDLE_BYTES, b"\0")
    if len(handle) != HANDLE_BYTES or handle[-1]:
        raise ValueError(f"name: {name!r} is longer than {HANDLE_BYTES - 1} bytes")
    return handle


class HostRegions:
    """Files of this process' own user. See `DeviceRegions`."""

    def __init__(self, root: Path = ROOT) -> None:
        """root: where names are looked for."""
        self._root = root

    def open(self, handle: bytes) -> Opened:
        """See `DeviceRegions`."""
        match = _NAME.fullmatch(handle)
        if match is None or len(handle) != HANDLE_BYTES:
            raise absent()
        try:
            file = os.open(self._root / match[1].decode(), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            raise absent() from None
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            os.close(file)
            raise absent()
        return Opened((status.st_dev, status.st_ino), file, status.st_size)

    def close(self, opened: Opened) -> None:
        """See `DeviceRegions`."""
        os.close(opened.where)

    def read(self, opened: Opened, offset: Bytes, into: np.ndarray) -> None:
        """See `DeviceRegions`."""
        if os.preadv(opened.where, [into.data], offset) != into.nbytes:
            raise RegionRefused("FIELD_INVALID", "the memory has become too short for its region")

    def write(self, opened: Opened, offset: Bytes, content: np.ndarray) -> None:
        """See `DeviceRegions`."""
        if os.fstat(opened.where).st_size < offset + content.nbytes:
            raise RegionRefused("FIELD_INVALID", "the memory has become too short for its region")
        os.pwrite(opened.where, content.data, offset)

    def lent(self, opened: Opened, offset: Bytes, length_bytes: Bytes) -> object | None:  # noqa: ARG002
        """See `DeviceRegions`: a processor's models take arrays."""
        return None

    def stop(self) -> None:
        """Nothing is held but files."""
