"""Processor cores as a device: the embedded default."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gpu_sharing.partitioning.partitions import Partitions
from gpu_sharing.units import Bytes, ComputeUnits

_CGROUP_LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")


class CpuDevice:
    """The cores that this process may run on when it is made."""

    backend = "cpu"

    def __init__(self, reason: str, *, root: Path = Path("/")) -> None:
        """reason: why the processor serves. root: where /proc and /sys are found."""
        self.reason = reason
        self._units = tuple(sorted(os.sched_getaffinity(0)))
        self.device_kind = f"cpu:{_model_name(root)}"
        self.memory_bytes: Bytes = _memory_bytes(root)

    @property
    def compute_units(self) -> ComputeUnits:
        """Cores."""
        return len(self._units)

    def units(self) -> Sequence[int]:
        """The cores' numbers."""
        return self._units

    def fitted(self, partitions: Partitions) -> Partitions:
        """Cores come one by one: as they are."""
        return partitions

    def occupy(self, units: Sequence[int]) -> None:
        """Pins this process, threads to come included, to these cores. ValueError for cores that it does not have."""
        missing = sorted(set(units) - set(self._units))
        if missing or not units:
            raise ValueError(f"cores: {missing or 'none'} given; this process may use {list(self._units)}")
        os.sched_setaffinity(0, units)


def _model_name(root: Path) -> str:
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return "unknown"
    fields = (line.partition(":") for line in text.splitlines())
    # Arm kernels give no model name, only the part's number.
    names = [value.strip() for key, _, value in fields if key.strip() in ("model name", "CPU part")]
    return " ".join(names[0].split()) if names and names[0] else "unknown"


def _memory_bytes(root: Path) -> Bytes:
    """The smaller of the machine's memory and the limit of the control group, if it has one."""
    total = _machine_bytes(root)
    for name in _CGROUP_LIMITS:
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, int(text)) if total else int(text)
    return total


def _machine_bytes(root: Path) -> Bytes:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    kib = next((line.split()[1] for line in lines if line.startswith("MemTotal:")), "0")
    return int(kib) * 1024
