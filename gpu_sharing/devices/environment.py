"""What of a process's environment is the driver's: a program that is started for a device gets that, and no credentials."""

from __future__ import annotations

import re
from collections.abc import Mapping

DRIVER = ("CUDA_", "NVIDIA_")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
"""What somebody calls what nobody else is to know: NVIDIA_API_KEY is no setting of the driver's."""
SYSTEM = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "HOME", "USER", "LOGNAME")
"""What NVIDIA's own programs are started with, beside what is the driver's."""


def driver_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """CUDA's and the driver's variables, but for those that look like secrets."""
    return {name: value for name, value in environment.items() if name.startswith(DRIVER) and not SECRET.search(name)}


def system_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What one of NVIDIA's programs is started with: its own variables and those that any program needs."""
    return {name: environment[name] for name in SYSTEM if name in environment} | driver_variables(environment)
