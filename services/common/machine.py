"""Which machine this is: whether two processes run on one kernel, in whatever containers."""

from __future__ import annotations

from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Of the running kernel, new with each boot and the same in all its containers; empty where the system has none."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
