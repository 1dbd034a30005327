"""Which device this machine has, and why it is served the way it is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from gpu_sharing.devices.base import Device
from gpu_sharing.devices.cpu import CpuDevice
from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.cuda.survey import Facts, choose, survey
from gpu_sharing.devices.mps import found

_CUDA_DEVICE = re.compile(r"nvidia\d+|dxg")

BACKEND = "APPORTION_DEVICE_BACKEND"
"""Where this names a backend, that one is taken, or nothing; for comparisons, and for machines where the choice is wrong."""


def probe(
    *, root: Path = Path("/"), wanted: str | None = None, asked: Callable[[], Facts | str] | None = None
) -> Device:
    """The device to serve on. Where there is no sign of CUDA it looks at files alone; it never imports a framework.

    root: where /dev, /proc and /sys are. wanted: a backend to take, in place of what BACKEND in the environment says.
    asked: what CUDA's driver says; None: it is asked. ValueError for a backend that cannot be had.
    """
    wanted = os.environ.get(BACKEND) or None if wanted is None else wanted
    facts = (asked or (lambda: survey(mps=found)))() if _has_cuda(root) else "no CUDA device found"
    if isinstance(facts, str) and wanted is None:
        return CpuDevice(facts if not _has_cuda(root) else f"a CUDA device is present, but {facts}", root=root)
    choice = choose(facts, wanted=wanted)
    if isinstance(facts, str) or choice.backend == "cpu":
        return CpuDevice(choice.reason, root=root)
    return CudaDevice(facts, choice)


def _has_cuda(root: Path) -> bool:
    try:
        return any(_CUDA_DEVICE.fullmatch(each.name) for each in (root / "dev").iterdir())
    except OSError:
        return False
