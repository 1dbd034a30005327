"""What a file that was never pushed costs on this machine: measured by a worker of its own, as an executor would start it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import json_format

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services.cli.errors import CommandError
from services.cli.push.artefact import Artefact

MODULE = "gpu_sharing.worker.measure"
"""Started by name, like the services: the command itself needs none of what runs models."""
GRACE_S = 30.0
RUNTIMES = {
    registry_pb2.ARTEFACT_FORMAT_ONNX: "onnx",
    registry_pb2.ARTEFACT_FORMAT_TORCH_EXPORT: "torch_export",
    registry_pb2.ARTEFACT_FORMAT_PYTHON: "python",
}


class Measured(NamedTuple):
    """profile: as the contracts have it. device_units: what the whole device has."""

    profile: Any
    device_units: int
    memory_bytes: int


async def measure(artefact: Artefact, config: Any, *, units: int | None, timeout_s: float) -> Measured:
    """Measures it. config: a VersionConfig. units: of the lane; None: as `apportion up` would lay it out. CommandError where
    the artefact is refused, or takes longer."""
    task = {
        "path": str(artefact.path.resolve()),
        "format": RUNTIMES[artefact.format],
        "digest": artefact.digest,
        "compute_units": units,
        "max_batch_size": config.max_batch_size if config.HasField("max_batch_size") else None,
        "batch_axes": dict(config.batch_axes),
        "warmup": [
            {"name": each.name, "shape": list(each.shape), "data": base64.b64encode(each.data).decode()}
            for each in config.warmup
        ],
        "limit_s": timeout_s,
    }
    told = json.loads(await _run(json.dumps(task), artefact.path, timeout_s + GRACE_S))
    if told["profile"] is None:
        raise CommandError(f"{artefact.path} was not measured: {told['problem']}")
    profile = json_format.ParseDict(told["profile"], common_pb2.Profile())
    return Measured(profile, told["device_units"], told["memory_bytes"])


async def _run(task: str, path: Path, timeout_s: float) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        MODULE,
        task,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("APPORTION_")},
    )
    try:
        said, problems = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError:
        raise CommandError(f"{path} was not measured within {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            # Its worker goes with it.
            process.kill()
            await process.wait()
    if process.returncode != 0 or not said.strip():
        last = problems.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        missing = "; install apportion[executor]" if "ModuleNotFoundError" in last[0] else ""
        raise CommandError(f"{path} was not measured: {last[0]}{missing}")
    return said.decode().strip().splitlines()[-1]
