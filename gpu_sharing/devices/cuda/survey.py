"""What a machine's CUDA has, and which way of dividing it follows. The survey asks the driver; the choice is PURE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gpu_sharing.devices.cuda.driver import Driver, NoDriver, call, load
from gpu_sharing.devices.cuda.errors import CudaError
from gpu_sharing.partitioning.groups import Groups
from gpu_sharing.units import Bytes, ComputeUnits

GREEN_SINCE = 12_050
"""The first driver whose green contexts have streams of their own (cuGreenCtxStreamCreate)."""

_EXCLUSIVE = 3
"""CU_COMPUTEMODE_EXCLUSIVE_PROCESS."""

_GROUP_SMS = {6: 2, 7: 2, 8: 4}
_GROUP_SMS_NOW = 8
"""SMs of the smallest group, by the device's generation; the driver may make it larger."""

BACKENDS = ("cuda_mig", "cuda_green", "cuda_mps", "cuda_streams", "cpu")
"""Ways of serving, in the order in which they are tried once a driver answers."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the driver says of one device. groups: of a trial split, which keeps nothing; why_not_green: None where it has some.

    mps: the daemon that this process would reach, in words; None: none runs.
    """

    ordinal: int
    name: str
    driver_version: int
    generation: tuple[int, int]
    sms: ComputeUnits
    memory_bytes: Bytes
    exclusive: bool = False
    groups: Groups | None = None
    why_not_green: str | None = None
    mps: str | None = None

    @property
    def is_mig(self) -> bool:
        """A part that somebody has cut off the device: the driver names it so, and it cannot be cut again."""
        return " MIG " in f" {self.name} "


class Step(NamedTuple):
    """One way that was looked at. why: it was taken, or was not, in words."""

    way: str
    taken: bool
    why: str


class Choice(NamedTuple):
    """backend: of BACKENDS. steps: all ways looked at, in order, the last one taken."""

    backend: str
    steps: tuple[Step, ...]

    @property
    def reason(self) -> str:
        """One line: what was taken and why, and why not what comes before it."""
        taken = self.steps[-1]
        passed = "; ".join(f"no {step.way}: {step.why}" for step in self.steps[:-1] if not step.taken)
        return f"{taken.way}: {taken.why}" + (f" ({passed})" if passed else "")


def survey(
    driver: Driver | None = None, *, ordinal: int = 0, mps: Callable[[], str | None] = lambda: None
) -> Facts | str:
    """Asks the driver about a device; where there is none to use, why, in one line. Makes no context.

    driver: None: the real one. mps: finds a daemon that serves this process.
    """
    try:
        found = load() if driver is None else driver
        call(found, "cuInit", 0)
        count = call(found, "cuDeviceGetCount")
        if ordinal >= count:
            return f"CUDA has {count} devices, and number {ordinal} is asked for"
        return _facts(found, ordinal, mps)
    except (NoDriver, CudaError) as error:
        return str(error)


def _facts(driver: Driver, ordinal: int, mps: Callable[[], str | None]) -> Facts:
    device = call(driver, "cuDeviceGet", ordinal)
    name = call(driver, "cuDeviceGetName", 96, device)

    def attribute(kind: str) -> int:
        return int(call(driver, "cuDeviceGetAttribute", getattr(driver.CUdevice_attribute, kind), device))

    generation = (
        attribute("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR"),
        attribute("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR"),
    )
    facts = Facts(
        ordinal=ordinal,
        name=name.rstrip(b"\0").decode("ascii", "replace") if isinstance(name, bytes) else str(name),
        driver_version=int(call(driver, "cuDriverGetVersion")),
        generation=generation,
        sms=attribute("CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT"),
        memory_bytes=int(call(driver, "cuDeviceTotalMem", device)),
        exclusive=attribute("CU_DEVICE_ATTRIBUTE_COMPUTE_MODE") == _EXCLUSIVE,
        mps=mps(),
    )
    groups, why = _tried(driver, device, facts)
    return replace(facts, groups=groups, why_not_green=why)


def group_sms(generation: tuple[int, int]) -> ComputeUnits:
    """SMs of the smallest group that devices of this generation can be divided into."""
    return _GROUP_SMS.get(generation[0], _GROUP_SMS_NOW)


def _tried(driver: Driver, device: object, facts: Facts) -> tuple[Groups | None, str | None]:
    if facts.driver_version < GREEN_SINCE:
        return None, f"driver {version(facts.driver_version)} is older than {version(GREEN_SINCE)}"
    try:
        kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
        whole = call(driver, "cuDeviceGetDevResource", device, kind)
        groups, rest = split(driver, whole, group_sms(facts.generation))
    except (CudaError, NoDriver) as refused:
        return None, str(refused)
    if len(groups) < 2:
        return None, f"it has {facts.sms} SMs, which is one group"
    return Groups(groups[0].sm.smCount, len(groups), rest.sm.smCount), None


def split(driver: Driver, whole: Any, least: ComputeUnits) -> tuple[list[Any], Any]:
    """ONE split of a device's SMs: the groups, and what is left over. Groups of different splits overlap.

    CudaError where the driver refuses.
    """
    most = max(1, whole.sm.smCount // least)
    groups, count, rest = call(driver, "cuDevSmResourceSplitByCount", most, whole, 0, least)
    return list(groups[:count]), rest


def choose(facts: Facts | str, *, wanted: str | None = None) -> Choice:
    """The way to serve. wanted: one of BACKENDS, where an operator asks for it; ValueError where it cannot be had. PURE.

    Tried in this order: CUDA and its driver, MIG, a green split, MPS, plain streams, the processor.
    """
    if isinstance(facts, str):
        if wanted not in (None, "cpu"):
            raise ValueError(f"backend: {wanted} cannot be had: {facts}")
        return Choice("cpu", (Step("CUDA", False, facts), Step("CPU", True, "processor cores serve")))
    steps: list[Step] = []
    for backend in BACKENDS:
        way, taken, why = _looked_at(backend, facts)
        if wanted is not None and backend != wanted:
            taken, why = False, f"the operator asks for {wanted}"
        steps.append(Step(way, taken, why))
        if taken:
            return Choice(backend, tuple(steps))
    raise ValueError(f"backend: {wanted} cannot be had: {next(why for way, _, why in steps if _way(wanted) == way)}")


def _way(backend: str | None) -> str:
    return {
        "cuda_mig": "MIG", "cuda_green": "green contexts", "cuda_mps": "MPS", "cuda_streams": "plain streams", "cpu": "CPU",
    }.get(backend or "", "")  # fmt: skip


def _looked_at(backend: str, facts: Facts) -> Step:
    driver = version(facts.driver_version)
    match backend:
        case "cuda_mig":
            if facts.is_mig:
                return Step(_way(backend), True, f"{facts.name} is a part of a device, used as it is, driver {driver}")
            return Step(_way(backend), False, "the device is whole")
        case "cuda_green":
            if facts.groups is None:
                return Step(_way(backend), False, facts.why_not_green or "the device was not split")
            groups = facts.groups
            what = f"{groups.count} groups of {groups.size} SMs and {groups.rest} left over, driver {driver}"
            return Step(_way(backend), True, what)
        case "cuda_mps":
            return Step(_way(backend), facts.mps is not None, facts.mps or "no daemon answers")
        case "cuda_streams":
            return Step(_way(backend), True, f"nothing keeps lanes apart but their order, driver {driver}")
        case _:
            return Step(_way(backend), True, "processor cores serve")


def version(number: int) -> str:
    """As NVIDIA writes it: 13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"
