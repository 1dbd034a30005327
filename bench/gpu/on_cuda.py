"""What a CUDA device shows of sharing, with this project's own lanes, streams and graphs: `python -m bench.gpu.on_cuda [--out FILE]`.

Each check (in `bench/gpu/cuda/`) runs in a process of its own with a time limit, all of them within eight minutes; prints what was
found, and a last line of JSON with device, driver, date and versions. What could not be run is told under `not_measured`, with the
reason. Ends with 1 where something does not hold, and with 2 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Imported for their checks, in the order in which these run.
from bench.gpu.cuda import lanes, memory, pools, serving, sharing
from bench.gpu.cuda.bed import CHECKS, Lanes
from gpu_sharing.devices.probe import probe

__all__ = ["CHECKS", "Lanes", "lanes", "main", "memory", "pools", "run", "serving", "sharing"]

LIMIT_S = 75.0
BUDGET_S = 465.0

NOT_BUILT = {
    "100 models of 90 MB with memory for 20, on a window of the Azure trace": "by `python -m bench.gpu --scenario swap --trace FILE`",
    "MiniLM through the whole mesh": "a command of its own: python -m bench.gpu.whole_mesh",
    "MPS beside green contexts": "a command of its own: python -m bench.gpu.ways",
}
"""Asked for, and not to be had from this command."""


def environment() -> dict[str, Any]:
    """Where it was measured."""
    import importlib.metadata as metadata

    device = probe()
    versions = {}
    for name in ("torch", "cupy-cuda13x", "cuda-bindings", "onnxruntime", "llvmlite", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    driver = Path("/proc/driver/nvidia/version")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device_kind": device.device_kind,
        "backend": device.backend,
        "reason": device.reason,
        "driver": driver.read_text().splitlines()[0] if driver.exists() else None,
        "python": sys.version.split()[0],
        **versions,
    }


def run(name: str, limit_s: float) -> dict[str, Any]:
    """One check in a process of its own: what it found, or why nothing."""
    command = [sys.executable, "-m", "bench.gpu.on_cuda", "--one", name]
    # By default streams share 8 hardware queues, and lanes that share one wait for each other.
    given = {**os.environ, "CUDA_DEVICE_MAX_CONNECTIONS": os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "32")}
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=given, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {limit_s:.0f} s"}
    line = next((each for each in told.stdout.splitlines() if each.startswith("RESULT ")), None)
    return json.loads(line[7:]) if line else {"failed": f"ended with {told.returncode}: {told.stderr[-1500:]}"}


def one(name: str) -> None:
    """This process is one check. Nothing is cleaned up after: a broken device could hang that."""
    faulthandler.enable()
    try:
        found = CHECKS[name]()
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"[:500], "where": traceback.format_exc()[-1500:]}
    print("RESULT " + json.dumps(found), flush=True)
    sys.stdout.flush()
    os._exit(0)


@contextmanager
def _timed(told: dict[str, Any]) -> Iterator[None]:
    began = time.monotonic()
    yield
    told["took_s"] = round(time.monotonic() - began, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", choices=tuple(CHECKS), action="append", help="only these; several may be named")
    parser.add_argument("--out", type=Path, help="a file for the JSON, instead of the last line")
    parser.add_argument("--one", choices=tuple(CHECKS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        one(options.one)
    where = environment()
    print(f"{where['device_kind']}, backend {where['backend']}: {where['reason']}")
    if not where["backend"].startswith("cuda"):
        told = {
            "benchmark": "on_cuda",
            "environment": where,
            "checks": {},
            "not_measured": {**dict.fromkeys(CHECKS, where["reason"]), **NOT_BUILT},
        }
        print(json.dumps(told))
        return 2
    checks: dict[str, Any] = {}
    ends = time.monotonic() + BUDGET_S
    for name in options.check or CHECKS:
        found: dict[str, Any] = {}
        with _timed(found):
            left = ends - time.monotonic()
            found.update(run(name, min(LIMIT_S, left)) if left > 10 else {"failed": "no time was left"})
        checks[name] = found
        print(f"{name}: {json.dumps(found)}", flush=True)
    missing = {name: found["failed"] for name, found in checks.items() if "failed" in found}
    told = {"benchmark": "on_cuda", "environment": where, "checks": checks, "not_measured": {**missing, **NOT_BUILT}}
    if options.out is None:
        print(json.dumps(told))
    else:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    holds = [holds for found in checks.values() for holds in found.get("holds", {}).values()]
    return int(bool(missing) or not all(holds))


if __name__ == "__main__":
    sys.exit(main())
