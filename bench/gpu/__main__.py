"""Sharing of one device, the same scenarios on whatever device is there: `python -m bench.gpu [--scenario NAME ...] [--out FILE]`.

Each scenario runs on a real worker process of the device that the probe finds, off/on/off interleaved, and then on the simulated
device with the costs that were measured. Prints the figures; the last line, or FILE, is JSON with the device, the versions, the
figures with medians, p99 and intervals, and what was not measured and why. Exits with 1 where a scenario could not be run.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.gpu import batching, isolation, memory, swap, switching, weights
from bench.gpu.bed import Bed
from bench.gpu.figures import Findings
from gpu_sharing.devices.base import Device
from gpu_sharing.devices.probe import probe

_DRIVER = Path("/proc/driver/nvidia/version")
_LIBRARIES = ("torch", "onnxruntime", "onnx", "numpy")


class Scenario(Protocol):
    """A module of three functions. Samples are its own."""

    async def measure(self, bed: Bed) -> Any:
        """On a real worker process."""
        ...

    def simulate(self, samples: Any) -> Any:
        """On the simulated device, with what was measured; None where it has nothing to compare."""
        ...

    def judge(self, samples: Any) -> Findings:
        """What the samples show. Pure."""
        ...


SCENARIOS: Mapping[str, Any] = {
    "isolation": isolation,
    "weights": weights,
    "switching": switching,
    "batching": batching,
    "memory": memory,
    "swap": swap,
}


def environment(device: Device) -> dict[str, Any]:
    """Where it was measured."""
    return {
        "device_kind": device.device_kind,
        "backend": device.backend,
        "compute_units": device.compute_units,
        "memory_bytes": device.memory_bytes,
        "reason": device.reason,
        "driver": _DRIVER.read_text().splitlines()[0] if _DRIVER.exists() else None,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{library: _version(library) for library in _LIBRARIES},
    }


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


async def run(name: str, scenario: Scenario, bed: Bed) -> dict[str, Any]:
    """One scenario: what was found on the device, and in the simulator. What breaks is told as not measured."""
    began = time.monotonic()
    try:
        samples = await scenario.measure(bed)
        found = scenario.judge(samples)
    except Exception as error:  # the others can still be measured
        traceback.print_exc()
        return {"failed": True, "not_measured": {name: f"{type(error).__name__}: {error}"}}
    told = {
        **found._asdict(),
        "rounds": bed.rounds,
        "seconds_of_a_part": bed.seconds,
        "took_s": round(time.monotonic() - began, 1),
    }
    try:
        again = scenario.simulate(samples)
        told["simulated"] = None if again is None else scenario.judge(again)._asdict()
        if again is None:
            told["not_measured"] = {**found.not_measured, "simulated": scenario.simulate.__doc__}
    except Exception as error:
        traceback.print_exc()
        told["not_measured"] = {**found.not_measured, "simulated": f"{type(error).__name__}: {error}"}
    return told


def lines(figures: Mapping[str, Any], beside: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """Figures for people, and the simulator's beside them."""
    found = []
    for name, value in figures.items():
        other = beside.get(name)
        if isinstance(value, dict) and "median" not in value and "p99_us" not in value:
            found += [f"{indent}{name}", *lines(value, other if isinstance(other, dict) else {}, indent + "  ")]
        else:
            tail = "" if other is None else f"   simulated {_short(other)}"
            found.append(f"{indent}{name.replace('_', ' '):42} {_short(value)}{tail}")
    return found


def _short(value: Any) -> str:
    if isinstance(value, dict) and "median" in value:
        low, high = value["interval"]
        return f"{value['median']:g} [{low:g} to {high:g}]"
    if isinstance(value, dict) and "p99_us" in value:
        return f"p50 {value['p50_us']:g} us, p99 {value['p99_us']:g} us of {value['count']}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def tell(name: str, told: Mapping[str, Any]) -> None:
    """Prints one scenario."""
    print(f"{name} ({told.get('took_s', 0)} s)")
    simulated = told.get("simulated") or {}
    print("\n".join(lines(told.get("figures", {}), simulated.get("figures", {}))))
    alone = {name: value for name, value in simulated.get("figures", {}).items() if name not in told.get("figures", {})}
    if alone:
        print("  simulated alone", *lines(alone, {}, "    "), sep="\n")
    for what, holds in told.get("holds", {}).items():
        print(f"  {'holds' if holds else 'DOES NOT HOLD'}: {what}")
    for what, why in told["not_measured"].items():
        print(f"  not measured: {what}: {why}")


async def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scenario", choices=tuple(SCENARIOS), action="append", help="only these; several may be named"
    )
    parser.add_argument("--rounds", type=int, default=5, help="off/on/off so often")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each part of a round")
    parser.add_argument(
        "--trace", type=Path, help="for swap: calls of functions by minute (azure_functions_2019_200_inv.csv)"
    )
    parser.add_argument("--out", type=Path, help="a file for the JSON, instead of the last line")
    options = parser.parse_args(arguments)
    device = probe()
    told: dict[str, Any] = {"benchmark": "gpu", "environment": environment(device), "scenarios": {}}
    print(f"{device.device_kind}, backend {device.backend}: {device.reason}")
    with tempfile.TemporaryDirectory() as folder:
        bed = Bed(device, Path(folder), options.rounds, options.seconds, options.trace)
        for name in options.scenario or SCENARIOS:
            told["scenarios"][name] = found = await run(name, SCENARIOS[name], bed)
            tell(name, found)
    told["not_measured"] = {name: "not asked for" for name in SCENARIOS if name not in told["scenarios"]}
    if options.out is None:
        print(json.dumps(told))
    else:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(any(each.get("failed") for each in told["scenarios"].values()))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
