"""`apportion usage`: who used how much, and what it costs; `apportion usage price`: what a device-second costs."""

from __future__ import annotations

import asyncio
import csv
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from services._proto.apportion.v1 import registry_pb2
from services.cli import remote, show
from services.cli.errors import usage as wrong
from services.cli.options import Data, Json, Mesh, Registry, find_mesh

app = typer.Typer(invoke_without_command=True)
price_app = typer.Typer(no_args_is_help=True, help="What a device-second costs.")
app.add_typer(price_app, name="price")

NANO = 1_000_000_000
PLACES = {"hour": "%Y-%m-%dT%H:00Z", "day": "%Y-%m-%d", "total": ""}
FORMS = ("%Y-%m-%dT%H:%M", "%Y-%m-%dT%H", "%Y-%m-%d")
ANY_KIND = "any"


@dataclass
class Sum:
    """What one model used in one period on one kind of device. cost: None: for a part of it there was no price."""

    period: str
    tenant: str
    model: str
    device_kind: str
    device_seconds: float = 0.0
    lane_seconds: float = 0.0
    compute_unit_seconds: float = 0.0
    requests: int = 0
    batches: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    cost: float | None = 0.0


@app.callback()
def usage(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="T", help="Only this tenant's.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="M", help="Only this model's.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="UTC: 2026-11-01, 2026-11-01T09.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before this; UTC.")] = None,
    by: Annotated[str, typer.Option("--by", metavar="hour|day|total", help="What a row is of.")] = "day",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Who used how much, by model and kind of device, and what it costs."""
    if context.invoked_subcommand is not None:
        return
    if by not in PLACES:
        raise wrong(f"--by: {by!r} is none of {', '.join(PLACES)}")
    request = registry_pb2.GetUsageRequest(tenant=tenant or "", model=model or "")
    for field, text in (("since", since), ("until", until)):
        if text is not None:
            getattr(request, field).FromDatetime(moment(field, text))
    rows = asyncio.run(_rows(find_mesh(data, registry=registry), request))
    found = summed(rows, by)
    if as_json:
        show.print_json({"by": by, "rows": [asdict(each) for each in found]})
    elif as_csv:
        _print_csv(found)
    else:
        _print_table(found)


@price_app.command("set")
def set_price(
    price: Annotated[float, typer.Argument(metavar="PRICE", help="For one second of a whole device.")],
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="As `apportion status` names it.")] = "",
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Set what a device-second costs from this hour on; without --kind, of kinds without a price of their own."""
    if not 0 <= price <= 1_000_000:
        raise wrong(f"PRICE: {price:g} is not within 0 to 1000000")

    async def call(mesh: Mesh) -> Any:
        async with remote.registry(mesh) as stub:
            request = registry_pb2.SetPriceRequest(device_kind=kind, price_nanos=round(price * NANO))
            return (await stub.SetPrice(request, timeout=remote.CALL_S)).price

    made = asyncio.run(call(find_mesh(data, registry=registry)))
    of = made.device_kind or "any other kind"
    show.out.print(f"{made.price_nanos / NANO:g} a device-second of {of}, since {made.since.ToJsonString()}")


@price_app.command("list")
def list_prices(as_json: Json = False, data: Data = None, registry: Registry = None) -> None:
    """Every price that was ever set."""

    async def call(mesh: Mesh) -> Any:
        async with remote.registry(mesh) as stub:
            return (await stub.ListPrices(registry_pb2.ListPricesRequest(), timeout=remote.CALL_S)).prices

    prices = list(asyncio.run(call(find_mesh(data, registry=registry))))
    if as_json:
        show.print_json(prices)
        return
    rows = [
        [each.device_kind or ANY_KIND, each.since.ToJsonString(), f"{each.price_nanos / NANO:g}"] for each in prices
    ]
    show.print_table(show.table(None, ["device kind", "since", ">a device-second"], rows))


def moment(field: str, text: str) -> datetime:
    """A moment in UTC. Raises CommandError."""
    for form in FORMS:
        try:
            return datetime.strptime(text.removesuffix("Z"), form).replace(tzinfo=UTC)
        except ValueError:
            continue
    raise wrong(f"--{field}: {text!r} is no moment; write 2026-11-01 or 2026-11-01T09")


def summed(rows: Iterable[Any], by: str) -> list[Sum]:
    """Rows of hours, as sums of periods."""
    found: dict[tuple[str, str, str, str], Sum] = {}
    for row in rows:
        period = row.hour.ToDatetime(tzinfo=UTC).strftime(PLACES[by])
        place = (period, row.key.tenant, row.key.name, row.device_kind)
        one = found.setdefault(place, Sum(*place))
        counts = row.counts
        one.device_seconds += row.whole_device_ns / NANO
        one.lane_seconds += counts.device_ns / NANO
        one.compute_unit_seconds += counts.compute_unit_ns / NANO
        one.requests += counts.requests
        one.batches += counts.batches
        one.bytes_in += counts.bytes_in
        one.bytes_out += counts.bytes_out
        priced = row.HasField("cost_nanos") or not row.whole_device_ns
        one.cost = one.cost + row.cost_nanos / NANO if one.cost is not None and priced else None
    return [found[place] for place in sorted(found)]


def _print_csv(found: list[Sum]) -> None:
    writer = csv.DictWriter(sys.stdout, list(asdict(Sum("", "", "", ""))), lineterminator="\n")
    writer.writeheader()
    for each in found:
        writer.writerow({name: "" if value is None else value for name, value in asdict(each).items()})


def _print_table(found: list[Sum]) -> None:
    rows = [
        [
            each.period,
            each.tenant,
            each.model or "(removed)",
            each.device_kind,
            f"{each.device_seconds:.3f}",
            str(each.requests),
            show.size(each.bytes_in),
            show.size(each.bytes_out),
            "" if each.cost is None else f"{each.cost:.4f}",
        ]
        for each in found
    ]
    columns = ["period", "tenant", "model", "device kind", ">device-seconds", ">requests", ">in", ">out", ">cost"]
    show.print_table(show.table(None, columns, rows))


async def _rows(mesh: Mesh, request: registry_pb2.GetUsageRequest) -> list[Any]:
    found: list[Any] = []
    async with remote.registry(mesh) as stub:
        while True:
            page = await stub.GetUsage(request, timeout=remote.CALL_S)
            found.extend(page.rows)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token
