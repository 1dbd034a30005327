"""`apportion quota`: what tenants may use, and what of it they use now."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from services._proto.apportion.v1 import registry_pb2, scheduler_pb2
from services.cli import remote, show
from services.cli.errors import usage
from services.cli.options import Data, Json, Mesh, Registry, Scheduler, find_mesh

app = typer.Typer(no_args_is_help=True)

NONE = "none"
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
Name = Annotated[str, typer.Argument(metavar="TENANT", show_default=False)]
Option = str | None


def _option(help_text: str, metavar: str) -> Any:
    return typer.Option(metavar=metavar, help=f"{help_text}; none: no limit.")


@app.command("set")
def set_quota(
    name: Name,
    rate: Annotated[Option, _option("Requests a second, over all frontends", "N")] = None,
    burst: Annotated[int | None, typer.Option(metavar="N", help="Requests that may come at once.")] = None,
    concurrent: Annotated[Option, _option("Requests that wait for their answer", "N")] = None,
    device_time: Annotated[Option, _option("Seconds of whole devices within the interval", "SECONDS")] = None,
    interval: Annotated[int | None, typer.Option(metavar="SECONDS", help="In which device time comes back.")] = None,
    memory: Annotated[Option, _option("Device memory of its replicas", "BYTES")] = None,
    stored: Annotated[Option, _option("Artefacts that it has uploaded", "BYTES")] = None,
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Set limits; those that are not named stay as they are. BYTES: 500M, 2G."""
    given: dict[str, int | None] = {}
    for field, text, scale in (
        ("millirequests_per_s", rate, 1000),
        ("concurrent_requests", concurrent, 1),
        ("device_ms", device_time, 1000),
    ):
        if text is not None:
            given[field] = None if text == NONE else number(field, text, scale)
    for field, text in (("memory_bytes", memory), ("stored_bytes", stored)):
        if text is not None:
            given[field] = None if text == NONE else size(field, text)
    if rate is not None and burst is None:
        # What belonged to the rate before says nothing of this one.
        given["burst"] = 0
    for field, value in (("burst", burst), ("device_interval_s", interval)):
        if value is not None:
            given[field] = value
    tenant = asyncio.run(_set(find_mesh(data, registry=registry), name, given))
    if as_json:
        show.print_json(tenant.quota)
        return
    show.print_table(_table(None, limits_of(tenant.quota)))


@app.command("clear")
def clear(name: Name, data: Data = None, registry: Registry = None) -> None:
    """Take every limit away."""

    async def call(mesh: Mesh) -> None:
        async with remote.registry(mesh) as stub:
            request = registry_pb2.UpdateTenantRequest(name=name, quota=registry_pb2.Quota())
            await stub.UpdateTenant(request, timeout=remote.CALL_S)

    asyncio.run(call(find_mesh(data, registry=registry)))
    show.out.print(f"tenant [bold]{name}[/] has no quota")


@app.command("show")
def show_quota(
    name: Name, as_json: Json = False, data: Data = None, registry: Registry = None, scheduler: Scheduler = None
) -> None:
    """A tenant's limits, and what of each it uses now."""
    held, use = asyncio.run(_both(find_mesh(data, registry=registry, scheduler=scheduler), name))
    found = with_use(limits_of(held.tenant.quota), held.stored_bytes, use)
    if as_json:
        frontends = 0 if use is None else use.frontends
        show.print_json({"tenant": name, "frontends": frontends, "quotas": [asdict(each) for each in found]})
        return
    if not held.tenant.HasField("quota"):
        show.out.print(f"tenant [bold]{name}[/] has no quota")
    show.print_table(_table(None, found))


@app.command("review")
def review(as_json: Json = False, data: Data = None, scheduler: Scheduler = None) -> None:
    """Which tenants get less than they were promised, leave it idle, or are beyond what they may use."""
    fleet, quotas = asyncio.run(_fleet(find_mesh(data, scheduler=scheduler)))
    found = reviewed(fleet, quotas)
    if as_json:
        show.print_json({"capacity_millidevices": capacity(fleet), "tenants": [asdict(each) for each in found]})
        return
    promised = sum(each.reserved for each in found)
    show.out.print(f"{show.share(promised)} devices promised of {show.share(capacity(fleet))}")
    rows = [
        [each.tenant, show.share(each.reserved), show.share(each.granted), f"{each.used_ppm / 1e6:.3f}", each.why]
        for each in found
    ]
    show.print_table(show.table(None, ["tenant", ">reserved", ">granted", ">used now", ""], rows))


@dataclass(frozen=True)
class Line:
    """One limit, and what of it is used; both for people. used "": not known."""

    quota: str
    limit: str
    used: str = ""


@dataclass(frozen=True)
class Standing:
    """A tenant for an operator. reserved, granted: millidevices. used_ppm: of one device, in the last second."""

    tenant: str
    reserved: int
    granted: int
    used_ppm: int
    why: str


def limits_of(quota: Any) -> list[Line]:
    """Every limit that a quota has."""
    found = []
    if quota.HasField("millirequests_per_s"):
        found.append(Line("requests_per_s", f"{quota.millirequests_per_s / 1000:g} (burst {quota.burst})"))
    if quota.HasField("concurrent_requests"):
        found.append(Line("concurrent_requests", str(quota.concurrent_requests)))
    if quota.HasField("device_ms"):
        found.append(Line("device_time", f"{quota.device_ms / 1000:g} s in {quota.device_interval_s} s"))
    if quota.HasField("memory_bytes"):
        found.append(Line("memory_bytes", show.size(quota.memory_bytes)))
    if quota.HasField("stored_bytes"):
        found.append(Line("stored_bytes", show.size(quota.stored_bytes)))
    return found


def with_use(lines: list[Line], stored_bytes: int, use: Any | None) -> list[Line]:
    """The limits with what is used of them. use: what the scheduler says; None: it says nothing."""
    used = {"stored_bytes": show.size(stored_bytes)}
    if use is not None:
        used |= {
            "requests_per_s": f"{use.asked_millirequests_per_s / 1000:g} asked for",
            "concurrent_requests": str(use.in_flight),
            "device_time": f"{(use.limit_device_ms - use.device_left_ms) / 1000:.3f} s",
            "memory_bytes": show.size(use.memory_bytes),
        }
    return [Line(each.quota, each.limit, used.get(each.quota, "")) for each in lines]


def capacity(fleet: Any) -> int:
    """What the attached devices are worth, in millidevices."""
    return 1000 * sum(each.attached for each in fleet.executors)


def reviewed(fleet: Any, quotas: Any) -> list[Standing]:
    """Every tenant, and what is to be said of it."""
    uses = {each.tenant: each for each in quotas}
    granted: dict[str, dict[tuple[str, int], int]] = {}
    for executor in fleet.executors:
        for each in executor.report.replicas if executor.attached else ():
            lanes = granted.setdefault(each.key.tenant, {})
            lanes[executor.executor_id, each.lane] = each.bandwidth.millidevices
    found = []
    for tenant in fleet.tenants:
        reserved, lanes = tenant.reservation.millidevices, granted.get(tenant.tenant, {})
        why = [*_promise(tenant, reserved, sum(lanes.values()), lanes), *beyond(uses.get(tenant.tenant))]
        found.append(Standing(tenant.tenant, reserved, sum(lanes.values()), tenant.used_ppm, "; ".join(why)))
    return found


def _promise(tenant: Any, reserved: int, granted: int, lanes: Any) -> list[str]:
    if reserved and not lanes:
        return ["idle: nothing of it is placed"]
    if granted < reserved:
        return ["oversold: it is granted less than it was promised"]
    if reserved and not tenant.used_ppm and not tenant.recent.requests:
        return ["idle: no request in the last minute"]
    return []


def beyond(use: Any | None) -> list[str]:
    """The quotas that a tenant is beyond now."""
    if use is None:
        return []
    found = []
    if use.HasField("limit_millirequests_per_s") and use.asked_millirequests_per_s > use.limit_millirequests_per_s:
        asked, limit = use.asked_millirequests_per_s / 1000, use.limit_millirequests_per_s / 1000
        found.append(f"over its rate: {asked:g} of {limit:g} requests/s")
    if use.HasField("limit_concurrent") and use.in_flight >= use.limit_concurrent:
        found.append(f"at its {use.limit_concurrent} requests in flight")
    if use.HasField("limit_device_ms") and use.device_left_ms <= 0:
        found.append(f"over its device time of {use.limit_device_ms / 1000:g} s in {use.device_interval_s} s")
    if use.HasField("limit_memory_bytes") and use.memory_bytes >= use.limit_memory_bytes:
        found.append(f"at its {show.size(use.limit_memory_bytes)} of device memory")
    return found


def number(field: str, text: str, scale: int) -> int:
    """A number above 0, in `1 / scale`. Raises CommandError."""
    try:
        value = round(float(text) * scale)
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise usage(f"{field}: {text!r} is neither a number above 0 nor none")
    return value


def size(field: str, text: str) -> int:
    """Bytes: "500M", "2G", "1048576". Raises CommandError."""
    plain = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = plain[-1:] if plain[-1:].isalpha() else ""
    if unit not in UNITS:
        raise usage(f"{field}: {text!r} is not a number of bytes; write 500M or 2G")
    return number(field, plain.removesuffix(unit), UNITS[unit])


def _table(title: str | None, lines: list[Line]) -> Any:
    rows = [[each.quota, each.limit, each.used] for each in lines]
    return show.table(title, ["quota", ">limit", ">in use"], rows)


async def _set(mesh: Mesh, name: str, given: dict[str, int | None]) -> Any:
    async with remote.registry(mesh) as stub:
        before = await stub.GetTenant(registry_pb2.GetTenantRequest(name=name), timeout=remote.CALL_S)
        quota = before.tenant.quota
        for field, value in given.items():
            quota.ClearField(field)
            if value is not None:
                setattr(quota, field, value)
        request = registry_pb2.UpdateTenantRequest(name=name, quota=quota)
        return (await stub.UpdateTenant(request, timeout=remote.CALL_S)).tenant


async def _both(mesh: Mesh, name: str) -> tuple[Any, Any | None]:
    async with remote.registry(mesh) as stub:
        held = await stub.GetTenant(registry_pb2.GetTenantRequest(name=name), timeout=remote.CALL_S)
    try:
        async with remote.scheduler(mesh) as stub:
            answer = await stub.GetQuotas(scheduler_pb2.GetQuotasRequest(tenant=name), timeout=remote.CALL_S)
    except remote.Unreachable:
        show.err.print("[dim]note: the scheduler is down, so what is used now is not known[/]")
        return held, None
    return held, next(iter(answer.quotas), None)


async def _fleet(mesh: Mesh) -> tuple[Any, Any]:
    async with remote.scheduler(mesh) as stub:
        fleet = await stub.GetFleet(scheduler_pb2.GetFleetRequest(), timeout=remote.CALL_S)
        quotas = await stub.GetQuotas(scheduler_pb2.GetQuotasRequest(), timeout=remote.CALL_S)
        return fleet, quotas.quotas
